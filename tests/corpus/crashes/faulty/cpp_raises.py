# problem: cpp_add
# solution: kernels/sources/cpp.py
# expect: CRASHED
# size: raises
# tier: full
# why: TORCH_CHECK fails in the call
