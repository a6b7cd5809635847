"""Which sizes of a problem are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.domain import Pair, UsageError
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


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    (tmp_path / "reference.py").write_text(PROBLEM)
    (tmp_path / "solution.py").write_text("class ModelNew: ...\n")
    tmp_path.chmod(0o755)
    return Pair(name="p/s", problem=tmp_path / "reference.py", solution=tmp_path / "solution.py")


def names(pairs: tuple[Pair, ...]) -> list[str]:
    return [p.name for p in pairs]


def test_all_sizes_are_those_that_the_problem_names(pair: Pair) -> None:
    assert names(at_sizes([pair], "all", full=False)) == ["p/s@tiny", "p/s@odd"]
    assert names(at_sizes([pair], "all", full=True)) == ["p/s@full", "p/s@tiny", "p/s@odd"]
    assert at_sizes([pair], "odd,full", full=False)[0].size == "odd"


def test_size_that_no_problem_has_is_bad_usage(pair: Pair) -> None:
    with pytest.raises(UsageError, match="has a size"):
        at_sizes([pair], "odd,hug", full=False)
