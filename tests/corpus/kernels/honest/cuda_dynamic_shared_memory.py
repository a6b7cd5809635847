# problem: cuda_sum
# solution: kernels/sources/kernels.py
# device: emulated
# size: dynamic_shared_memory
# tier: full
# why: the whole row in dynamic shared memory
