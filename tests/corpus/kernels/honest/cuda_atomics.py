# problem: cuda_sum
# solution: kernels/sources/kernels.py
# device: emulated
# size: atomics
# tier: full
# why: atomics fix no order of additions: last bits differ, values hold
