# problem: named_tuple
# why: reads an input's fields by name, as the reference does
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def forward(self, x, config):
        return torch.addcmul(config.shift, x, torch.full_like(x, config.scale))
