# problem: affine
# device: emulated
# tier: full
# why: load_inline reaches a kernel with shared memory through an include path
from pathlib import Path

import torch.nn as nn
from torch.utils.cpp_extension import load_inline

CUDA = r"""
#include <torch/extension.h>
#include <ATen/cuda/CUDAContext.h>
#include <stage.cuh>
torch::Tensor affine(torch::Tensor x) {
    x = x.contiguous();
    auto y = torch::empty_like(x);
    start(x.data_ptr<float>(), y.data_ptr<float>(), x.numel(), at::cuda::getCurrentCUDAStream());
    return y;
}
"""
kernels = load_inline(
    name="fixture_header_with_kernel",
    cpp_sources="torch::Tensor affine(torch::Tensor x);",
    cuda_sources=CUDA,
    functions=["affine"],
    extra_include_paths=[str(Path(__file__).parents[1] / "sources" / "inc")],
)


class ModelNew(nn.Module):
    def forward(self, x):
        return kernels.affine(x)
