# problem: affine
# device: emulated
# why: defaults, macros and statics in C++ and CUDA sources alike; flags in all of nvcc's spellings
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

CPP = r"""
#define WIDTH 8
static int helper() { return WIDTH; }
torch::Tensor affine(torch::Tensor x, double scale = 3.0, int64_t n = helper());
"""
CUDA = r"""
#include <torch/extension.h>
#include <ATen/cuda/CUDAContext.h>
#define WIDTH 128
static int helper() { return WIDTH; }
__global__ void affine_kernel(const float* x, float* y, float scale, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = (x[i] + OFFSET) * scale - 2.0f;
}
torch::Tensor affine(torch::Tensor x, double scale = 3.0, int64_t n = 0) {
    x = x.contiguous();
    auto y = torch::empty_like(x);
    int total = x.numel(), blocks = (total + WIDTH - 1) / WIDTH;
    affine_kernel<<<blocks, helper(), 0, at::cuda::getCurrentCUDAStream()>>>(
        x.data_ptr<float>(), y.data_ptr<float>(), scale, total);
    return y;
}
"""
FLAGS = ["-O3", "-std", "c++17", "--default-stream", "legacy", "--diag-suppress", "177"]
FLAGS += ["--define-macro", "OFFSET=1.0f", "-Xfatbin", "-compress-all", "-Xcompiler=-Wall"]
kernels = load_inline(
    name="fixture_two_units",
    cpp_sources=CPP,
    cuda_sources=CUDA,
    functions=["affine"],
    extra_cuda_cflags=FLAGS,
)


class ModelNew(nn.Module):
    def forward(self, x):
        return kernels.affine(x, 3.0, 0)
