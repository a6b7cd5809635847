# problem: cuda_norm
# solution: kernels/sources/kernels.py
# device: emulated
# size: norm
# why: state as kernel arguments, read at every call
