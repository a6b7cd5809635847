# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT|CRASHED
# device: emulated
# size: null_pointer
# tier: full
# why: a null pointer as an operand
