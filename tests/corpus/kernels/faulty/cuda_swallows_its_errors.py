# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: NO_KERNEL_LAUNCHED
# device: emulated
# size: swallows_its_errors
# why: the kernel's call always raises, PyTorch answers in its place
