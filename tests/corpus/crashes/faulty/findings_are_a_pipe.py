# problem: linear
# expect: CRASHED
# why: a pipe lies where the judge looks for findings of a crash: it must not wait for a writer
import contextlib
import os
from pathlib import Path

import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        place = Path(os.environ["HOME"]) / "findings.jsonl"
        with contextlib.suppress(FileNotFoundError):
            place.unlink()
        os.mkfifo(place)
        os._exit(3)
