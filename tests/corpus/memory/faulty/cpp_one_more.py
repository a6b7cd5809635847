# problem: cpp_add
# solution: kernels/sources/cpp.py
# expect: MEMORY_FAULT|CRASHED
# size: one_more
# why: C++ on the CPU that reads and writes one element behind the end
