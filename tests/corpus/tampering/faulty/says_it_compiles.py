# problem: linear
# expect: TIMED_OUT
# timeout: 8
# why: says that it compiles, starts no compiler, and never answers: its word gives it no time
import sys
import time

import torch.nn as nn


def worker():
    frame = sys._getframe(1)
    while frame is not None:
        me = frame.f_locals.get("self")
        if type(me).__name__ == "Worker" and hasattr(me, "_send"):
            return me
        frame = frame.f_back


class ModelNew(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        cheat()
        return self.linear(x)


def cheat():
    me = worker()
    if me is not None:
        me._send({"event": "compiling", "name": "none"})
        time.sleep(100_000)
