# problem: cuda_sum
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT
# device: emulated
# size: race_in_shared_memory
# why: no barrier between writing and reading shared memory
