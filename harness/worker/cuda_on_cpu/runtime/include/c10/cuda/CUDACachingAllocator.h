#ifndef EMU_C10_CUDA_CACHING_ALLOCATOR_H
#define EMU_C10_CUDA_CACHING_ALLOCATOR_H
#include "CUDAStream.h"
namespace c10::cuda::CUDACachingAllocator {
static inline void* raw_alloc(size_t n) { return emu_device_malloc(n); }
static inline void* raw_alloc_with_stream(size_t n, cudaStream_t) { return emu_device_malloc(n); }
static inline void raw_delete(void* p) { cudaFree(p); }
static inline void emptyCache() {}
}  // namespace c10::cuda::CUDACachingAllocator
#endif
