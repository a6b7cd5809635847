"""Rounds to whole numbers, halves to the even one, and normalises rows, of which none is zero."""

import torch
import torch.nn as nn


class Model(nn.Module):
    def forward(self, x):
        return torch.round(x), x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def get_inputs():
    return [torch.randn(64, 96) * 4]


def get_init_inputs():
    return []
