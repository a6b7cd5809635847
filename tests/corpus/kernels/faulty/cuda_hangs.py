# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: TIMED_OUT
# device: emulated
# size: hangs
# timeout: 12
# why: a kernel that never ends
