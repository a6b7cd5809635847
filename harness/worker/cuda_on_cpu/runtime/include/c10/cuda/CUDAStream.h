#ifndef EMU_C10_CUDA_STREAM_H
#define EMU_C10_CUDA_STREAM_H
#include <c10/core/Device.h>

#include "CUDAFunctions.h"

namespace c10::cuda {
class CUDAStream {
  public:
    explicit CUDAStream(cudaStream_t handle = emu::current_stream) : handle_(handle) {}
    cudaStream_t stream() const { return handle_; }
    operator cudaStream_t() const { return handle_; }
    DeviceIndex device_index() const { return 0; }
    c10::Device device() const { return c10::Device(c10::DeviceType::CPU); }
    c10::StreamId id() const { return 0; }
    int priority() const { return 0; }
    bool query() const { return true; }
    void synchronize() const { C10_CUDA_CHECK(cudaDeviceSynchronize()); }
    bool operator==(const CUDAStream& other) const { return handle_ == other.handle_; }
    bool operator!=(const CUDAStream& other) const { return handle_ != other.handle_; }

  private:
    cudaStream_t handle_;
};
static inline CUDAStream getCurrentCUDAStream(DeviceIndex = -1) { return CUDAStream(); }
static inline CUDAStream getDefaultCUDAStream(DeviceIndex = -1) { return CUDAStream(nullptr); }
static inline CUDAStream getStreamFromPool(bool = false, DeviceIndex = -1) { return CUDAStream(emu::own_stream); }
static inline CUDAStream getStreamFromPool(int, DeviceIndex = -1) { return CUDAStream(emu::own_stream); }
static inline CUDAStream getStreamFromExternal(cudaStream_t s, DeviceIndex) { return CUDAStream(s); }
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
