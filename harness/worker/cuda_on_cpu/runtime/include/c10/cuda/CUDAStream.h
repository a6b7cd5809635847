#ifndef EMU_C10_CUDA_STREAM_H
#define EMU_C10_CUDA_STREAM_H
#include <c10/core/Device.h>

#include "CUDAFunctions.h"

namespace c10::cuda {
class CUDAStream {
  public:
    cudaStream_t stream() const { return nullptr; }
    operator cudaStream_t() const { return nullptr; }
    DeviceIndex device_index() const { return 0; }
    c10::Device device() const { return c10::Device(c10::DeviceType::CPU); }
    c10::StreamId id() const { return 0; }
    int priority() const { return 0; }
    bool query() const { return true; }
    void synchronize() const { C10_CUDA_CHECK(cudaDeviceSynchronize()); }
    bool operator==(const CUDAStream&) const { return true; }
    bool operator!=(const CUDAStream&) const { return false; }
};
static inline CUDAStream getCurrentCUDAStream(DeviceIndex = -1) { return {}; }
static inline CUDAStream getDefaultCUDAStream(DeviceIndex = -1) { return {}; }
static inline CUDAStream getStreamFromPool(bool = false, DeviceIndex = -1) { return {}; }
static inline CUDAStream getStreamFromExternal(cudaStream_t, DeviceIndex) { return {}; }
static inline void setCurrentCUDAStream(CUDAStream) {}
}  // namespace c10::cuda
namespace at::cuda {
using c10::cuda::CUDAStream;
using c10::cuda::getCurrentCUDAStream;
using c10::cuda::getDefaultCUDAStream;
using c10::cuda::getStreamFromExternal;
using c10::cuda::getStreamFromPool;
using c10::cuda::setCurrentCUDAStream;
}  // namespace at::cuda
#endif
