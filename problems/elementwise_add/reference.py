"""Elementwise addition of two tensors: the smallest pair, and a test of raw memory bandwidth."""

import torch
import torch.nn as nn


class Model(nn.Module):
    """Adds two tensors element by element."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return ``a + b``."""
        return a + b


batch_size = 16384
features = 16384  # 2^28 elements: 1 GiB of float32 per tensor


def get_inputs():
    a = torch.randn(batch_size, features)
    b = torch.randn(batch_size, features)
    return [a, b]


def get_init_inputs():
    return []


SETTINGS = {
    "modes": ["forward"],
    "sizes": {
        "small": {"batch_size": 65, "features": 1031},
        "odd": {"batch_size": 37, "features": 1013},
        "example": {"batch_size": 1, "features": 128},
    },
    "solutions": {"solution": {"precision": "fp32"}},
}
