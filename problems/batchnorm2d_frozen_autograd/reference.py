"""BatchNorm2d with frozen statistics, as in fine-tuning: forward and backward."""

import torch
import torch.nn as nn


class Model(nn.Module):
    """``nn.BatchNorm2d`` whose statistics stay frozen while weight, bias and x get gradients.

    ``.train()`` leaves the layer in evaluation form: the running statistics normalise and are
    constants to autograd.
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


batch_size = 16
features = 64
dim1 = 512
dim2 = 512


def get_inputs():
    x = torch.rand(batch_size, features, dim1, dim2, requires_grad=True)
    return [x]


def get_init_inputs():
    return [features]


SETTINGS = {
    "modes": ["train", "eval"],
    "sizes": {
        "small": {"batch_size": 4, "features": 8, "dim1": 40, "dim2": 36},
        "odd": {"batch_size": 3, "features": 5, "dim1": 31, "dim2": 23},
    },
    "tolerances": {"atol": 1e-4, "rtol": 1e-4},
    "solutions": {"solution": {"precision": "fp32"}},
}
