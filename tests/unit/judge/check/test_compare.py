"""Comparing an answer with the reference: its form, its exact values, its rules for floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.domain import HarnessError, Status
from harness.ipc import Untransferable
from harness.judge.check import compare
from harness.judge.check.fingerprint import Match
from harness.judge.check.precision import Standard
from harness.judge.check.structure import non_finite, structure, unravel
from harness.judge.policy import Policy

pytestmark = pytest.mark.unit

TWO = torch.ones(2)
NAN, INF = math.nan, math.inf


def compared(got: Any, reference: Any, oracle: Any = None, **more: Any) -> compare.Compared:
    standard = Standard(policy=Policy(), **more.pop("standard", {}))
    oracle = reference.double() if oracle is None else oracle
    return compare.tensor(
        got,
        reference,
        oracle,
        standard,
        "forward/0:nominal",
        "output",
        more.pop("by", None),
        **more,
    )


def status(found: compare.Compared) -> Status:
    return found.mismatch.status if found.mismatch else Status.PASSED


class Evidence:
    """Stands in for what looks into an error: it answers what the test says.

    Args:
        noise: how far honest roundings move each element; None is unknown.
        match: the arithmetic that explains the error.
        allowed: the change that a declared precision makes.
        products: the arithmetic of products that explains an error within its budget.
        free: whether indices are in an order that a sort leaves free.
    """

    def __init__(
        self,
        noise: float | None = 1e-9,
        match: Match | None = None,
        allowed: float | None = None,
        products: Match | None = None,
        free: bool = False,
    ) -> None:
        self._noise, self._match, self._allowed = noise, match, allowed
        self._products, self._free = products, free
        self.asked: list[str] = []

    def noise(self, what: str, due: str) -> torch.Tensor | None:
        self.asked.append("noise")
        return None if self._noise is None else torch.full((64,), self._noise).double()

    def match(self, what: str, error: torch.Tensor, due: str) -> Match | None:
        return self._match

    def match_of_products(self, what: str, error: torch.Tensor, due: str) -> Match | None:
        return self._products

    def allowed(self, what: str, precision: str) -> torch.Tensor | None:
        return None if self._allowed is None else torch.full((64,), self._allowed).double()

    def sampled(self, what: str, values: torch.Tensor) -> torch.Tensor:
        return values

    def is_free_order(self, got: torch.Tensor, expected: torch.Tensor) -> bool:
        return self._free


def arithmetic(precision: str, *, in_part: bool = False) -> Match:
    return Match(precision=precision, text=precision, correlation=1.0, in_part=in_part)


# --- form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "expected", "wanted", "said"),
    [
        (Untransferable("set"), TWO, Status.WRONG_STRUCTURE, "output is a set, not a plain"),
        (Untransferable("set"), [TWO], Status.WRONG_STRUCTURE, "is a set"),
        (None, TWO, Status.WRONG_STRUCTURE, "is None, the reference returns a tensor"),
        ([TWO], TWO, Status.WRONG_STRUCTURE, "is a list"),
        (TWO, [TWO], Status.WRONG_STRUCTURE, "is a tensor"),
        (TWO, None, Status.WRONG_STRUCTURE, "is a tensor"),
        ((TWO,), [TWO], Status.WRONG_STRUCTURE, "is a tuple"),
        ([TWO, TWO], [TWO], Status.WRONG_STRUCTURE, "has 2 entries"),
        ({"b": TWO}, {"a": TWO}, Status.WRONG_STRUCTURE, "has keys ['b']"),
        ({1: TWO, "a": TWO}, {"a": TWO}, Status.WRONG_STRUCTURE, "has keys ['1', 'a']"),
        (torch.ones(3), TWO, Status.WRONG_SHAPE, "shape [3], expected [2]"),
        (torch.ones(2, 1), TWO, Status.WRONG_SHAPE, "shape [2, 1]"),
        (torch.ones(0), TWO, Status.WRONG_SHAPE, "shape [0]"),
        (TWO.double(), TWO, Status.WRONG_DTYPE, "is torch.float64"),
        (TWO.bool(), TWO, Status.WRONG_DTYPE, "is torch.bool"),
        ({"a": [TWO, 1.5]}, {"a": [TWO, 1.0]}, Status.WRONG_VALUES, "output['a'][1] is 1.5"),
        ([1], [True], Status.WRONG_STRUCTURE, "output[0] is a int"),
        ([2], [3], Status.WRONG_VALUES, "output[0] is 2, expected 3"),
        ([NAN], [1.0], Status.WRONG_VALUES, "is nan"),
        ([INF], [-INF], Status.WRONG_VALUES, "is inf"),
        (["a"], ["b"], Status.WRONG_VALUES, "is 'a'"),
    ],
)
def test_form_that_differs_is_named(got: Any, expected: Any, wanted: Status, said: str) -> None:
    found = structure(got, expected)
    assert found is not None and found.status is wanted
    assert said in found.message


@pytest.mark.parametrize(
    "value",
    [TWO, [TWO, (TWO, None)], {"a": 1, 2: TWO}, 1.0, NAN, INF, "text", [], torch.ones(0, 3)],
)
def test_a_value_has_its_own_form(value: Any) -> None:
    assert structure(value, value) is None


def test_values_of_tensors_and_strides_are_no_part_of_the_form() -> None:
    assert structure(torch.zeros(3, 2), torch.ones(2, 3).t()) is None
    assert structure(1.00001, 1.0) is None


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_positions_become_indices(shape: tuple[int, ...]) -> None:
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    for at in range(numbers.numel()):
        assert int(numbers[unravel(at, shape)]) == at


# --- not finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_refused(value: float, dtype: torch.dtype) -> None:
    right = torch.ones(3, 4, dtype=dtype)
    got = right.clone()
    got[1, 2] = value
    found = compared(got, right)
    assert status(found) is Status.NOT_FINITE
    assert found.mismatch is not None and found.mismatch.index == (1, 2)
    assert found.mismatch.wrong is not None and int(found.mismatch.wrong.sum()) == 1


@pytest.mark.parametrize(("got", "expected"), [(1.0, NAN), (INF, NAN), (-INF, INF), (0.0, -INF)])
def test_nan_and_infinities_of_the_reference_are_no_wildcards(got: float, expected: float) -> None:
    found = compared(torch.tensor([got]), torch.tensor([expected]))
    assert status(found) is Status.NOT_FINITE
    assert status(compared(torch.tensor([expected]), torch.tensor([expected]))) is Status.PASSED


def test_where_reference_and_oracle_disagree_both_are_allowed() -> None:
    """exp(90) is infinite in float32 and not in float64."""
    reference, oracle = torch.tensor([INF, 1.0]), torch.tensor([1e39, 1.0], dtype=torch.float64)
    assert status(compared(torch.tensor([INF, 1.0]), reference, oracle)) is Status.PASSED
    assert non_finite(torch.tensor([3e38, 1.0]), reference, oracle, "output") is None


def test_all_nan_is_refused_once_for_all() -> None:
    found = compared(torch.full((7,), NAN), torch.ones(7))
    assert found.mismatch is not None and "(7 such elements)" in found.mismatch.message
    assert found.check.error is None


def test_a_complex_part_that_is_not_finite_is_refused() -> None:
    right = torch.ones(2, dtype=torch.complex64)
    got = right.clone()
    got[1] = complex(1.0, NAN)
    assert status(compared(got, right, right.to(torch.complex128))) is Status.NOT_FINITE


# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_must_be_equal(dtype: torch.dtype) -> None:
    right = torch.tensor([0, 1, 1, 0]).to(dtype)
    got = right.clone()
    got[2] = 0
    assert status(compared(right, right, right)) is Status.PASSED
    found = compared(got, right, right)
    assert status(found) is Status.WRONG_VALUES
    assert found.mismatch is not None and "output[2] is" in found.mismatch.message
    assert "1 of 4 differ" in found.mismatch.message


def test_integers_may_follow_the_oracle_where_it_decides_otherwise() -> None:
    reference, oracle = torch.tensor([3, 5]), torch.tensor([3, 6])
    assert status(compared(torch.tensor([3, 6]), reference, oracle)) is Status.PASSED
    assert status(compared(torch.tensor([3, 7]), reference, oracle)) is Status.WRONG_VALUES


def test_an_order_that_a_sort_leaves_free_is_right() -> None:
    reference, got = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert status(compared(got, reference, reference, by=Evidence(free=True))) is Status.PASSED
    assert status(compared(got, reference, reference, by=Evidence())) is Status.WRONG_VALUES


# --- floats -------------------------------------------------------------------------------------

ORACLE = torch.linspace(1.0, 2.0, 64, dtype=torch.float64)
RIGHT = ORACLE.float()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), ()])
def test_shapes_without_many_elements(shape: tuple[int, ...]) -> None:
    right = torch.ones(shape)
    found = compared(right.clone(), right)
    assert status(found) is Status.PASSED and found.check.precision == "exact"


def test_shapes_that_differ_are_the_judges_own_fault() -> None:
    with pytest.raises(HarnessError, match="comparing shapes"):
        compared(torch.ones(3), torch.ones(2))


def test_strides_say_nothing() -> None:
    right = torch.randn(6, 8)
    for got in (right.t().contiguous().t(), right.clone(memory_format=torch.contiguous_format)):
        assert status(compared(got, right)) is Status.PASSED
    assert status(compared(right[:1].expand(6, 8), right)) is not Status.PASSED


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1e20, 1e38])
def test_huge_and_tiny_values(size: float) -> None:
    right = (ORACLE * size).float()
    assert status(compared(right.clone(), right, ORACLE * size)) is Status.PASSED
    if size > 1:
        assert status(compared(right * 0.5, right, ORACLE * size)) is Status.WRONG_VALUES


def test_an_error_of_the_references_own_size_needs_no_look() -> None:
    evidence = Evidence()
    found = compared(RIGHT * (1 + 4e-7), RIGHT, ORACLE, by=evidence)
    assert status(found) is Status.PASSED and found.check.precision == "fp32"
    assert evidence.asked == []


def test_beyond_the_tolerance_is_wrong_and_names_the_worst_element() -> None:
    got = RIGHT.clone()
    got[7] += 0.5
    got[9] += 0.1
    found = compared(got, RIGHT, ORACLE)
    assert status(found) is Status.WRONG_VALUES
    assert found.mismatch is not None and found.mismatch.index == (7,)
    assert found.mismatch.wrong is not None
    assert found.mismatch.wrong.nonzero().flatten().tolist() == [7, 9]


def test_a_pairs_own_tolerance_counts() -> None:
    got = RIGHT + 0.01
    assert status(compared(got, RIGHT, ORACLE)) is Status.WRONG_VALUES
    loose = {"atol": 0.1, "rtol": 0.0}
    assert status(compared(got, RIGHT, ORACLE, standard=loose)) is Status.PRECISION_LOST


NEAR = RIGHT * (1 + 3e-5)
"""Within the tolerance, and far beyond the reference's own error."""


