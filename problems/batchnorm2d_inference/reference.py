"""BatchNorm2d at inference: normalisation with the running statistics."""

import torch
import torch.nn as nn


class Model(nn.Module):
    """``nn.BatchNorm2d`` that stays in its evaluation form, as a deployed network runs it.

    ``.train()`` leaves the layer in evaluation form, so that a freshly built model gives the
    same output as one after ``.eval()``.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features)
        self.bn.eval()

    def train(self, mode: bool = True) -> "Model":
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (N, C, H, W), normalised per channel with the running statistics."""
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
    "modes": ["eval", "forward"],
    "sizes": {
        "small": {"batch_size": 4, "features": 8, "dim1": 40, "dim2": 36},
        "odd": {"batch_size": 3, "features": 5, "dim1": 31, "dim2": 23},
    },
    "tolerances": {"atol": 1e-4, "rtol": 1e-4},
    "solutions": {"solution": {"precision": "fp32"}},
}
