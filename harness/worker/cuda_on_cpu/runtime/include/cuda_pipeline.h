// cp.async through the pipeline primitives: copies are done at once.
#ifndef EMU_CUDA_PIPELINE_H
#define EMU_CUDA_PIPELINE_H
#include "cuda_runtime.h"
static inline void __pipeline_memcpy_async(void* to, const void* from, size_t n, size_t zero = 0) {
    ::emu::checked_memcpy(static_cast<char*>(to), static_cast<const char*>(from), n - zero);
    if (zero) ::emu::checked_memset(static_cast<char*>(to) + (n - zero), 0, zero);
}
static inline void __pipeline_commit() {}
static inline void __pipeline_wait_prior(size_t) {}
#endif
