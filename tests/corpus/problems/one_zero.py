"""A linear map whose weight is a buffer with one zero in it, and a mask that is the same each time."""

import torch
import torch.nn as nn


class Model(nn.Module):
    def __init__(self, size):
        super().__init__()
        weight = torch.randn(size, size)
        weight[0, 0] = 0.0
        self.register_buffer("weight", weight)
        self.register_buffer("mask", torch.ones(size, size).tril())

    def forward(self, x):
        return x @ (self.weight * self.mask).T


def get_inputs():
    return [torch.randn(8, 48)]


def get_init_inputs():
    return [48]
