"""Takes a NamedTuple among its inputs, whose fields are read by name."""

from typing import NamedTuple

import torch
import torch.nn as nn


class Config(NamedTuple):
    scale: float
    shift: torch.Tensor


class Model(nn.Module):
    def forward(self, x, config):
        return x * config.scale + config.shift


def get_inputs():
    return [torch.randn(8, 33), Config(2.0, torch.randn(33))]


def get_init_inputs():
    return []
