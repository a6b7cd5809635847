# problem: linear
# expect: CRASHED
# tier: full
# why: a link to a device without end lies where the judge looks for findings of a crash
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
        place.symlink_to("/dev/zero")
        os._exit(3)
