"""Pairs at several sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.domain import Options, Pair, Status
from harness.fleet import JudgeServer, run_pairs
from harness.judge.policy import Policy
from harness.pairs.settings import constants_of
from harness.pairs.sizes import at_sizes

PROBLEM = """
import torch
ROWS = 64
SETTINGS = {"sizes": {"tiny": {"ROWS": 2}, "odd": {"ROWS": 7}}}
class Model(torch.nn.Module):
    def forward(self, x):
        return x + 1
def get_inputs():
    return [torch.randn(ROWS, 8)]
"""
ONLY_SOME_ROWS = """
import torch
class ModelNew(torch.nn.Module):
    def forward(self, x):
        return x + 1 if x.shape[0] % 2 == 0 else x + 2
"""


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    (tmp_path / "reference.py").write_text(PROBLEM)
    (tmp_path / "solution.py").write_text(ONLY_SOME_ROWS)
    tmp_path.chmod(0o755)
    return Pair(name="p/s", problem=tmp_path / "reference.py", solution=tmp_path / "solution.py")


def test_solution_that_is_right_at_one_size_only_is_found_out(
    pair: Pair, judges: JudgeServer
) -> None:
    sized = at_sizes([pair], "tiny,odd", full=False)
    tiny, odd = run_pairs(sized, Options(device="cpu", timed=False), judges=judges)
    assert (tiny.status, tiny.size) == (Status.PASSED, "tiny")
    assert (odd.status, odd.size) == (Status.WRONG_VALUES, "odd")
    assert "--size odd" in odd.replay


def test_size_that_the_judge_chose_can_be_asked_for_again(pair: Pair, judges: JudgeServer) -> None:
    pair.problem.write_text("""
import torch
ROWS = 256
COLUMNS = 256
class Model(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)
def get_inputs():
    return [torch.randn(ROWS, COLUMNS)]
""")
    pair.solution.write_text("""
import torch
class ModelNew(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)
""")
    memory = Policy().memory_fixed_bytes + 10 * (1 << 16)
    chosen = Options(device="cpu", timed=False, quick=False, memory_bytes=memory)
    (verdict,) = run_pairs((pair,), chosen, judges=judges)
    assert verdict.status is Status.PASSED and constants_of(verdict.size)
    assert f"--size {verdict.size}" in verdict.replay.replace("'", "")
    asked = Options(device="cpu", timed=False, size=verdict.size)
    (again,) = run_pairs((pair,), asked, judges=judges)
    assert (again.status, again.size) == (Status.PASSED, verdict.size)
