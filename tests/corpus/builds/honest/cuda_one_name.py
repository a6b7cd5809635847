# problem: affine
# solution: kernels/sources/one_name/solution.py
# device: emulated
# tier: full
# why: extensions of one name from several files, in constructor and first call; torch numbers them
