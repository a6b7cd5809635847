// Answers whether a tensor is on the GPU. The rewriter turns is_cuda, kCUDA and the like into these
// calls. The tensors lie on the CPU. On the `emulated` device the answer is yes, on `cpu` the same
// binary answers no.
#ifndef EMU_TORCH_DEVICE_H
#define EMU_TORCH_DEVICE_H
#include <c10/core/Device.h>
#include <c10/core/DeviceType.h>
#include <c10/core/DispatchKey.h>
#include <torch/library.h>

#include <type_traits>

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
// A tensor's device has an index on a GPU.
template <class T>
decltype(auto) device(T&& x) {
    if constexpr (std::is_same_v<std::decay_t<decltype(x.device())>, c10::Device>) {
        const c10::Device d = x.device();
        return d.is_cpu() && emu_answer_cuda() ? c10::Device(d.type(), 0) : d;
    } else {
        return x.device();
    }
}
template <class T>
auto get_device(T&& x) {
    if constexpr (requires { x.is_cpu(); }) {
        return x.is_cpu() && emu_answer_cuda() ? decltype(x.get_device())(0) : x.get_device();
    } else {
        return x.get_device();
    }
}
// Case labels are constants: the device type is changed for them.
template <class T>
T switched(T value) {
    if constexpr (std::is_same_v<T, c10::DeviceType>) {
        if (emu_answer_cuda() && value == c10::DeviceType::CPU) return c10::DeviceType::CUDA;
    }
    return value;
}
// What is registered for CUDA serves the tensors that claim to be there, and the reverse.
static inline c10::DispatchKey registered(c10::DispatchKey key) {
    using Key = c10::DispatchKey;
    if (!emu_answer_cuda()) return key;
    switch (key) {
        case Key::CUDA: return Key::CPU;
        case Key::CPU: return Key::CUDA;
        case Key::AutogradCUDA: return Key::AutogradCPU;
        case Key::AutogradCPU: return Key::AutogradCUDA;
        default: return key;
    }
}
static inline const char* cuda_name() { return emu_answer_cuda() ? "cpu" : "cuda"; }
}  // namespace emu

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, k, m) EMU_LIBRARY_IMPL(ns, k, m, __COUNTER__)
#define EMU_LIBRARY_IMPL(ns, k, m, n) EMU_NUMBERED_LIBRARY_IMPL(ns, k, m, n)
#define EMU_NUMBERED_LIBRARY_IMPL(ns, k, m, n)                                        \
    static void emu_register_##n(torch::Library&);                                    \
    static const torch::detail::TorchLibraryInit emu_registration_##n(                \
        torch::Library::IMPL, &emu_register_##n, #ns,                                 \
        std::make_optional(::emu::registered(c10::DispatchKey::k)), __FILE__, __LINE__); \
    static void emu_register_##n(torch::Library& m)
#endif
