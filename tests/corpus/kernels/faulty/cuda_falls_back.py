# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: NO_KERNEL_LAUNCHED
# device: emulated
# size: falls_back
# why: ships CUDA and calls PyTorch
