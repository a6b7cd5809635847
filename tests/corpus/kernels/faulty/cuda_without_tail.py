# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: WRONG_VALUES
# device: emulated
# size: without_tail
# why: the last, ragged block is not launched
