# problem: one_zero
# expect: WRONG_VALUES|WRONG_STATE
# why: folds the weight in its constructor: a checkpoint that is loaded later is ignored
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self, size):
        super().__init__()
        weight = torch.randn(size, size)
        weight[0, 0] = 0.0
        self.register_buffer("weight", weight)
        self.register_buffer("mask", torch.ones(size, size).tril())
        self.folded = None

    def forward(self, x):
        if self.folded is None:
            self.folded = (self.weight * self.mask).T.clone()
        return x @ self.folded
