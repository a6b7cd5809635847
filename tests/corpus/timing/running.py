"""A moving average of a large buffer beside a small product: most of the work is in the state.

The output holds many tensors and a number, too.
"""

import torch
import torch.nn as nn

TENSORS = 100


class Model(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64))
        self.register_buffer("average", torch.randn(length))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        with torch.no_grad():
            self.average.mul_(0.99).add_(x.mean() * 0.01)
            self.calls += 1
        rows = {f"row {i}": x[i % 64] * (i + 1.5) for i in range(TENSORS)}
        return x @ self.weight, rows, x.norm().item()


def get_inputs():
    return [torch.randn(64, 64)]


def get_init_inputs():
    return [1 << 18]
