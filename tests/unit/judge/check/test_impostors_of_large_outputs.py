"""Impostors of large outputs are struck out by a sample, and no honest answer is."""

from __future__ import annotations

import pytest
import torch

from harness.judge.check import compare, impostors
from harness.judge.check.precision import Standard
from harness.judge.policy import Policy

COUNT = 1 << 14


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the tensors that are compared, as they are; a sample has 256 to 511."""
    seen: list[int] = []
    original = compare.tensor

    def tensor(got, *more):
        seen.append(got.numel())
        return original(got, *more)

    monkeypatch.setattr(compare, "tensor", tensor)
    monkeypatch.setattr("harness.judge.check.impostors._SAMPLE", 256)
    return seen


def standard(precision: str | None = None) -> Standard:
    return Standard(policy=Policy(), precision=precision)


def strike_out(output: torch.Tensor, inputs: torch.Tensor, held_to: Standard) -> set[str]:
    survivors = set(impostors.IMPOSTORS)
    impostors.expose(
        survivors, output, output.double(), [inputs], None, held_to, "forward/0:nominal"
    )
    return survivors


def test_most_impostors_are_struck_out_without_reading_everything(compared: list[int]) -> None:
    torch.manual_seed(1)
    x = torch.randn(COUNT)
    assert strike_out(torch.exp(x), x, standard()) == {"the previous output"}
    whole = [n for n in compared if n == COUNT]
    assert len(compared) - len(whole) == 5
    assert len(whole) == 1  # the bfloat16 downcast is near in every element


def test_impostor_that_is_right_survives_the_sample(compared: list[int]) -> None:
    zeros = torch.zeros(COUNT)
    assert "zeros" in strike_out(zeros, torch.randn(COUNT), standard())
    assert COUNT in compared


def test_impostor_that_errs_outside_the_sample_is_compared_whole(compared: list[int]) -> None:
    output = torch.zeros(COUNT)
    output[1] = 1.0
    assert "zeros" not in strike_out(output, torch.zeros(COUNT), standard())


def test_declared_reduced_precision_is_compared_whole(compared: list[int]) -> None:
    """Its slack follows the largest element of all."""
    x = torch.randn(COUNT)
    strike_out(torch.exp(x), x, standard("bf16"))
    assert set(compared) == {COUNT}


def test_small_slips_in_a_sample_do_not_decide(compared: list[int]) -> None:
    """Beside an output of 1e6 an error of 0.01 may be rounding: only the whole tensor tells."""
    output = torch.ones(COUNT)
    near = output + 0.01
    assert not impostors.is_grossly_wrong(near, output, output.double(), standard())
    assert impostors.is_grossly_wrong(output + 0.2, output, output.double(), standard())


def test_integers_and_infinities_are_exact_in_a_sample(compared: list[int]) -> None:
    numbers = torch.arange(COUNT)
    assert impostors.is_grossly_wrong(numbers + 1, numbers, numbers, standard())
    endless = torch.full((COUNT,), torch.inf)
    assert impostors.is_grossly_wrong(torch.ones(COUNT), endless, endless.double(), standard())
