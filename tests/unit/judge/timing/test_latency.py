"""Rounds of isolated calls: how many, over what, and what is subtracted."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.domain import CANDIDATE, REFERENCE, Status
from harness.judge.timing.batches import BaselineFailed
from harness.judge.timing.clock import ClockPolicy
from harness.judge.timing.latency import IsolatedRounds
from harness.judge.timing.overlap import Latency
from harness.judge.workers.peer_memory import Layout
from harness.judge.workers.remote import WorkerFailed

POLICY = ClockPolicy()
WAY_MS = 0.03


def figures(reference_ms: float, candidate_ms: float = 0.01) -> dict[str, float]:
    return {REFERENCE: reference_ms, CANDIDATE: candidate_ms}


class FakeBatches:
    """Every call takes what it is said to: no process runs."""

    def __init__(self, alone_ms: dict[str, float], *, on_gpu: bool = False) -> None:
        self.alone_ms = alone_ms
        self.on_gpu = on_gpu
        self.alike = False
        self.timed_workers = {role: SimpleNamespace(layout=Layout()) for role in alone_ms}
        self.rounds: list[tuple[str, list[int], int]] = []
        self.of_one: list[str] = []
        self.checks = 0

    def run(self, role: str, calls: int, *, logged: bool) -> float:
        assert self.alike and calls == 1 and not logged
        self.of_one.append(role)
        return self.alone_ms[role]

    def run_alone(
        self, role: str, given: list[Any], first: int, keep: int, *, empty: bool = False
    ) -> list[float]:
        assert self.alike
        name = "way" if empty else role
        assert not empty or role == REFERENCE, "who is not believed does not know"
        self.rounds.append((name, [int(h.image[0]) for h in given], first))
        return [WAY_MS if empty else self.alone_ms[role]] * (len(given) - first)

    def check_pending(self) -> None:
        self.checks += 1


def single(
    batches: Any, *, draw_s: float = 1e-4, slot_bytes: int = 64, **more: Any
) -> IsolatedRounds:
    def fresh(number: int) -> tuple[torch.Tensor, Any]:
        return torch.tensor([number]), ([], None)

    stage: Any = SimpleNamespace(draw_s=draw_s, slot_bytes=slot_bytes, fresh=fresh)
    policy = dataclasses.replace(POLICY, **more)
    return IsolatedRounds(batches, stage, policy, random.Random(1), no_baseline, draws=False)


def never(latency: Latency) -> bool:
    return False


def no_baseline(role: str, why: str) -> None:
    raise AssertionError(f"{role} failed: {why}")


def test_way_over_the_mailbox_is_what_it_takes_without_a_call() -> None:
    batches = FakeBatches({REFERENCE: 0.05, CANDIDATE: 0.045})
    latency = single(batches).latency(figures(0.02), 1.0, never)
    assert latency.own_ms()[REFERENCE] == pytest.approx([0.02] * POLICY.isolated_rounds)
    assert latency.own_ms()[CANDIDATE] == pytest.approx([0.015] * POLICY.isolated_rounds)
    assert set(latency.taken_ms) == {REFERENCE, CANDIDATE}
    assert not batches.of_one and not batches.alike
    assert batches.checks == POLICY.isolated_rounds


@pytest.mark.parametrize(("reference_ms", "slot_bytes"), [(0.5, 64), (0.02, 17 << 20)])
def test_long_or_large_calls_go_by_batches_of_one(reference_ms: float, slot_bytes: int) -> None:
    batches = FakeBatches({REFERENCE: 1.6, CANDIDATE: 1.5})
    latency = single(batches, slot_bytes=slot_bytes).latency(figures(reference_ms), 1.0, never)
    assert len(batches.of_one) == 2 * POLICY.latency_batches and not batches.rounds
    assert latency.own_ms()[CANDIDATE] == pytest.approx([0.5] * POLICY.latency_batches)
    assert (latency.part, latency.least_ms) == (POLICY.overlap_part, POLICY.overlap_ms)


def test_what_the_reference_gives_decides_no_claim_of_the_candidate() -> None:
    """One that claims large outputs is not let off with batches of one."""
    batches = FakeBatches({REFERENCE: 0.05, CANDIDATE: 0.05})
    form = SimpleNamespace(span_bytes=1 << 40)
    batches.timed_workers[CANDIDATE].layout = Layout(forms=(form,))  # type: ignore[arg-type]
    single(batches).latency(figures(0.02), 1.0, never)
    assert batches.rounds


def test_rounds_end_when_they_tell_and_not_too_early() -> None:
    asked: list[int] = []

    def tells(latency: Latency) -> bool:
        assert latency.sharp
        asked.append(len(latency.taken_ms[CANDIDATE]))
        return len(asked) == 3

    batches = FakeBatches({REFERENCE: 0.05, CANDIDATE: 0.045})
    latency = single(batches).latency(figures(0.02), 1.0, tells)
    assert asked == [15, 18, 22]
    assert len(latency.taken_ms[REFERENCE]) == 22


def test_both_roles_get_the_same_inputs_and_each_counts_once() -> None:
    batches = FakeBatches({REFERENCE: 0.05, CANDIDATE: 0.05})
    single(batches).latency(figures(0.02), 1.0, never)
    counted: list[int] = []
    rounds = batches.rounds
    for one, other, way in zip(rounds[::3], rounds[1::3], rounds[2::3], strict=True):
        assert {one[0], other[0]} == {REFERENCE, CANDIDATE} and one[1:] == other[1:] == way[1:]
        assert way[0] == "way"
        counted += one[1][one[2] :]
    assert len(counted) == len(set(counted)) >= POLICY.isolated_rounds * POLICY.isolated_calls
    assert {role for role, _, _ in rounds[::3]} == {REFERENCE, CANDIDATE}, "random order"


def test_slow_draws_make_short_and_few_rounds() -> None:
    batches = FakeBatches({REFERENCE: 0.05, CANDIDATE: 0.05})
    single(batches, draw_s=0.05, isolated_s=0.0).latency(figures(0.02), 1.0, never)
    assert len(batches.rounds) == 3 * POLICY.latency_least
    drawn = {number for _, numbers, _ in batches.rounds for number in numbers}
    assert len(drawn) <= 4 * (POLICY.latency_least + 1)


def test_a_slow_candidate_makes_short_and_few_rounds() -> None:
    """At 0.2 s a call, fifteen rounds of fifty calls would take minutes, without a sign of life."""
    batches = FakeBatches({REFERENCE: 0.05, CANDIDATE: 200.0})
    single(batches, isolated_s=0.0).latency(figures(0.02, 200.0), 1.0, never)
    assert sum(len(numbers) for _, numbers, _ in batches.rounds) <= 8 * 3 * POLICY.latency_least


def test_on_a_gpu_more_is_allowed() -> None:
    batches = FakeBatches({REFERENCE: 0.05, CANDIDATE: 0.05}, on_gpu=True)
    latency = single(batches).latency(figures(0.02), 1.0, never)
    assert latency.hides
    assert (latency.part, latency.least_ms) == (POLICY.isolated_part, POLICY.isolated_gpu_ms)


@pytest.mark.parametrize("reference_ms", [0.02, 2.0])
def test_a_baseline_that_cannot_be_suspended_does_not_end_isolated_calls(
    reference_ms: float,
) -> None:
    failed: list[str] = []

    class Restless(FakeBatches):
        def check(self) -> None:
            if not failed:
                restless = WorkerFailed(Status.TAMPERED, "it does not stand still")
                raise BaselineFailed("torch.compile", restless)

        def run(self, role: str, calls: int, *, logged: bool) -> float:
            self.check()
            return super().run(role, calls, logged=logged)

        def run_alone(self, role: str, *words: Any, **named: Any) -> list[float]:
            self.check()
            return super().run_alone(role, *words, **named)

    calls = single(Restless({REFERENCE: 3.0, CANDIDATE: 3.0}))
    calls._fail = lambda role, why: failed.append(f"{role}: {why}")
    assert calls.latency(figures(reference_ms), 1.0, never).taken_ms[REFERENCE][0] == 3.0
    assert failed == ["torch.compile: it does not stand still"]
