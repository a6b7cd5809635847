# problem: affine
# expect: BUILD_FAILED
# device: emulated
# why: nvcc refuses the host compiler's -fopenmp outside -Xcompiler
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

CUDA = r"""
#include <torch/extension.h>
__global__ void affine_kernel(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = (x[i] + 1.0f) * 3.0f - 2.0f;
}
torch::Tensor affine(torch::Tensor x) {
    auto y = torch::empty_like(x);
    affine_kernel<<<3, 128>>>(x.data_ptr<float>(), y.data_ptr<float>(), x.numel());
    return y;
}
"""
kernels = load_inline(
    name="fixture_host_flag",
    cpp_sources="torch::Tensor affine(torch::Tensor x);",
    cuda_sources=CUDA,
    functions=["affine"],
    extra_cuda_cflags=["-O3", "-fopenmp"],
)


class ModelNew(nn.Module):
    def forward(self, x):
        return kernels.affine(x)
