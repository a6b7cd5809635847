"""``--time-limit``: what a pair may take over all phases, and who is blamed when it is over."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Status, Verdict, evaluate
from harness.judge.workers.budget import Budget, OutOfTime

REFERENCE = """
import time
import torch


class Model(torch.nn.Module):
    def forward(self, x):
        {slow}
        return x * 2 + 1


def get_inputs():
    return [torch.randn(64)]


def get_init_inputs():
    return []
"""
SOLUTION = """
import time
import torch


class ModelNew(torch.nn.Module):
    def forward(self, x):
        {slow}
        return x * 2 + 1
"""
COMPILES_LONG = """
import torch
from torch.utils.cpp_extension import load_inline

SOURCE = '''
// SALT
constexpr long count(long n) {
    long sum = 0;
    for (long i = 0; i < n; ++i) sum += i % 7;
    return sum;
}
static_assert(count(LOOPS) > 0, "");
at::Tensor doubled(at::Tensor x) { return x * 2 + 1; }
'''
FLAGS = ["-fconstexpr-loop-limit=2000000000", "-fconstexpr-ops-limit=20000000000"]
ext = load_inline(
    name="long_compiled", cpp_sources=SOURCE, functions=["doubled"], extra_cflags=FLAGS
)


class ModelNew(torch.nn.Module):
    def forward(self, x):
        return ext.doubled(x)
"""


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


def test_fleet_is_told_whose_turn_it_is_during_the_checks(clock: Clock) -> None:
    told: list[bool] = []
    budget = Budget(60.0, 600.0, told.append, now=clock)
    with budget.candidate():
        pass
    assert told == []
    budget.begin_checks()
    with budget.candidate(), budget.candidate():  # an answer that needs a larger arena asks again
        pass
    assert told == [True, False]
    assert budget.fleet_s() == 62
    budget.end_checks()
    with budget.candidate():
        clock.now += 100
    budget.check()
    assert budget.fleet_s() is None
    assert told == [True, False]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Verdict]:
    """Return a function that evaluates a reference and a solution that are slow or not."""

    def evaluated(
        *, reference: str = "pass", solution: str = "pass", time_limit_s: float, timed: bool = False
    ) -> Verdict:
        problem, file = tmp_path / "reference.py", tmp_path / "solution.py"
        problem.write_text(REFERENCE.format(slow=reference))
        file.write_text(SOLUTION.format(slow=solution) if "ModelNew" not in solution else solution)
        return evaluate(
            problem,
            file,
            device="cpu",
            timed=timed,
            time_limit_s=time_limit_s,
            log_dir=tmp_path / "logs",
        )

    return evaluated


def test_solution_that_takes_the_time_is_timed_out(run: Callable[..., Verdict]) -> None:
    verdict = run(solution="time.sleep(2)", time_limit_s=8)
    assert verdict.status is Status.TIMED_OUT, verdict.message
    assert "during check forward" in verdict.message
    assert "(8 s)" in verdict.message
    assert verdict.phases["check forward"] < 11


def test_reference_that_takes_the_time_is_invalid(run: Callable[..., Verdict]) -> None:
    verdict = run(reference="time.sleep(0.7)", time_limit_s=8)
    assert verdict.status is Status.INVALID_REFERENCE, verdict.message
    assert "(8 s)" in verdict.message


def test_reference_that_hangs_is_ended_with_the_time(run: Callable[..., Verdict]) -> None:
    verdict = run(reference="time.sleep(600)", time_limit_s=6)
    assert verdict.status is Status.INVALID_REFERENCE
    assert "(6 s)" in verdict.message
    assert "while the reference ran (line 8, in forward)" in verdict.message


def test_hog_of_memory_is_named(run: Callable[..., Verdict]) -> None:
    verdict = run(solution="torch.empty(16 << 30).fill_(1.0)", time_limit_s=60)
    assert verdict.status is Status.OUT_OF_MEMORY


@pytest.mark.slow
def test_slow_hog_of_memory_is_ended_with_the_time(run: Callable[..., Verdict]) -> None:
    slow = "[torch.empty(1 << 27).fill_(1.0).sum() for _ in range(128)]"
    verdict = run(solution=slow, time_limit_s=12)
    assert verdict.status is Status.TIMED_OUT, verdict.message


def test_time_that_ends_in_the_timing_leaves_a_pair_passed(run: Callable[..., Verdict]) -> None:
    verdict = run(
        reference="time.sleep(0.2)", solution="time.sleep(0.1)", time_limit_s=14, timed=True
    )
    assert verdict.status is Status.PASSED, verdict.message
    assert verdict.speed.outcome.value in ("UNDECIDED", "FASTER")
    assert "(14 s)" in verdict.speed.note
    assert "--time-limit" in verdict.speed.note


@pytest.mark.slow
def test_long_build_of_an_honest_solution_is_not_refused(run: Callable[..., Verdict]) -> None:
    text = COMPILES_LONG.replace("SALT", secrets.token_hex(8)).replace("LOOPS", "3000000")
    verdict = run(solution=text, time_limit_s=12)
    assert verdict.status is Status.PASSED, verdict.message
    assert verdict.phases["build"] > 12
