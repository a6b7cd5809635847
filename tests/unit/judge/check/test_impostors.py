"""Wrong answers on purpose: what they answer, and which problems would accept them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from harness.judge.check.impostors import IMPOSTORS, PREVIOUS, expose
from harness.judge.check.precision import Standard
from harness.judge.policy import Policy

pytestmark = pytest.mark.unit


def survivors(
    expected: Any, inputs: Any = (), previous: Any = None, precision: str | None = None
) -> set[str]:
    """Return the impostors that one call does not expose."""
    left = set(IMPOSTORS)
    oracle = (
        [t.double() if t.is_floating_point() else t for t in expected]
        if isinstance(expected, list)
        else expected.double()
        if expected.is_floating_point()
        else expected
    )
    standard = Standard(policy=Policy(), precision=precision)
    expose(left, expected, oracle, list(inputs), previous, standard, "forward/0:nominal")
    return left


def test_an_ordinary_output_exposes_all() -> None:
    x = torch.randn(64)
    assert survivors(torch.exp(x), [x], torch.exp(-x)) == set()


@pytest.mark.parametrize(
    ("name", "expected", "inputs", "previous"),
    [
        ("zeros", torch.zeros(64), [], None),
        ("its first input", torch.ones(64), [torch.ones(64)], None),
        ("the mean", torch.full((64,), 3.0), [], None),
        (PREVIOUS, torch.ones(64), [], torch.ones(64)),
    ],
)
def test_a_problem_that_an_impostor_solves_keeps_it(
    name: str, expected: torch.Tensor, inputs: list[torch.Tensor], previous: Any
) -> None:
    assert name in survivors(expected, inputs, previous)


def test_the_call_before_tells_nothing_where_there_is_none() -> None:
    assert PREVIOUS in survivors(torch.randn(64))
    assert PREVIOUS not in survivors(torch.randn(64), previous=torch.randn(64))
    assert PREVIOUS not in survivors(torch.randn(64), previous=torch.randn(63))
    assert PREVIOUS not in survivors(torch.randn(64), previous=[torch.randn(64)])


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_a_solution_in_fewer_bits_is_no_impostor_where_it_is_granted(precision: str) -> None:
    assert "a bfloat16 downcast" not in survivors(torch.randn(64), precision=precision)


def test_a_reference_that_rounds_to_bfloat16_has_no_downcast_impostor() -> None:
    assert "a bfloat16 downcast" not in survivors(torch.randn(64).bfloat16().float())


@pytest.mark.parametrize("name", sorted(set(IMPOSTORS) - {PREVIOUS}))
@pytest.mark.parametrize(
    "expected",
    [
        torch.empty(0),
        torch.tensor(2.0),
        torch.tensor([math.nan, math.inf, 1.0] * 8),
        torch.full((8,), math.inf),
        torch.full((8,), 3e38),
        torch.tensor([True, False] * 8),
        torch.arange(8),
        torch.randn(8).bfloat16(),
        torch.randn(8, dtype=torch.complex64),
    ],
    ids=lambda t: f"{t.dtype}{list(t.shape)}".removeprefix("torch."),
)
def test_impostors_answer_in_the_references_form(name: str, expected: torch.Tensor) -> None:
    before = expected.clone()
    fake = IMPOSTORS[name]([expected], [], None)[0]
    assert (fake.dtype, fake.shape) == (expected.dtype, expected.shape)
    assert torch.equal(torch.nan_to_num(expected), torch.nan_to_num(before))


@pytest.mark.parametrize(
    "expected", [torch.zeros(4096), torch.arange(64), torch.tensor([True] * 64), torch.ones(1)]
)
def test_one_wrong_tile_is_always_wrong(expected: torch.Tensor) -> None:
    assert "one wrong tile" not in survivors(expected)


def test_of_several_outputs_one_is_enough() -> None:
    assert "zeros" not in survivors([torch.zeros(64), torch.randn(64)])
    assert "zeros" in survivors([torch.zeros(64), torch.zeros(3)])
