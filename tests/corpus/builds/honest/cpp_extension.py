# problem: cpp_add
# solution: kernels/sources/cpp.py
# size: extension
# tier: full
# why: a C++ extension on CPU tensors, in parallel
