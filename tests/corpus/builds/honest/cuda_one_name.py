# problem: affine
# solution: kernels/sources/one_name/solution.py
# device: emulated
# warns: it ignores the current stream
# tier: full
# why: extensions of one name from several files, in constructor and first call; torch numbers them
