"""``--time-limit``: what a pair may take over all phases, and who is blamed when it is over."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Status, Verdict, evaluate
from harness.fleet import JudgeServer

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


@pytest.fixture
def run(tmp_path: Path, judges: JudgeServer) -> Callable[..., Verdict]:
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
            judges=judges,
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
