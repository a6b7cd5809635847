# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: NONDETERMINISTIC|WRONG_VALUES
# device: emulated
# size: first_call_only
# tier: full
# why: launches its kernel once and then repeats that answer
