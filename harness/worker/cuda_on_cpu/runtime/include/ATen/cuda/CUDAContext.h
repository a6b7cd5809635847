#ifndef EMU_ATEN_CUDA_CONTEXT_H
#define EMU_ATEN_CUDA_CONTEXT_H
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cublas_v2.h>

#include "Exceptions.h"

namespace at::cuda {
static inline int64_t getNumGPUs() { return c10::cuda::device_count(); }
static inline bool is_available() { return c10::cuda::device_count() > 0; }
static inline cudaDeviceProp* getDeviceProperties(c10::DeviceIndex) {
    static cudaDeviceProp properties;
    return &properties;
}
static inline cudaDeviceProp* getCurrentDeviceProperties() { return getDeviceProperties(0); }
static inline int warp_size() { return 32; }
static inline c10::DeviceIndex current_device() { return 0; }
static inline cublasHandle_t getCurrentCUDABlasHandle() {
    static cublasContext context{};
    return &context;
}
using c10::cuda::device_synchronize;
using c10::cuda::set_device;
}  // namespace at::cuda
#endif
