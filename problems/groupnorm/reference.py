"""GroupNorm: statistics per sample and group of channels, affine per channel."""

import torch
import torch.nn as nn


class Model(nn.Module):
    """``nn.GroupNorm``."""

    def __init__(self, num_features: int, num_groups: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(num_groups=num_groups, num_channels=num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (N, C, *), normalised per sample and group."""
        return self.gn(x)


batch_size = 112
features = 64
num_groups = 8
dim1 = 512
dim2 = 512


def get_inputs():
    x = torch.rand(batch_size, features, dim1, dim2)
    return [x]


def get_init_inputs():
    return [features, num_groups]


SETTINGS = {
    "modes": ["forward"],
    "sizes": {
        "small": {"batch_size": 2, "features": 8, "num_groups": 2, "dim1": 96, "dim2": 96},
        "odd": {"batch_size": 3, "features": 15, "num_groups": 5, "dim1": 31, "dim2": 23},
    },
    "tolerances": {"atol": 1e-4, "rtol": 1e-4},
    "solutions": {
        "solution": {"precision": "fp32"},
        "hopper": {"precision": "fp32", "requires": "sm_90"},
    },
}