@pytest.mark.parametrize(
    ("evidence", "wanted", "said"),
    [
        (None, Status.PRECISION_LOST, "far beyond the reference's own"),
        (Evidence(noise=None), Status.PRECISION_LOST, "far beyond the reference's own"),
        (Evidence(match=arithmetic("tf32")), Status.PRECISION_LOST, "computed with tf32"),
        (Evidence(match=arithmetic("tanh")), Status.PRECISION_LOST, "computed with tanh"),
        (Evidence(noise=1e-9), Status.PRECISION_LOST, "no order of its sums"),
        (Evidence(noise=1e-5), Status.PASSED, ""),
    ],
)
def test_an_error_beyond_the_budget_needs_an_explanation(
    evidence: Evidence | None, wanted: Status, said: str
) -> None:
    found = compared(NEAR, RIGHT, ORACLE, by=evidence)
    assert status(found) is wanted
    assert said in (found.mismatch.message if found.mismatch else "")
    assert bool(found.warning) is (wanted is Status.PASSED)


def test_tanh_beyond_the_tolerance_is_another_function() -> None:
    far = RIGHT * 1.01
    found = compared(far, RIGHT, ORACLE, by=Evidence(match=arithmetic("tanh")))
    assert status(found) is Status.WRONG_VALUES
    found = compared(far, RIGHT, ORACLE, by=Evidence(match=arithmetic("tf32")))
    assert status(found) is Status.PRECISION_LOST


