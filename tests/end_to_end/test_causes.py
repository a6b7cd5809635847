"""What a message says of the cause of a wrong answer, from a real judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import evaluate
from harness.domain import Status
from harness.fleet import JudgeServer

PROBLEMS = Path(__file__).parents[1] / "corpus" / "problems"

STALE = """
import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = None

    def forward(self, a, b):
        self.kept = a + b if self.kept is None else self.kept
        return self.kept.clone()
"""
FOLDED = """
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.linear = nn.Linear(*sizes)
        self.folded = self.linear.weight.detach().t().clone()

    def forward(self, x):
        return x @ self.folded + self.linear.bias
"""
LATE = """
import threading
import time

import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def forward(self, a, b):
        out = torch.zeros_like(a)

        def add():
            time.sleep(0.05)
            out.copy_(a + b)

        threading.Thread(target=add).start()
        return out
"""
UNRELATED = """
import torch.nn as nn


class ModelNew(nn.Module):
    def forward(self, a, b):
        return a - b
"""


@pytest.mark.parametrize(
    ("problem", "source", "said"),
    [
        ("add", STALE, "the result of the call before"),
        ("linear", FOLDED, "linear.weight as constructed"),
        ("add", LATE, "work goes on after it has returned"),
    ],
)
def test_causes_are_told_apart(
    problem: str, source: str, said: str, tmp_path: Path, judges: JudgeServer
) -> None:
    solution = tmp_path / "solution.py"
    solution.write_text(source)
    verdict = evaluate(
        PROBLEMS / f"{problem}.py", solution, device="cpu", timed=False, judges=judges
    )
    assert verdict.status is Status.WRONG_VALUES, verdict.message
    assert said in verdict.message


def test_a_wrong_formula_has_no_cause_but_itself(tmp_path: Path, judges: JudgeServer) -> None:
    solution = tmp_path / "solution.py"
    solution.write_text(UNRELATED)
    verdict = evaluate(PROBLEMS / "add.py", solution, device="cpu", timed=False, judges=judges)
    assert verdict.status is Status.WRONG_VALUES
    for guess in ("stream", "call before", "as constructed", "goes on"):
        assert guess not in verdict.message
