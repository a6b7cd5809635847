# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: CRASHED|MEMORY_FAULT
# device: emulated
# size: empty_grid
# tier: full
# why: a grid without blocks: the launch is refused and the check raises
