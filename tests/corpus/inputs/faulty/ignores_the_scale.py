# problem: hidden_state
# expect: WRONG_VALUES
# why: leaves scale out: get_inputs gives ones every time
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.cell = nn.Linear(size, size)

    def forward(self, x, state, scale):
        return torch.tanh(self.cell(x) + state)
