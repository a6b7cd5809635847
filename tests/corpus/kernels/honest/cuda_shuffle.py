# problem: cuda_sum
# solution: kernels/sources/kernels.py
# device: emulated
# size: shuffle
# why: warp shuffles, then one thread over the warps
