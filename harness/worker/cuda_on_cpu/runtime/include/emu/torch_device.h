// CUDA-ness of tensors. On the `emulated` device a solution's tensors lie on the CPU and its
// questions (is_cuda, kCUDA) are answered yes; on `cpu` the same binary answers no. The rewriter
// turns the questions into these calls.
#ifndef EMU_TORCH_DEVICE_H
#define EMU_TORCH_DEVICE_H
#include <c10/core/Device.h>
#include <c10/core/DeviceType.h>

#include "../../abi.h"

namespace emu {
static inline c10::DeviceType cuda_type() {
    return emu_answer_cuda() ? c10::DeviceType::CPU : c10::DeviceType::CUDA;
}
// In a comparison: no tensor is on the CPU while we answer yes.
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
