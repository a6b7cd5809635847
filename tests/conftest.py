"""What all tests share: pairs on disk, a judge that plays a part, and the GPU marker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.domain import Pair
from harness.fleet import JudgeServer
from harness.machine.environment import torch_build
from harness.machine.gpus import find_gpus

# As root, a solution runs as another user: a file that a test writes under umask 077 would be
# closed to it, and rightly SKIPPED. tests/end_to_end/test_places.py has tests of such places.
os.umask(0o022)

REFERENCE = """\
import torch


class Model(torch.nn.Module):
    def forward(self, x):
        return x + 1


def get_inputs():
    return [torch.ones(3)]


def get_init_inputs():
    return []
"""

SOLUTION = "class ModelNew:\n    pass\n"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        build = torch_build()
        if build is None or build.cuda is None:
            pytest.skip("needs a CUDA build of torch")
        if not find_gpus().devices:
            pytest.skip(f"needs a GPU: {find_gpus().problem}")


@pytest.fixture(scope="session")
def judges() -> Iterator[JudgeServer]:
    """Return what forks the judges of the session: importing torch for each takes three seconds."""
    with JudgeServer() as server:
        yield server


@pytest.fixture
def make_pair(tmp_path: Path) -> Callable[..., Pair]:
    """Return a function that writes a pair below ``tmp_path`` as it stands in a checkout."""

    def make(name: str, reference: str = REFERENCE, solution: str = SOLUTION) -> Pair:
        problem, _, stem = name.partition("/")
        files = {
            tmp_path / "problems" / problem / "reference.py": reference,
            tmp_path / "solutions" / problem / f"{stem}.py": solution,
        }
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        first, second = files
        return Pair(name=name, problem=first, solution=second)

    return make
