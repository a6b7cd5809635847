# problem: rounded
# why: rounds halves to the even number by another formula, clamps the square of the norm
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def forward(self, x):
        magic = 1.5 * 2.0**23
        square = x.square().sum(-1, keepdim=True).clamp_min(1e-12)
        return (x + magic) - magic, x * torch.rsqrt(square)
