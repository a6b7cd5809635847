# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: NO_KERNEL_LAUNCHED|MEMORY_FAULT
# device: emulated
# size: refused_launch
# tier: full
# why: its only launch is refused, PyTorch does the work
