// Answers whether a tensor is on the GPU. The rewriter turns is_cuda, kCUDA and the like into these
// calls. The tensors lie on the CPU. On the `emulated` device the answer is yes, on `cpu` the same
// binary answers no.
#ifndef EMU_TORCH_DEVICE_H
#define EMU_TORCH_DEVICE_H
#include <c10/core/Device.h>
#include <c10/core/DeviceType.h>

#include "../../abi.h"

namespace emu {
static inline c10::DeviceType cuda_type() {
    return emu_answer_cuda() ? c10::DeviceType::CPU : c10::DeviceType::CUDA;
}
// In a comparison: on `emulated`, no tensor is on the CPU.
static inline c10::DeviceType cpu_type_compared() {
    return emu_answer_cuda() ? c10::DeviceType::CUDA : c10::DeviceType::CPU;
}
template <class T>
bool is_cuda(const T& x) {
    return x.is_cpu() && emu_answer_cuda();
}
template <class T>
bool is_cpu(const T& x) {
    return x.is_cpu() && !emu_answer_cuda();
}
static inline const char* cuda_name() { return emu_answer_cuda() ? "cpu" : "cuda"; }
}  // namespace emu
#endif
