#ifndef EMU_ATEN_CUDA_EVENT_H
#define EMU_ATEN_CUDA_EVENT_H
#include "CUDAContext.h"
namespace at::cuda {
struct CUDAEvent {
    explicit CUDAEvent(unsigned = 0) {}
    void record() { cudaEventRecord(&event, nullptr); }
    void record(const CUDAStream&) { record(); }
    void block(const CUDAStream&) {}
    void synchronize() const {}
    bool query() const { return true; }
    float elapsed_time(const CUDAEvent& other) const {
        return std::chrono::duration<float, std::milli>(other.event.at - event.at).count();
    }
    CUevent_st event;
};
}  // namespace at::cuda
#endif
