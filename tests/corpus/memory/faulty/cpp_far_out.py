# problem: cpp_add
# solution: kernels/sources/cpp.py
# expect: MEMORY_FAULT|CRASHED
# size: far_out
# tier: full
# why: C++ on the CPU that writes a gigabyte away
