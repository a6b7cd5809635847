# problem: one_zero
# why: computes the mask, which is a constant, anew in each call
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self, size):
        super().__init__()
        weight = torch.randn(size, size)
        weight[0, 0] = 0.0
        self.register_buffer("weight", weight)

    def forward(self, x):
        return x @ self.weight.tril().T
