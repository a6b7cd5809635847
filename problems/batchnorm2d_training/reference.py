"""BatchNorm2d in training: batch statistics, normalisation, running statistics."""

import torch
import torch.nn as nn


class Model(nn.Module):
    """``nn.BatchNorm2d`` as constructed, in training mode: the call updates its buffers."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (N, C, H, W), normalised per channel with the statistics of this batch."""
        return self.bn(x)


batch_size = 64
features = 64
dim1 = 512
dim2 = 512


def get_inputs():
    x = torch.rand(batch_size, features, dim1, dim2)
    return [x]


def get_init_inputs():
    return [features]


SETTINGS = {
    "modes": ["forward"],
    "sizes": {
        "small": {"batch_size": 4, "features": 8, "dim1": 40, "dim2": 36},
        "odd": {"batch_size": 3, "features": 5, "dim1": 31, "dim2": 23},
    },
    "tolerances": {"atol": 1e-4, "rtol": 1e-4},
    "solutions": {
        "solution": {"precision": "fp32"},
        "hopper": {"precision": "fp32", "requires": "sm_90"},
    },
}
