"""The plan of trials, and variants of hostile or odd inputs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from harness.judge.check import trials
from harness.judge.policy import Policy

pytestmark = pytest.mark.unit

VARIANTS = sorted(set(trials.PLAN))


def varied(inputs: list[Any], variant: str, **domain: Any) -> trials.Varied:
    names = [f"x{i}" for i in range(len(inputs))]
    return trials.varied(inputs, variant, 5, names, domain)


# --- the plan -----------------------------------------------------------------------------------


def test_every_kind_of_input_is_tried() -> None:
    assert len(trials.PLAN) <= Policy().calls
    plan = trials.plan(1, ["eval"], Policy().calls, fold_state=False)
    assert {t.variant for t in plan} == set(trials.PLAN)
    assert plan[0].variant == "nominal" and plan[0].new_state is None


def test_a_seed_gives_a_plan_and_another_seed_another_one() -> None:
    first, again, other = (trials.plan(seed, ["eval", "train"], 14, False) for seed in (1, 1, 2))
    assert first == again
    assert not {t.input_seed for t in first} & {t.input_seed for t in other}


def test_seeds_of_one_plan_tell_nothing_of_each_other() -> None:
    """A worker is told the seed of its generators: it must not give the inputs away."""
    plan = trials.plan(1, ["eval", "train"], 14, False)
    seeds = [s for t in plan for s in (t.variant_seed, t.rng, t.grad_seed)]
    seeds += {t.input_seed for t in plan}
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= t.rng < 2**31 for t in plan)


def test_followers_start_from_the_inputs_of_the_call_before() -> None:
    plan = trials.plan(3, ["eval"], 28, False)
    for before, trial in itertools.pairwise(plan):
        assert (trial.input_seed == before.input_seed) is (trial.variant in trials.FOLLOWERS)


def test_further_modes_get_fewer_calls_and_a_new_state_each() -> None:
    plan = trials.plan(1, ["eval", "train"], 14, False)
    train = [t for t in plan if t.mode == "train"]
    assert len(train) == 7 and train[0].new_state is not None
    assert sum(t.mode == "eval" for t in plan) == 14
    assert len(trials.plan(1, ["eval", "train"], 5, False)) == 5 + 4


def test_a_state_that_may_be_folded_never_changes() -> None:
    plan = trials.plan(1, ["eval", "train"], 14, True)
    assert {t.new_state for t in plan} == {None}
    changed = [t.index for t in trials.plan(1, ["eval"], 14, False) if t.new_state is not None]
    assert set(changed) == trials.STATE_CHANGES


def test_the_call_on_another_stream_has_inputs_of_its_own() -> None:
    plan = trials.plan(1, ["eval"], 14, False)
    other = trials.on_other_stream(1, "eval")
    assert other.input_seed not in {t.input_seed for t in plan}
    assert other.name == "eval/0:nominal"


# --- variants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "x",
    [
        torch.empty(0),
        torch.empty(0, 3),
        torch.tensor(2.0),
        torch.ones(1),
        torch.zeros(4, 4),
        torch.full((3, 3), math.nan),
        torch.tensor([math.inf, 1.0, -math.inf, math.nan] * 4),
        torch.full((8,), 3e38),
        torch.full((8,), 1e-44),
        torch.ones(4, 4).expand(3, 4, 4),
        torch.randn(6, 4).t(),
        torch.ones(8, dtype=torch.float16) * 6e4,
        torch.randn(4, 4, dtype=torch.complex64),
        torch.arange(16),
        torch.tensor([True, False] * 8),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([200, 3], dtype=torch.uint8),
    ],
    ids=lambda x: f"{x.dtype}{list(x.shape)}".removeprefix("torch."),
)
def test_odd_inputs_keep_their_form(x: torch.Tensor, variant: str) -> None:
    before = x.clone()
    found = varied([x], variant)
    (fresh,) = found.inputs
    assert (fresh.dtype, fresh.shape) == (x.dtype, x.shape)
    assert torch.equal(torch.nan_to_num(x), torch.nan_to_num(before)), "the draw itself is kept"
    if x.is_floating_point():
        odd = ~torch.isfinite(x)
        assert bool((~torch.isfinite(fresh))[odd].all()), "what is infinite or NaN stays so"


@pytest.mark.parametrize("variant", ["nominal", "same"])
def test_nominal_inputs_are_the_draw(variant: str) -> None:
    x = torch.randn(8)
    found = varied([x, 3], variant)
    assert found.inputs[0] is x and not found.changed and not found.outside


def test_one_tensor_that_is_given_twice_stays_one_tensor() -> None:
    x = torch.randn(8)
    found = varied([x, [x]], "large")
    assert found.inputs[0] is found.inputs[1][0]


def test_what_did_not_change_is_no_variant() -> None:
    assert not varied([torch.zeros(8)], "large").changed
    assert not varied([3, "text", None], "numbers").changed
    assert not varied([torch.zeros(8)], "large").outside


@pytest.mark.parametrize("value", [True, 3, 0.0, math.inf, math.nan, "text", None])
def test_only_floating_numbers_change(value: Any) -> None:
    (fresh,) = varied([value], "numbers").inputs
    assert fresh is value


def test_numbers_keep_to_their_domain() -> None:
    assert varied([0.8], "numbers").inputs == [1.0]
    assert varied([0.8], "numbers", x0={"max": 0.9}).inputs == [0.9]
    assert varied([0.8], "numbers", x0={"max": 0.8}).inputs == [0.8]


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_keep_to_their_domain(variant: str) -> None:
    x = torch.rand(16, 16)
    limits = {"min": 0.0, "max": 1.0}
    (fresh,) = varied([x], variant, x0=limits).inputs
    assert float(fresh.min()) >= 0.0 and float(fresh.max()) <= 1.0


def test_signs_are_outside_only_where_the_problem_draws_one_sign() -> None:
    assert varied([torch.rand(64) + 0.1], "signs").outside
    assert not varied([torch.randn(64)], "signs").outside
    x = torch.randn(4096)
    assert all(varied([x], v).outside for v in ("large", "small", "shift", "tails"))


def test_edited_inputs_differ_in_a_few_elements_alone() -> None:
    x = torch.randn(1000)
    (fresh,) = varied([x], "edited").inputs
    assert 1 <= int((fresh != x).sum()) <= 5
    zeros = torch.zeros(1000)
    zeros[::2] = torch.randn(500)
    (fresh,) = varied([zeros], "edited").inputs
    assert torch.equal(fresh == 0, zeros == 0), "a pattern of zeros stays"


@pytest.mark.parametrize("variant", ["permuted", "signs", "tails", "edited"])
def test_integers_stay_within_the_values_that_occur(variant: str) -> None:
    x = torch.randint(0, 50, (300,))
    (fresh,) = varied([x], variant).inputs
    assert set(fresh.tolist()) <= set(x.tolist())


@pytest.mark.parametrize("variant", VARIANTS)
def test_strides_are_kept(variant: str) -> None:
    """A transposed input became contiguous in all variants that were scaled elementwise."""
    x = torch.randn(60, 40).t()
    (fresh,) = varied([x], variant).inputs
    assert fresh.stride() == x.stride()
