# problem: cuda_sum
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT
# device: emulated
# size: misaligned
# tier: full
# why: 16-byte loads from rows of an odd number of floats
