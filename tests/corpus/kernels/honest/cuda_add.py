# problem: cuda_add
# solution: kernels/sources/kernels.py
# device: emulated
# size: add
# why: a grid-stride loop in two blocks
