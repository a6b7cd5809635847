"""Only what is drawn element by element may be mixed of two draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.judge.timing.independence import independent


def boxes() -> list[torch.Tensor]:
    low = torch.rand(16, 2)
    return [torch.cat([low, low + torch.rand(16, 2)], dim=-1)]


def definite() -> list[torch.Tensor]:
    a = torch.randn(8, 8)
    return [a @ a.T + torch.eye(8)]


def one_row_set() -> list[torch.Tensor]:
    x = torch.randn(8, 8)
    x[0] = 0
    return [x]


def twice() -> list[torch.Tensor]:
    x = torch.rand(64)
    return [x, x]


def multiple() -> list[torch.Tensor]:
    x = torch.rand(64)
    torch.rand(64)
    return [x, 2 * x]


def sorted_by_numpy() -> list[torch.Tensor]:
    x = torch.rand(64)
    x.numpy().sort()
    return [x]


def sorted_by_numpy_and_cast() -> list[torch.Tensor]:
    return [sorted_by_numpy()[0].to(torch.float64)]


def one_plus_the_other() -> list[torch.Tensor]:
    x, y = torch.rand(9), torch.rand(9)
    return [torch.add(x, other=y), y]


def raises_when_watched() -> list[torch.Tensor]:
    raise RuntimeError("not in a dispatch mode")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: [torch.rand(4, 8), torch.randn(3)],
        lambda: [torch.rand(4, 8) * 2 - 1, {"w": torch.randn(5).to(torch.float16)}],
        lambda: (torch.empty(9).uniform_(-1, 1), 3.0),
        lambda: [(1 - torch.rand(7)).detach().clone()],
    ],
)
def test_elements_on_their_own(draw: Callable[[], Any]) -> None:
    assert independent(draw)


@pytest.mark.parametrize(
    "draw",
    [
        boxes,
        definite,
        one_row_set,
        twice,
        multiple,
        sorted_by_numpy,
        sorted_by_numpy_and_cast,
        raises_when_watched,
        lambda: [torch.rand(8).sort().values],
        lambda: [torch.randn(8).softmax(-1)],
        lambda: [torch.rand(4, 4).tril()],
        lambda: [torch.randperm(9)],
        lambda: [torch.randint(0, 2, (9,)).float()],
        lambda: [torch.ones(9)],
        lambda: [torch.rand(9) * torch.rand(9)],
        one_plus_the_other,
        lambda: [torch.rand(9), torch.arange(9)],
        lambda: [torch.from_numpy(torch.rand(9).numpy())],
        lambda: [torch.rand(3).expand(4, 3)],
    ],
)
def test_elements_that_may_belong_together(draw: Callable[[], Any]) -> None:
    assert not independent(draw)
