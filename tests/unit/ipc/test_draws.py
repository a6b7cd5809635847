"""Large random tensors are drawn once: copies are what a draw would have given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from harness.ipc import draws
from harness.ipc.draws import Draws
from harness.judge.reference.problem import Problem

LARGE = """
import torch
from torch import nn
SIZE = 1024
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(SIZE, SIZE)
        self.second = nn.Parameter(torch.empty(SIZE, SIZE).normal_(0.0, 0.02))
        self.plain = torch.empty(SIZE, SIZE).uniform_(0.5, 1.0)  # neither parameter nor buffer
        self.after = nn.Parameter(torch.randn(SIZE))
    def forward(self, x):
        return self.first(x) @ self.second * self.plain.to(x.dtype)[0] + self.after
def get_inputs():
    return [torch.randn(4, SIZE)]
"""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of the draws that were really made, as they are made."""
    made: list[tuple[int, ...]] = []
    for name in ("uniform_", "normal_"):
        original = getattr(torch.Tensor, name)

        def draw(tensor, *args, original=original, **named):
            made.append(tuple(tensor.shape))
            return original(tensor, *args, **named)

        monkeypatch.setattr(torch.Tensor, name, draw, raising=False)
    return made


def make() -> list[torch.Tensor]:
    torch.manual_seed(3)
    layer = torch.nn.Linear(1024, 1030)
    table = torch.nn.Embedding(1030, 1024)
    own = torch.empty(1024, 1024).normal_(1.0, 2.0)
    return [*layer.parameters(), *table.parameters(), own, torch.randn(7)]


def test_copies_are_bit_for_bit_what_a_draw_gives() -> None:
    plain, theirs = make(), Draws(keep=True)
    with theirs.replayed():
        kept = make()
    fd = theirs.shared()
    assert fd is not None and len(theirs.index) == 3
    with Draws(os.dup(fd), theirs.index).replayed():
        copied = make()
    for a, b, c in zip(plain, kept, copied, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
        assert a._version == c._version and a.requires_grad == c.requires_grad


def test_another_draw_is_not_taken_for_a_known_one() -> None:
    """Another bound, shape or generator state gives other numbers."""
    ours = Draws(keep=True)
    with ours.replayed():
        torch.manual_seed(3)
        torch.empty(1 << 20).uniform_(0, 1)
    ours.shared()
    for seed, high, shape in ((4, 1, (1 << 20,)), (3, 2, (1 << 20,)), (3, 1, (1 << 10, 1 << 10))):
        torch.manual_seed(seed)
        expected = torch.empty(shape).uniform_(0, high)
        torch.manual_seed(seed)
        with ours.replayed():
            assert torch.equal(torch.empty(shape).uniform_(0, high), expected)


def test_what_torch_refuses_is_still_refused() -> None:
    with (
        Draws(keep=True).replayed(),
        pytest.raises(RuntimeError, match="leaf"),
    ):
        torch.empty(1 << 20, requires_grad=True).uniform_()


def test_a_worker_cannot_write_what_others_will_copy() -> None:
    ours = Draws(keep=True)
    with ours.replayed():
        torch.empty(1 << 20).uniform_()
    fd = ours.shared()
    assert fd is not None
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_torch_is_as_it_was_afterwards() -> None:
    with Draws(keep=True).replayed():
        assert "uniform_" in torch.Tensor.__dict__
    assert not {"uniform_", "normal_"} & torch.Tensor.__dict__.keys()


def test_small_draws_leave_nothing_to_share() -> None:
    ours = Draws(keep=True)
    with ours.replayed():
        torch.nn.Linear(8, 8)
    assert ours.shared() is None


def test_without_memory_to_keep_them_draws_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(draws.os, "pwritev", no_memory)
    plain, ours = make(), Draws(keep=True)
    with ours.replayed():
        assert all(torch.equal(a, b) for a, b in zip(make(), plain, strict=True))
    assert ours.shared() is None


def test_the_oracle_draws_nothing_large_again(tmp_path: Path, drawn: list[tuple[int, ...]]) -> None:
    path = tmp_path / "reference.py"
    path.write_text(LARGE)
    problem = Problem(path, {}, torch.device("cpu"), 1)
    assert set(drawn) == {(1024, 1024), (1024,)}
    drawn.clear()
    oracle = problem.build_oracle()
    assert set(drawn) == {(1024,)}
    reference = problem.reference
    assert torch.equal(oracle.plain, reference.plain)
    assert torch.equal(oracle.after, reference.after.double())


LAYER = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4096, 4096)
        INIT
    def forward(self, x):
        return self.layer(x)
def get_inputs():
    return [torch.randn(2, 4096)]
"""


@pytest.mark.parametrize(
    ("init", "copied"),
    [
        ("", True),
        ("self.act = torch.nn.functional.relu", True),
        ("self.sizes = [1, (2, 3), {'a': None}]", True),
        ("self.again = self.layer", True),
        ("self.run = lambda x: self.layer(x)", False),
        ("self.runs = [lambda x, f=self.layer: f(x)]", False),
        ("self.half = [lambda x, by=0.5: x * by]", True),
        ("self.layer.register_forward_hook(lambda m, i, o: o * self.layer.bias)", False),
        ("self.late = self.layer.weight * 1", False),
        ("self.rng = torch.Generator()", False),
        ("self.bound = self.layer.forward", False),
        ("self.total = self.layer.weight.sum", False),
        ("self.relu = torch.relu", True),
    ],
)
def test_large_reference_is_copied_where_a_copy_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, copied: bool
) -> None:
    path = tmp_path / "reference.py"
    path.write_text(LAYER.replace("INIT", init))
    problem = Problem(path, {}, torch.device("cpu"), 1)
    constructed: list[bool] = []
    original = Problem._constructed
    monkeypatch.setattr(
        Problem, "_constructed", lambda self: constructed.append(True) or original(self)
    )
    oracle = problem.build_oracle()
    assert bool(constructed) is not copied
    weight = problem.reference.layer.weight
    assert torch.equal(oracle.layer.weight, weight.double())
    with torch.no_grad():
        weight.zero_()
    assert oracle.layer.weight.any()
