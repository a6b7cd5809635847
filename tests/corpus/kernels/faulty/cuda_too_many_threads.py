# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: CRASHED|WRONG_VALUES|MEMORY_FAULT
# device: emulated
# size: too_many_threads
# tier: full
# why: 2048 threads per block: the launch fails and nobody checks
