# problem: hidden_state
# why: the same with the state as the product's start
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.cell = nn.Linear(size, size)

    def forward(self, x, state, scale):
        return torch.tanh(torch.addmm(state + self.cell.bias, x, self.cell.weight.T)).mul_(scale)
