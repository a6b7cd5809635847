# problem: cuda_sum
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT
# device: emulated
# size: past_shared_array
# tier: full
# why: one element too few in a shared array
