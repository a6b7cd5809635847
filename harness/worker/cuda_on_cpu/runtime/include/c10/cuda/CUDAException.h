#ifndef EMU_C10_CUDA_EXCEPTION_H
#define EMU_C10_CUDA_EXCEPTION_H
#include <c10/util/Exception.h>

#include "../../cuda_runtime.h"

namespace c10::cuda {
static inline void c10_cuda_check_implementation(int32_t err, const char* file, const char* function, int line, bool) {
    if (err == 0) return;
    emu_last_error(1);
    TORCH_CHECK(false, "CUDA error: ", cudaGetErrorString(static_cast<cudaError_t>(err)), " (", file, ":", line, ", ",
                function, ")");
}
}  // namespace c10::cuda
#define C10_CUDA_CHECK(EXPR)                                                                          \
    do {                                                                                              \
        const cudaError_t emu_err = (EXPR);                                                           \
        ::c10::cuda::c10_cuda_check_implementation(static_cast<int32_t>(emu_err), __FILE__, __func__, \
                                                   __LINE__, false);                                  \
    } while (0)
#define C10_CUDA_CHECK_WARN(EXPR) ((void)(EXPR))
#define C10_CUDA_ERROR_HANDLED(EXPR) (EXPR)
#define C10_CUDA_IGNORE_ERROR(EXPR) ((void)(EXPR))
#define C10_CUDA_CLEAR_ERROR() ((void)cudaGetLastError())
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
#endif
