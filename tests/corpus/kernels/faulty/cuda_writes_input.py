# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: INPUT_MUTATED
# device: emulated
# size: writes_input
# tier: full
# why: a kernel that leaves its result in an operand