def test_a_match_in_part_is_no_proof_where_the_oracle_rounds_itself() -> None:
    evidence = Evidence(noise=1e-5, match=arithmetic("tf32", in_part=True))
    assert status(compared(NEAR, RIGHT, ORACLE, by=evidence)) is Status.PRECISION_LOST
    rounds = {"oracle_precision": "bf16"}
    found = compared(RIGHT * 1.3, RIGHT, ORACLE, by=evidence, standard=rounds)
    assert status(found) is Status.WRONG_VALUES


def test_stored_in_fewer_bits_is_refused_however_the_error_is_explained() -> None:
    stored = RIGHT.bfloat16().float()
    loose = {"atol": 1.0}
    found = compared(stored, RIGHT, ORACLE, by=Evidence(noise=1.0), standard=loose)
    assert status(found) is Status.PRECISION_LOST
    assert found.mismatch is not None and "stored in fewer bits" in found.mismatch.message
    granted = {"atol": 1.0, "precision": "bf16"}
    found = compared(stored, RIGHT, ORACLE, by=Evidence(allowed=1e-2), standard=granted)
    assert status(found) is Status.PASSED


@pytest.mark.parametrize(
    ("match", "allowed", "wanted"),
    [
        ("tf32", 1e-3, Status.PASSED),
        ("bf16", 1e-3, Status.PRECISION_LOST),
        (None, 1e-3, Status.PASSED),
        (None, 1e-9, Status.PRECISION_LOST),
        (None, None, Status.PRECISION_LOST),
    ],
)
def test_a_declared_precision_allows_what_it_changes_and_nothing_coarser(
    match: str | None, allowed: float | None, wanted: Status
) -> None:
    evidence = Evidence(match=arithmetic(match) if match else None, allowed=allowed)
    tf32 = {"precision": "tf32"}
    assert status(compared(NEAR, RIGHT, ORACLE, by=evidence, standard=tf32)) is wanted


