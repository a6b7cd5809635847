# problem: cuda_sum
# solution: kernels/sources/kernels.py
# device: emulated
# size: shared_memory
# tier: full
# why: a tree in static shared memory
