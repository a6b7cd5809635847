# problem: rounded
# expect: WRONG_VALUES
# why: rounds halves away from zero, as C's roundf does; no draw is a half
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def forward(self, x):
        rounded = torch.sign(x) * torch.floor(x.abs() + 0.5)
        return rounded, x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
