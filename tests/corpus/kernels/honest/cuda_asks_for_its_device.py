# problem: default_device
# device: emulated
# why: a switch over the device type, indices of devices, operators registered for CUDA only
import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

CUDA = r"""
#include <torch/extension.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
__global__ void affine_kernel(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * 2.0f + 1.0f;
}
torch::Tensor affine(const torch::Tensor& given) {
    auto x = given.contiguous();
    switch (x.device().type()) {
        case torch::kCUDA: break;
        case c10::DeviceType::CPU: TORCH_CHECK(false, "on the CPU");
        default: TORCH_CHECK(false, "elsewhere");
    }
    TORCH_CHECK(x.get_device() == 0 && x.device().index() == 0 && x.device().has_index());
    TORCH_CHECK(x.device() == c10::Device(c10::kCUDA, 0) && x.options().device() == x.device());
    c10::cuda::CUDAGuard guard(x.device());
    auto on = torch::TensorOptions().dtype(x.dtype()).device(torch::kCUDA, x.get_device());
    auto y = torch::empty(x.sizes(), on);
    TORCH_CHECK(y.device() == x.device());
    int n = x.numel();
    affine_kernel<<<(n + 255) / 256, 256, 0, at::cuda::getCurrentCUDAStream()>>>(
        x.data_ptr<float>(), y.data_ptr<float>(), n);
    return y;
}
TORCH_LIBRARY(fixture_device, m) { m.def("affine(Tensor given) -> Tensor"); }
TORCH_LIBRARY_IMPL(fixture_device, CUDA, m) { m.impl("affine", &affine); }
TORCH_LIBRARY_IMPL(fixture_device, CPU, m) {
    m.impl("affine", [](const torch::Tensor& x) { return x; });
}
"""
load_inline(name="fixture_device", cpp_sources="", cuda_sources=CUDA, is_python_module=False)


@torch.library.custom_op("fixture_device::outer", mutates_args=(), device_types="cuda")
def outer(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.fixture_device.affine(x)


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        spare = torch.empty(1, device=torch.cuda.current_device())
        self.register_buffer("spare", spare.to(0), persistent=False)

    def forward(self, x):
        assert x.get_device() == x.device.index == torch.cuda.current_device()
        return outer(x)
