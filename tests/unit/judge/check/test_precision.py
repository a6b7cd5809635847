"""How large errors are, and which of them need no explanation."""

from __future__ import annotations

import math

import pytest
import torch

from harness.judge.check import precision
from harness.judge.check.precision import Standard, Sums, budget_of, rms_within, slices, stream
from harness.judge.policy import Policy

pytestmark = pytest.mark.unit

POLICY = Policy()
EPS = torch.finfo(torch.float32).eps


def sums_of(
    got: torch.Tensor, reference: torch.Tensor, oracle: torch.Tensor, rtol: float = 0.0
) -> Sums:
    return stream((got, reference, oracle), 0.0, rtol)


def test_figures_are_those_of_all_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "CHUNK", 3)
    oracle = torch.arange(1.0, 9.0, dtype=torch.float64)
    reference, got = oracle.float(), oracle.float()
    got[6] -= 0.5
    reference[1] += 0.25
    found = sums_of(got, reference, oracle)
    assert (found.count, found.unequal, found.worst_at) == (8, 1, 6)
    assert (found.max_error, found.max_reference_error, found.max_value) == (0.5, 0.25, 8.0)
    assert found.max_diff == 0.5
    assert found.error_squares == pytest.approx(0.25)
    assert found.value_squares == pytest.approx(204.0)


def test_the_worst_element_is_the_one_farthest_beyond_its_tolerance() -> None:
    oracle = torch.tensor([100.0, 1.0], dtype=torch.float64)
    got = torch.tensor([100.5, 1.2])
    assert sums_of(got, oracle.float(), oracle).worst_at == 0
    assert sums_of(got, oracle.float(), oracle, rtol=0.01).worst_at == 1


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_elements_that_are_not_finite_do_not_count(odd: float) -> None:
    """Where both sides agree on them they were let pass; they must not hide the others."""
    oracle = torch.tensor([odd, 1.0, 2.0], dtype=torch.float64)
    got = torch.tensor([odd, 1.0, 2.5])
    found = sums_of(got, oracle.float(), oracle)
    assert (found.count, found.worst_at, found.max_error, found.max_value) == (2, 2, 0.5, 2.0)


def test_of_nothing_nothing_is_said() -> None:
    empty = torch.empty(0)
    found = sums_of(empty, empty, empty.double())
    assert (found.count, found.max_error, found.worst) == (0, 0.0, -1.0)


@pytest.mark.parametrize(
    ("dtype", "oracle_precision", "expected"),
    [
        (torch.float32, "fp64", 8 * EPS * 3.0),
        (torch.float32, "itself", 256 * EPS * 3.0),
        (torch.float32, "bf16", 8 * 2.0**-7 * 3.0),
        (torch.float64, "fp64", 8 * 2.0**-52 * 3.0),
        (torch.bfloat16, "fp64", 2 * 2.0**-7 * 3.0),
        (torch.float16, "fp64", 2 * 2.0**-10 * 3.0),
    ],
)
def test_least_budget_follows_the_precision(
    dtype: torch.dtype, oracle_precision: str, expected: float
) -> None:
    standard = Standard(policy=POLICY, oracle_precision=oracle_precision)
    own = precision.PRECISION_OF[dtype]
    assert budget_of(Sums(max_value=3.0), dtype, own, standard) == pytest.approx(expected)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 32.0), (torch.float16, 4.0)])
def test_budget_follows_the_references_own_error(dtype: torch.dtype, factor: float) -> None:
    own = precision.PRECISION_OF[dtype]
    sums = Sums(max_value=1.0, max_reference_error=0.5)
    assert budget_of(sums, dtype, own, Standard(policy=POLICY)) == 0.5 * factor


def test_mean_error_binds_results_in_16_bits_alone() -> None:
    """8 bits of bfloat16 hide inside twice the unit of float16's largest value."""
    far = Sums(count=4, value_squares=4.0, error_squares=4.0)
    near = Sums(count=4, value_squares=4.0, error_squares=4 * 2.0**-22)
    assert rms_within(far, torch.float32, POLICY)
    assert not rms_within(far, torch.float16, POLICY)
    assert rms_within(near, torch.float16, POLICY)
    assert rms_within(Sums(), torch.float16, POLICY)


def test_samples_and_columns_are_those_with_enough_elements() -> None:
    x = torch.arange(24.0).reshape(2, 12) - 20
    rows, columns = slices(x, 2)
    assert rows.tolist() == [20.0, 8.0]
    assert columns.tolist() == [abs(x[:, i]).max() for i in range(12)]
    assert [s.numel() for s in slices(x, 8)] == [2]
    assert slices(x, 13) == []


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 0)])
def test_shapes_without_samples_have_no_slices(shape: tuple[int, ...]) -> None:
    assert slices(torch.ones(shape), 8) == []


def test_least_precise_name_is_the_worst() -> None:
    assert precision.worst_precision(["fp32", "exact", "bf16", "fp16"]) == "bf16"
    assert precision.worst_precision(["fp32", "no such"]) == "fp32"
    assert precision.worst_precision([]) is None
