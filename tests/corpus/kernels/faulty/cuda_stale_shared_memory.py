# problem: cuda_sum
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT|WRONG_VALUES|NOT_FINITE
# device: emulated
# size: stale_shared_memory
# tier: full
# why: shared memory is not zero at the start
