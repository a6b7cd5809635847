# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT|NOT_FINITE|WRONG_VALUES
# device: emulated
# size: leaves_holes
# tier: full
# why: the ragged end of an uninitialised output is never written
