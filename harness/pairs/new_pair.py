"""Writes a new pair: a small kernel that already gets PASSED."""

from __future__ import annotations

import re
from pathlib import Path

from harness.domain import UsageError

_NAME = re.compile(r"[a-z][a-z0-9_]*")

_REFERENCE = '''\
"""NAME: write in one sentence what it computes."""

import torch
import torch.nn as nn


class Model(nn.Module):
    """The reference in plain PyTorch. It need not be fast."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``relu(x * scale)``; x is (rows, features)."""
        return torch.relu(x * self.scale)


# Sizes are module-level constants, so that SETTINGS can give them other values.
rows = 16384
features = 4096


def get_inputs():
    return [torch.randn(rows, features)]


def get_init_inputs():
    return [features]


SETTINGS = {
    "modes": ["forward"],
    "sizes": {
        "small": {"rows": 65, "features": 1031},
        "odd": {"rows": 1, "features": 33},
    },
}
'''

_SOLUTION = '''\
"""NAME in CUDA.

Idea     neighbouring threads take neighbouring elements of x, and each takes every stride-th one.
Layout   x and y are (rows, features), row-major; scale is (features,).
Bound    bandwidth: one read and one write of x, 8 bytes per element.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

CUDA_SOURCE = r"""
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>

__global__ void NAME_kernel(const float* x, const float* scale, float* y, int64_t n,
                            int64_t features) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = first; i < n; i += stride) {
    const float value = x[i] * scale[i % features];
    y[i] = value < 0.0f ? 0.0f : value;  // keeps NaN, as torch.relu does
  }
}

at::Tensor NAME(const at::Tensor& input, const at::Tensor& scale) {
  TORCH_CHECK(input.is_cuda() && input.device() == scale.device(),
              "NAME: x and scale must lie on one GPU");
  TORCH_CHECK(input.dim() == 2 && input.size(1) == scale.numel(),
              "NAME: x must be (rows, ", scale.numel(), "), not ", input.sizes());
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor x = input.contiguous();
  const at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const int threads = 256;
  const int64_t blocks = std::min<int64_t>((x.numel() + threads - 1) / threads, 4096);
  NAME_kernel<<<blocks, threads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      x.data_ptr<float>(), scale.data_ptr<float>(), y.data_ptr<float>(), x.numel(), x.size(1));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}
"""

extension = load_inline(
    name="NAME_solution",
    cpp_sources="at::Tensor NAME(const at::Tensor& input, const at::Tensor& scale);",
    cuda_sources=CUDA_SOURCE,
    functions=["NAME"],
)


class ModelNew(nn.Module):
    """The reference's Model with the same constructor and the same names of parameters."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``relu(x * scale)``; x is (rows, features)."""
        return extension.NAME(x, self.scale)
'''


def write_pair(name: str, root: Path) -> tuple[Path, Path]:
    """Write ``problems/NAME/reference.py`` and ``solutions/NAME/solution.py``.

    Args:
        name: lower-case letters, digits and underscores. It also names the kernel.
        root: folder with problems/ and solutions/, which are created if they are missing.

    Returns:
        The two files, the reference first.

    Raises:
        UsageError: the name is not valid, or a file exists already or cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--new {name!r}: a name is lower-case letters, digits and underscores, "
            "and starts with a letter"
        )
    files = {
        root / "problems" / name / "reference.py": _REFERENCE,
        root / "solutions" / name / "solution.py": _SOLUTION,
    }
    for path in files:
        if path.exists():
            raise UsageError(f"{path}: exists already, and --new overwrites nothing")
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as stream:
                stream.write(text.replace("NAME", name))
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be written: {error.strerror}. Next: --root FOLDER names another "
                "folder for pairs"
            ) from error
    reference, solution = files
    return reference, solution
