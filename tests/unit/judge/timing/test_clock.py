"""The rules of the clock, each proved with times that the test makes up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from harness.domain import SpeedOutcome
from harness.judge.timing import clock
from harness.judge.timing.clock import (
    AGAIN,
    CANDIDATE,
    CANDIDATE_AGAIN,
    REFERENCE,
    Blocks,
    ClockPolicy,
)

ROLES = (REFERENCE, CANDIDATE)
POLICY = ClockPolicy(cap_s=10.0, min_blocks=4, max_blocks=50)


class Machine:
    """A device on which batches take made-up times, and the time that goes by meanwhile."""

    def __init__(self, times_ms: dict[str, float], noise: float = 0.0, seed: int = 1) -> None:
        self.times_ms = times_ms
        self.noise = noise
        self.now_s = 0.0
        self.order: list[str] = []
        self._random = random.Random(seed)

    def run(self, role: str) -> float:
        taken = self.times_ms[role] * (1 + self.noise * self._random.gauss(0, 1))
        self.now_s += taken / 1e3
        self.order.append(role)
        return taken

    def measure(self, policy: ClockPolicy = POLICY, **changes: Callable[[], Any]) -> Blocks:
        return clock.measure(
            self.run,
            ROLES,
            policy,
            random.Random(7),
            now=lambda: self.now_s,
            **changes,
        )


def said(blocks: Blocks, policy: ClockPolicy = POLICY) -> SpeedOutcome:
    _, low, high = blocks.ratio(REFERENCE, CANDIDATE)
    return clock.outcome(low, high, clock.noise_floor(blocks, policy), policy)


def test_blocks_are_paired_and_their_order_is_random() -> None:
    machine = Machine({REFERENCE: 10.0, CANDIDATE: 5.0}, noise=0.1)
    blocks = machine.measure()
    rounds = [tuple(machine.order[i : i + 4]) for i in range(0, len(machine.order), 4)]
    assert all(sorted(r) == sorted(2 * ROLES) for r in rounds)
    assert len(set(rounds)) > 1
    assert {len(times) for times in blocks.ms.values()} == {len(rounds)}


def test_quiet_machine_stops_at_the_least_number_of_blocks() -> None:
    blocks = Machine({REFERENCE: 10.0, CANDIDATE: 5.0}, noise=0.0005).measure()
    assert len(blocks.ms[CANDIDATE]) == POLICY.min_blocks
    assert not blocks.capped
    assert said(blocks) is SpeedOutcome.FASTER


def test_noisy_host_gets_more_blocks_and_no_verdict_it_does_not_deserve() -> None:
    machine = Machine({REFERENCE: 10.0, CANDIDATE: 9.9}, noise=0.15)
    blocks = machine.measure()
    assert len(blocks.ms[CANDIDATE]) == POLICY.max_blocks
    assert blocks.capped
    assert said(blocks) is SpeedOutcome.UNDECIDED


def test_cap_ends_the_blocks_and_is_reported() -> None:
    machine = Machine({REFERENCE: 4000.0, CANDIDATE: 2000.0}, noise=0.2)
    blocks = machine.measure()
    assert blocks.capped
    assert machine.now_s < POLICY.cap_s + 2 * 12


@pytest.mark.parametrize(
    ("candidate_ms", "outcome"),
    [(5.0, SpeedOutcome.FASTER), (10.0, SpeedOutcome.SAME), (11.0, SpeedOutcome.SLOWER)],
)
def test_outcome_follows_the_interval(candidate_ms: float, outcome: SpeedOutcome) -> None:
    assert said(Machine({REFERENCE: 10.0, CANDIDATE: candidate_ms}, 0.001).measure()) is outcome


def test_reference_against_itself_is_never_faster_or_slower() -> None:
    for seed in range(20):
        machine = Machine({REFERENCE: 10.0, CANDIDATE: 10.0}, noise=0.01, seed=seed)
        assert said(machine.measure()) in (SpeedOutcome.SAME, SpeedOutcome.UNDECIDED)


def test_noise_floor_is_the_reference_against_itself() -> None:
    steady = [10.0, 10.0, 10.0, 10.0]
    blocks = Blocks(ms={REFERENCE: steady, AGAIN: [10.4] * 4, CANDIDATE: [10.1] * 4})
    assert clock.noise_floor(blocks, POLICY) == pytest.approx(1 - 10 / 10.4)
    blocks.ms[AGAIN] = steady
    assert clock.noise_floor(blocks, POLICY) == POLICY.least_floor


def test_floor_of_short_calls_is_what_processes_differ_by() -> None:
    """A reference of 10 us was SLOWER than its own copy, by 3 % and a narrow interval."""
    times = {REFERENCE: [0.010] * 4, AGAIN: [0.010] * 4, CANDIDATE: [0.0102] * 4}
    assert clock.noise_floor(Blocks(ms=times, short=True), POLICY) == POLICY.short_floor
    assert said(Blocks(ms=times, short=True)) is SpeedOutcome.SAME
    assert clock.noise_floor(Blocks(ms=times), POLICY) == POLICY.least_floor
    assert said(Blocks(ms=times)) is SpeedOutcome.SLOWER


def test_same_is_not_said_on_a_loud_machine() -> None:
    assert clock.outcome(0.95, 1.05, 0.2, ClockPolicy()) is SpeedOutcome.UNDECIDED
    assert clock.outcome(0.999, 1.001, 0.005, ClockPolicy()) is SpeedOutcome.SAME


def test_throttled_block_is_discarded_and_counted() -> None:
    hot = itertools.cycle(["", "hardware slowdown", ""])
    machine = Machine({REFERENCE: 10.0, CANDIDATE: 5.0}, noise=0.001)
    blocks = machine.measure(condition=lambda: next(hot))
    assert blocks.discarded == {"hardware slowdown": sum(blocks.discarded.values())}
    assert blocks.discarded
    assert len(machine.order) == 4 * (len(blocks.ms[CANDIDATE]) + sum(blocks.discarded.values()))


def test_machine_that_throttles_all_the_time_ends_at_the_cap() -> None:
    machine = Machine({REFERENCE: 100.0, CANDIDATE: 50.0})
    blocks = machine.measure(condition=lambda: "hardware slowdown")
    assert blocks.capped
    assert blocks.ms[CANDIDATE] == []


def test_host_delayed_blocks_are_put_aside_and_counted() -> None:
    machine = Machine({REFERENCE: 100.0, CANDIDATE: 50.0})
    late = [[], [REFERENCE], [], [], [CANDIDATE, REFERENCE]]
    delays = itertools.chain(late, itertools.repeat([]))
    blocks = machine.measure(host_delayed=lambda: next(delays))
    assert blocks.discarded == {clock.HOST_DELAYED: 2}
    assert len(blocks.ms[CANDIDATE]) == POLICY.min_blocks
    assert not blocks.host_delayed


@pytest.mark.parametrize("put_aside", [False, True])
def test_one_host_delay_does_not_open_the_interval(put_aside: bool) -> None:
    """Of five blocks, one batch that the host noticed 16 ms late made the low end 0.63."""
    machine = Machine({REFERENCE: 100.0, CANDIDATE: 100.0}, noise=0.002)

    def in_the_third() -> bool:
        return machine.order.count(CANDIDATE) in (5, 6)

    def run(role: str) -> float:
        taken = machine.run(role)
        return taken * 1.58 if role == CANDIDATE and in_the_third() else taken  # both of them

    blocks = clock.measure(
        run,
        ROLES,
        ClockPolicy(min_blocks=5, max_blocks=5),
        random.Random(7),
        host_delayed=lambda: [CANDIDATE] if put_aside and in_the_third() else [],
        now=lambda: machine.now_s,
    )
    _, low, _ = blocks.ratio(REFERENCE, CANDIDATE)
    assert (low > 0.99) is put_aside


def test_a_host_that_delays_most_blocks_is_measured_as_it_is() -> None:
    machine = Machine({REFERENCE: 100.0, CANDIDATE: 50.0})
    blocks = machine.measure(host_delayed=lambda: [REFERENCE])
    assert blocks.discarded == {}
    assert len(blocks.ms[CANDIDATE]) >= 2
    assert blocks.capped


def test_a_candidate_cannot_have_its_slow_blocks_put_aside() -> None:
    """It says of four blocks in ten that the host was late."""
    machine = Machine({REFERENCE: 100.0, CANDIDATE: 50.0}, noise=0.01)
    slow = itertools.cycle([[], [CANDIDATE], [], [], [CANDIDATE]])
    blocks = machine.measure(
        ClockPolicy(min_blocks=20, max_blocks=20), host_delayed=lambda: next(slow)
    )
    assert blocks.discarded == {}
    assert len(blocks.ms[CANDIDATE]) == 20


def test_what_a_candidate_says_does_not_keep_believed_delays() -> None:
    machine = Machine({REFERENCE: 100.0, CANDIDATE: 50.0}, noise=0.01)
    late = [[CANDIDATE]] * 8 + [[REFERENCE, CANDIDATE]] * 3 + [[]] * 9
    delays = itertools.chain(late, itertools.repeat([]))
    blocks = machine.measure(
        ClockPolicy(min_blocks=20, max_blocks=20), host_delayed=lambda: next(delays)
    )
    assert blocks.discarded == {clock.HOST_DELAYED: 3}
    assert len(blocks.ms[CANDIDATE]) == 17


def test_host_delay_is_what_the_clock_saw_and_the_events_did_not() -> None:
    assert clock.is_host_delayed(45.0, beyond_ms=17.0, best_ms=0.4, policy=POLICY)
    assert not clock.is_host_delayed(28.0, beyond_ms=0.8, best_ms=0.4, policy=POLICY)
    assert not clock.is_host_delayed(200.0, beyond_ms=2.2, best_ms=0.4, policy=POLICY)
    assert clock.is_host_delayed(200.0, beyond_ms=5.0, best_ms=0.4, policy=POLICY)


def test_a_machine_that_changes_its_pace_does_not_move_the_ratio() -> None:
    """On a shared host a call took 13 us for some blocks and 20 us for others (H200, 2026-11-28).

    Ratios of what roles took over all blocks wandered by 30 % between evaluations.
    """
    wandered = []
    for seed in range(20):
        machine = Machine({REFERENCE: 13.0, CANDIDATE: 12.5}, noise=0.005, seed=seed)
        host = random.Random(seed)
        slow = 1.0

        def run(role: str, machine: Machine = machine, host: random.Random = host) -> float:
            nonlocal slow
            if host.random() < 0.1:  # it may change within a block, too
                slow = host.choice([1.0, 1.5])
            return machine.run(role) * slow

        blocks = clock.measure(
            run,
            ROLES,
            ClockPolicy(min_blocks=20, max_blocks=20),
            random.Random(seed),
            now=lambda machine=machine: machine.now_s,
        )
        wandered.append(blocks.ratio(REFERENCE, CANDIDATE)[0])
    assert max(abs(ratio / 1.04 - 1) for ratio in wandered) < 0.015


def test_what_is_no_part_of_a_call_is_taken_from_every_batch() -> None:
    blocks = Blocks(ms={REFERENCE: [10.0, 12.0], AGAIN: [11.0, 11.0], CANDIDATE: [5.0, 5.5]})
    blocks.less({REFERENCE: 1.0, CANDIDATE: 0.5})  # twice as many calls a batch
    assert blocks.ms == {REFERENCE: [9.0, 11.0], AGAIN: [10.0, 10.0], CANDIDATE: [4.5, 5.0]}
    blocks.less(dict.fromkeys(ROLES, 100.0))
    assert all(ms > 0 for times in blocks.ms.values() for ms in times)


def test_every_role_runs_about_as_long_however_quick_it_is() -> None:
    policy = ClockPolicy(cap_s=60.0)
    estimates = {REFERENCE: 11.2, CANDIDATE: 2.6, "torch.compile": 0.05}
    assert clock.calls_by_role(estimates, 1000, policy) == {
        REFERENCE: 18,
        CANDIDATE: 77,
        "torch.compile": 1000,
    }
    assert clock.calls_by_role({REFERENCE: 900.0, CANDIDATE: 1e-9}, 30, policy) == {
        REFERENCE: 1,
        CANDIDATE: 30,
    }


@pytest.mark.parametrize(("cap_s", "batch_ms"), [(60.0, 200), (8.0, 107), (1.0, 50)])
def test_batches_are_as_short_as_the_least_blocks_need(cap_s: float, batch_ms: int) -> None:
    roles = dict.fromkeys((REFERENCE, CANDIDATE, "torch.compile"), 1.0)
    calls = clock.calls_by_role(roles, 1000, ClockPolicy(cap_s=cap_s))
    assert set(calls.values()) == {batch_ms}


def test_batches_of_short_calls_are_short() -> None:
    """What is all host time changes its pace within a second: more blocks, each within one pace.

    Ten evaluations of (1, 128) spread by 3.2 % with batches of 1000 calls (H200, 2026-11-29).
    """
    roles = {REFERENCE: 0.024, CANDIDATE: 0.012}
    assert clock.calls_by_role(roles, 1000, POLICY) == {REFERENCE: 500, CANDIDATE: 1000}
    roles = {REFERENCE: 5.0, CANDIDATE: 0.012}  # what a candidate claims shortens nobody's batches
    assert clock.calls_by_role(roles, 1000, POLICY)[REFERENCE] == 40


def test_both_batches_of_a_role_count() -> None:
    times = {REFERENCE: 10.0, AGAIN: 12.0, CANDIDATE: 1.0, CANDIDATE_AGAIN: 3.0}
    blocks = Blocks(ms={name: [ms] * 2 for name, ms in times.items()})
    assert blocks.figures() == {REFERENCE: 11.0, AGAIN: 12.0, CANDIDATE: 2.0, CANDIDATE_AGAIN: 3.0}
    assert blocks.ratio(REFERENCE, CANDIDATE) == pytest.approx((5.5, 5.5, 5.5))
    assert blocks.ratio(REFERENCE, AGAIN)[0] == pytest.approx(10 / 12)
    del blocks.ms[AGAIN], blocks.ms[CANDIDATE_AGAIN]
    assert blocks.ratio(REFERENCE, CANDIDATE)[0] == pytest.approx(10.0)


def test_who_follows_itself_has_warm_caches_and_both_do_as_often() -> None:
    """The reference alone ran twice a block: its 10 us calls looked 2 % quicker than its own copy's
    (CPU, 2026-11-29)."""
    machine = Machine({REFERENCE: 10.0, CANDIDATE: 10.0})

    def run(role: str) -> float:
        warm = machine.order[-1:] == [role]
        return machine.run(role) * (0.97 if warm else 1.0)

    policy = ClockPolicy(cap_s=60.0, min_blocks=300, max_blocks=300)
    blocks = clock.measure(run, ROLES, policy, random.Random(7), now=lambda: machine.now_s)
    figures = blocks.figures()
    assert figures[CANDIDATE] == pytest.approx(figures[REFERENCE], rel=0.001)
    assert said(blocks, policy) is SpeedOutcome.SAME


def test_forged_event_is_a_lie() -> None:
    lie = clock.lying([201.0] * 6, 1.0, [0.001] * 6, POLICY)
    assert "claim 0.001 ms" in lie
    assert "less in 6 of 6" in lie
    assert "more in 6 of 6" in clock.lying([201.0] * 6, 1.0, [400.0] * 6, POLICY)


def test_a_longer_batch_overhead_is_no_lie() -> None:
    """Another program on the GPU: the reference's batch overhead was as long as whole batches."""
    assert clock.lying([35.0] * 4, 40.6, [30.2] * 4, POLICY, alone=False) == ""
    assert clock.lying([60.0] * 4, 10.0, [30.2] * 4, POLICY, alone=False) == ""
    assert "less" in clock.lying([60.0] * 4, 10.0, [30.2] * 4, POLICY, alone=True)
    # Events that show more than all that the clock saw are forged, whoever else is there.
    assert "more" in clock.lying([35.0] * 4, 40.6, [50.0] * 4, POLICY, alone=False)


def test_one_host_hiccup_is_no_lie() -> None:
    claims = [199.0, 201.0, 200.0, 198.0, 200.5]
    totals = [201.0, 202.0, 901.0, 201.0, 201.0]
    assert clock.lying(totals, 1.0, claims, POLICY) == ""
    assert clock.lying([201.0] * 3, 1.0, [None, None, None], POLICY) == ""


def test_small_difference_of_a_short_batch_is_no_lie() -> None:
    assert clock.lying([2.0] * 6, 1.0, [0.7] * 6, POLICY) == ""
