#ifndef EMU_C10_CUDA_GUARD_H
#define EMU_C10_CUDA_GUARD_H
#include <optional>

#include "CUDAStream.h"

namespace c10::cuda {
struct CUDAGuard {
    explicit CUDAGuard(DeviceIndex) {}
    explicit CUDAGuard(c10::Device) {}
    void set_device(c10::Device) {}
    void reset_device(c10::Device) {}
    void set_index(DeviceIndex) {}
    c10::Device current_device() const { return c10::Device(c10::DeviceType::CPU); }
    c10::Device original_device() const { return current_device(); }
};
struct OptionalCUDAGuard {
    OptionalCUDAGuard() {}
    explicit OptionalCUDAGuard(std::optional<c10::Device>) {}
    explicit OptionalCUDAGuard(std::optional<DeviceIndex>) {}
    void set_device(c10::Device) {}
    void set_index(DeviceIndex) {}
    void reset() {}
};
struct CUDAStreamGuard {
    explicit CUDAStreamGuard(CUDAStream) {}
    void reset_stream(CUDAStream) {}
    CUDAStream current_stream() const { return CUDAStream(); }
    CUDAStream original_stream() const { return CUDAStream(); }
};
struct OptionalCUDAStreamGuard {
    OptionalCUDAStreamGuard() {}
    explicit OptionalCUDAStreamGuard(CUDAStream) {}
};
}  // namespace c10::cuda
namespace at::cuda {
using c10::cuda::CUDAGuard;
using c10::cuda::CUDAStreamGuard;
using c10::cuda::OptionalCUDAGuard;
using c10::cuda::OptionalCUDAStreamGuard;
}  // namespace at::cuda
#endif
