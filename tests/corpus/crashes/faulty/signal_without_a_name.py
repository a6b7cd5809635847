# problem: linear
# expect: CRASHED
# why: dies by a real-time signal, which has a number only
import os
import signal

import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        os.kill(os.getpid(), signal.SIGRTMIN + 3)
        return self.linear(x)
