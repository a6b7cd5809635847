"""A step of a recurrence from a state that get_inputs gives as zeros, scaled by a tensor of ones."""

import torch
import torch.nn as nn


class Model(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.cell = nn.Linear(size, size)

    def forward(self, x, state, scale):
        return torch.tanh(self.cell(x) + state) * scale


def get_inputs():
    return [torch.randn(16, 64), torch.zeros(16, 64), torch.ones(64)]


def get_init_inputs():
    return [64]
