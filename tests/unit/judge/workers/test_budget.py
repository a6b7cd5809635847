"""What counts as a pair's time, and who is blamed when it is over."""

from __future__ import annotations

import pytest

from harness.domain import Status
from harness.judge.workers.budget import Budget, OutOfTime


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def budget_of(clock: Clock, limit_s: float = 60.0) -> Budget:
    return Budget(limit_s, 600.0, now=clock)


def test_waiting_and_compiling_do_not_count(clock: Clock) -> None:
    budget = budget_of(clock)
    clock.now += 10
    with budget.waiting():
        clock.now += 1000
        assert budget.left_s() == 50
    with budget.candidate(), budget.compiling():
        clock.now += 120
    assert budget.left_s() == 50
    assert budget.build_left_s() == 480
    budget.check()
    clock.now += 50
    with pytest.raises(OutOfTime):
        budget.check()


def test_compilers_have_a_time_over_all_builds(clock: Clock) -> None:
    budget = budget_of(clock)
    for _ in range(3):
        with budget.compiling():
            clock.now += 250
    assert budget.build_left_s() == 0


@pytest.mark.parametrize(
    ("candidate_s", "reference_s", "status"),
    [
        (55, 5, Status.TIMED_OUT),
        (5, 55, Status.INVALID_REFERENCE),
        (30, 30, Status.TIMED_OUT),
    ],
)
def test_whoever_took_more_of_the_checks_is_blamed(
    clock: Clock, candidate_s: float, reference_s: float, status: Status
) -> None:
    budget = budget_of(clock)
    with budget.candidate():
        clock.now += 20  # imports and constructs: no part of the checks
    budget.begin_checks()
    clock.now += reference_s
    with budget.candidate():
        clock.now += candidate_s
    said, message = budget.verdict("check eval")
    assert said is status
    assert "during check eval" in message
    assert "(60 s)" in message
    assert f"worked for {candidate_s + 20:.1f} s" in message
    assert "--time-limit" in message


def test_fleet_is_told_how_long_a_reference_may_run_during_the_checks(clock: Clock) -> None:
    budget = Budget(60.0, 600.0, now=clock)
    budget.begin_checks()
    with budget.candidate(), budget.candidate():  # an answer that needs a larger arena asks again
        pass
    assert budget.fleet_s() == 62
    budget.end_checks()
    with budget.candidate():
        clock.now += 100
    budget.check()
    assert budget.fleet_s() is None
