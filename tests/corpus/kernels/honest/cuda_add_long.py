# problem: cuda_add
# solution: kernels/sources/kernels.py
# device: emulated
# size: add_long
# tier: full
# why: more elements than one wave of blocks
