# problem: cuda_sum
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT
# device: emulated
# size: divergent_barrier
# why: a barrier that half of the block never reaches