def test_products_in_fewer_bits_are_found_within_the_budget_only_if_asked_for() -> None:
    evidence = Evidence(products=arithmetic("tf32"))
    assert status(compared(RIGHT, RIGHT, ORACLE, by=evidence)) is Status.PASSED
    found = compared(RIGHT, RIGHT, ORACLE, by=evidence, unasked=True)
    assert status(found) is Status.PRECISION_LOST
    granted = {"precision": "tf32"}
    found = compared(RIGHT, RIGHT, ORACLE, by=evidence, unasked=True, standard=granted)
    assert status(found) is Status.PASSED


def test_outside_the_problems_inputs_only_another_function_is_refused() -> None:
    """Half of float32's digits may be lost there: 4096 roundings, and a sixteenth of the result."""
    noise = Evidence(noise=1e-5)
    found = compared(RIGHT * 1.01, RIGHT, ORACLE, by=noise, outside=True)
    assert status(found) is Status.PASSED and "does not draw" in found.warning
    assert status(compared(RIGHT * 1.01, RIGHT, ORACLE, by=noise)) is Status.WRONG_VALUES
    found = compared(RIGHT * 1.2, RIGHT, ORACLE, by=noise, outside=True)
    assert status(found) is Status.WRONG_VALUES


@pytest.mark.parametrize("cut", [lambda t: t[0], lambda t: t[:, 3]])
def test_small_samples_and_columns_have_bounds_of_their_own(
    cut: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """1e-7 is nothing beside 1, and all of a sample of 1e-6."""
    oracle = torch.rand(16, 16, dtype=torch.float64) + 1.0
    cut(oracle).mul_(1e-6)
    reference = oracle.float()
    got = reference.clone()
    cut(got).add_(1e-7)
    assert status(compared(reference, reference, oracle)) is Status.PASSED
    assert status(compared(got, reference, oracle)) is Status.PRECISION_LOST


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_in_16_bits_are_judged_by_their_own_rounding(dtype: torch.dtype) -> None:
    oracle = torch.rand(64, dtype=torch.float64) + 1.0
    reference = oracle.to(dtype)
    step = torch.finfo(dtype).eps
    assert status(compared(reference, reference, oracle)) is Status.PASSED
    coarse = ((oracle / (8 * step)).round() * 8 * step).to(dtype)
    found = compared(coarse, reference, oracle, by=Evidence(noise=1.0), standard={"atol": 1.0})
    assert status(found) is Status.PRECISION_LOST
