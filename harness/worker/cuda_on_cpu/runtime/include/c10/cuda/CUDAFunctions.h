#ifndef EMU_C10_CUDA_FUNCTIONS_H
#define EMU_C10_CUDA_FUNCTIONS_H
#include <c10/core/Device.h>

#include "CUDAException.h"

namespace c10::cuda {
static inline DeviceIndex device_count() { return emu_answer_cuda() ? 1 : 0; }
static inline DeviceIndex device_count_ensure_non_zero() {
    TORCH_CHECK(emu_answer_cuda(), "No CUDA GPUs are available");
    return 1;
}
static inline DeviceIndex current_device() { return 0; }
static inline void set_device(DeviceIndex) {}
static inline void device_synchronize() { C10_CUDA_CHECK(cudaDeviceSynchronize()); }
static inline void stream_synchronize(cudaStream_t s) { C10_CUDA_CHECK(cudaStreamSynchronize(s)); }
}  // namespace c10::cuda
#endif
