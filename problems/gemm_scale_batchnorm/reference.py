"""Linear, times a learned scale, then BatchNorm1d."""

import torch
import torch.nn as nn


class Model(nn.Module):
    """``BatchNorm1d(Linear(x) * scale)``."""

    def __init__(
        self, in_features: int, out_features: int, scale_shape, eps=1e-5, momentum=0.1
    ) -> None:
        super().__init__()
        self.gemm = nn.Linear(in_features, out_features)
        self.scale = nn.Parameter(torch.randn(scale_shape))
        self.bn = nn.BatchNorm1d(out_features, eps=eps, momentum=momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, out_features) from x, (batch, in_features)."""
        x = self.gemm(x)
        x = x * self.scale
        return self.bn(x)


batch_size = 16384
in_features = 4096
out_features = 4096
scale_shape = (out_features,)


def get_inputs():
    return [torch.rand(batch_size, in_features)]


def get_init_inputs():
    return [in_features, out_features, scale_shape]


SETTINGS = {
    "modes": ["eval", "forward"],
    "sizes": {
        "small": {"batch_size": 200, "in_features": 72, "out_features": 136},
        "odd": {"batch_size": 67, "in_features": 45, "out_features": 131},
    },
    "tolerances": {"atol": 1e-4, "rtol": 1e-4},
    "solutions": {
        "solution": {"precision": "fp32"},
        "hopper": {"precision": "fp32", "requires": "sm_90a"},
        "tf32": {"precision": "tf32", "requires": "sm_90a"},
    },
}
