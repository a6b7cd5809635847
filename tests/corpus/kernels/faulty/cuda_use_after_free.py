# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT|NOT_FINITE|WRONG_VALUES
# device: emulated
# size: use_after_free
# tier: full
# why: reads a temporary that is gone
