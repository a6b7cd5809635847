# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: WRONG_VALUES|MEMORY_FAULT
# device: emulated
# size: short_index
# why: an index that overflows: 16 bits here, 32 bits past 2^31 elements
