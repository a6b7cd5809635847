"""Matching the candidate's state with the reference's, and values worth testing with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from harness.judge.reference import state
from harness.judge.reference.state import StateMismatch
from harness.usercode.modules import describe_state

pytestmark = pytest.mark.unit


def entry(name: str, kind: str = "parameter", *shape: int, **changes: Any) -> dict[str, Any]:
    known = {"name": name, "kind": kind, "shape": list(shape), "dtype": "float32", "tie": name}
    return known | changes


def match(ours: Any, theirs: Any, *constants: str, training: bool = False) -> state.Match:
    return state.match(ours, theirs, frozenset(constants), training=training)


WEIGHT, BIAS = entry("weight", "parameter", 3, 2), entry("bias", "parameter", 3)


# --- what a worker claims -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "said"),
    [
        ([], "nothing of the candidate takes the reference's weight"),
        ([{**WEIGHT, "shape": [2, 3]}], "weight is [2, 3], the reference's weight is [3, 2]"),
        ([{**WEIGHT, "shape": [-3, -2]}], "weight is [-3, -2]"),
        ([{**WEIGHT, "shape": []}], "weight is []"),
        ([WEIGHT, BIAS], "nothing of the reference gives the candidate's bias"),
        ([{**WEIGHT, "kind": "buffer"}], "weight is a buffer"),
        ([{**WEIGHT, "kind": "god"}], "weight is a god"),
    ],
)
def test_claims_that_do_not_fit_are_refused_with_both_lists(claimed: Any, said: str) -> None:
    with pytest.raises(StateMismatch) as refused:
        match([WEIGHT], claimed, training=True)
    assert said in str(refused.value)
    assert any("| candidate" in line for line in refused.value.lists)


def test_one_tensor_cannot_stand_for_two_of_the_reference() -> None:
    tied = {**BIAS, "tie": "weight", "shape": [3, 2]}
    with pytest.raises(StateMismatch, match="are one tensor"):
        match([WEIGHT, {**BIAS, "shape": [3, 2]}], [WEIGHT, tied])


def test_a_long_list_is_shown_in_part() -> None:
    claimed = [entry(f"p{i}", "parameter", 9) for i in range(500)]
    with pytest.raises(StateMismatch) as refused:
        match([WEIGHT], claimed)
    assert len(str(refused.value).splitlines()) <= 42


# --- how names are matched ----------------------------------------------------------------------


def test_equal_names_need_no_note() -> None:
    found = match([WEIGHT, BIAS], [BIAS, WEIGHT])
    assert dict(found.source) == {"weight": "weight", "bias": "bias"}
    assert found.notes == () and found.unheld == ()


@pytest.mark.parametrize(
    ("ours", "theirs", "how"),
    [
        ([entry("bn.weight", "parameter", 3)], [entry("weight", "parameter", 3)], "suffix"),
        ([entry("a", "parameter", 3)], [entry("b", "parameter", 3)], "position"),
    ],
)
def test_other_names_are_matched_and_noted(ours: Any, theirs: Any, how: str) -> None:
    found = match(ours, theirs)
    assert list(found.source.values()) == [ours[0]["name"]]
    assert f"(by {how})" in found.notes[0]


def test_an_ambiguous_suffix_is_left_to_the_order() -> None:
    ours = [entry("a.weight", "parameter", 3), entry("b.weight", "parameter", 3)]
    theirs = [entry("x.weight", "parameter", 3), entry("y.weight", "parameter", 3)]
    found = match(ours, theirs)
    assert dict(found.source) == {"x.weight": "a.weight", "y.weight": "b.weight"}
    assert all("by position" in note for note in found.notes)


def test_positions_need_as_many_tensors_of_each_form() -> None:
    ours = [entry("a", "parameter", 3), entry("b", "parameter", 3)]
    with pytest.raises(StateMismatch, match="a, b"):
        match(ours, [entry("x", "parameter", 3)])


def test_ties_count_as_one_tensor() -> None:
    tied = entry("head", "parameter", 3, 2, tie="weight")
    found = match([WEIGHT, tied], [entry("head", "parameter", 3, 2)])
    assert dict(found.source) == {"head": "weight"}


@pytest.mark.parametrize("training", [False, True])
def test_a_parameter_may_be_held_as_a_buffer_only_without_gradients(training: bool) -> None:
    held = {**WEIGHT, "kind": "buffer"}
    if training:
        with pytest.raises(StateMismatch, match="is a buffer"):
            match([WEIGHT], [held], training=True)
    else:
        assert match([WEIGHT], [held]).source == {"weight": "weight"}
    with pytest.raises(StateMismatch, match="is a parameter"):
        match([held], [WEIGHT], training=training)


def test_only_constants_need_not_be_held() -> None:
    mask = entry("mask", "buffer", 4)
    found = match([WEIGHT, mask], [WEIGHT], "mask")
    assert found.unheld == ("mask",) and "constant" in found.notes[0]
    with pytest.raises(StateMismatch, match="mask"):
        match([WEIGHT, mask], [WEIGHT])


def test_a_buffer_of_the_candidates_own_is_noted() -> None:
    found = match([WEIGHT], [WEIGHT, entry("scratch", "buffer", 100)])
    assert "scratch: a buffer of the candidate's own" in found.notes


def test_modules_describe_what_is_matched() -> None:
    described = describe_state(nn.BatchNorm2d(3))
    assert set(match(described, described).source) == {d["name"] for d in described}


# --- new values ---------------------------------------------------------------------------------


def perturbed(value: torch.Tensor, kind: str = "parameter", boldness: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return state.perturbed({"t": value}, {"t": kind}, generator, boldness)["t"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.tensor([3, 4]), "buffer"),
        (torch.tensor([True, False]), "buffer"),
        (torch.tensor([0.0, 1.0, 0.0]), "buffer"),
        (torch.tensor([-math.inf, 0.0]), "buffer"),
        (torch.tensor([math.nan, 1.0]), "buffer"),
        (torch.empty(0), "buffer"),
        (torch.arange(4), "parameter"),
    ],
)
def test_constants_stay(value: torch.Tensor, kind: str) -> None:
    fresh = perturbed(value, kind)
    assert torch.equal(torch.nan_to_num(fresh), torch.nan_to_num(value))
    assert fresh.data_ptr() != value.data_ptr() or not value.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("fill", [0.0, 1.0, -2.0, 1e-30, 1e30])
def test_weights_change_and_keep_their_form(fill: float, dtype: torch.dtype) -> None:
    value = torch.full((4, 8), fill).to(dtype)
    fresh = perturbed(value)
    assert (fresh.dtype, fresh.shape) == (value.dtype, value.shape)
    assert not torch.equal(fresh, value) and bool(torch.isfinite(fresh).all())


def test_what_was_positive_may_be_a_variance() -> None:
    variance = torch.rand(512) + 0.1
    assert bool((perturbed(variance, "buffer") > 0).all())
    assert bool((perturbed(variance, "parameter", boldness=1) > 0).all())
    assert bool((perturbed(variance, "parameter") < 0).any()), "a weight may change its sign"


def test_without_boldness_nothing_changes() -> None:
    value = torch.randn(8)
    assert torch.equal(perturbed(value, boldness=0), value)


def test_quantised_weights_change_places() -> None:
    value = torch.randint(-128, 127, (64, 8), dtype=torch.int8)
    fresh = perturbed(value, "buffer")
    assert not torch.equal(fresh, value)
    assert torch.equal(fresh.flatten().sort().values, value.flatten().sort().values)


def test_one_seed_gives_one_state() -> None:
    value = torch.randn(8)
    assert torch.equal(perturbed(value), perturbed(value))
