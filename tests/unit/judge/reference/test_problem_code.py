"""The fleet is told exactly while the reference's code runs in the judge: no longer, no less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.judge.policy import Policy
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import InvalidReference, Problem

SOURCE = """
import builtins
import torch

def note(what):
    builtins.told_of_code.append(what)

note("import")

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        note("construct")

    def forward(self, x):
        note("call")
        if x.numel() == 1:
            raise ValueError("one element")
        return x + 1

def get_inputs():
    note("inputs")
    return [torch.ones(3)]

def get_init_inputs():
    note("arguments")
    return []
"""


def test_every_piece_of_the_problems_code_runs_while_the_fleet_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr("builtins.told_of_code", told, raising=False)
    path = tmp_path / "problem.py"
    path.write_text(SOURCE)
    problem = Problem(path, {}, torch.device("cpu"), 1, told.append)
    inputs = problem.inputs(1)
    oracle = Oracle(problem, [], Policy())
    with problem.running():
        problem.call(problem.reference, "forward", inputs, 1, None)
        problem.call(problem.reference, "forward", inputs, 1, None)
    oracle.call("forward", inputs, 1, None)
    with pytest.raises(InvalidReference):
        problem.call(problem.reference, "forward", [torch.ones(1)], 1, None)
    runs, pieces = False, 0
    for event in told:
        if isinstance(event, bool):
            assert event is not runs, "the same told twice"
            runs = event
        else:
            assert runs, f"{event} ran and the fleet did not know"
            pieces += 1
    assert not runs and pieces >= 9
