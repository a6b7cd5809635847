# problem: cuda_sum
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT
# device: emulated
# size: race_in_global_memory
# tier: full
# why: additions to one element without atomics
