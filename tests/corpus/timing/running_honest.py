"""The same in another order: updates by lerp, puts another tensor in place of a counter."""

import torch
import torch.nn as nn

TENSORS = 100


class ModelNew(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64))
        self.register_buffer("average", torch.randn(length))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        with torch.no_grad():
            self.average.lerp_(x.mean(), 0.01)
            self.calls = self.calls + 1
        rows = {f"row {i}": x[i % 64] * (i + 1.5) for i in reversed(range(TENSORS))}
        return x @ self.weight, rows, float(torch.linalg.vector_norm(x))
