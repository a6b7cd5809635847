# problem: named_tuple
# expect: WRONG_VALUES
# tier: full
# why: takes the first field for both
import torch.nn as nn


class ModelNew(nn.Module):
    def forward(self, x, config):
        return x * config[0] + config[0]
