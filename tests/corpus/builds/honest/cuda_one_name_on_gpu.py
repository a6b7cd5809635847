# problem: affine
# solution: kernels/sources/one_name/solution.py
# device: cuda
# why: the same, with torch's own builder
