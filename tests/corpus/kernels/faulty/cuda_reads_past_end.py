# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT
# device: emulated
# size: reads_past_end
# tier: full
# why: the last thread looks at a right neighbour; no output shows it
