"""How long the judge waits: a worker's word about compilers is worth nothing, a compiler is."""

from __future__ import annotations

import pytest

from harness import ipc
from harness.judge.workers import processes
from harness.judge.workers.budget import Budget
from harness.judge.workers.patience import Patience


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def patience(clock: Clock, pair_s: float = 300.0, build_s: float = 600.0) -> Patience:
    return Patience(30.0, Budget(pair_s, build_s, now=clock), now=clock)


def test_a_request_ends_at_its_limit(clock: Clock) -> None:
    waits = patience(clock)
    clock.now = 29
    assert not waits.is_over()
    clock.now = 31
    assert waits.is_over() and waits.said() == "gave no answer within 30 s"


def test_to_say_compiling_gives_no_time(clock: Clock) -> None:
    waits = patience(clock)
    waits.hear("compiling")
    for clock.now in range(32):
        waits.see(compiler=False)
    assert waits.is_over()
    assert "no compiler ran" in waits.said()


def test_a_compiler_alone_gives_no_time_either(clock: Clock) -> None:
    waits = patience(clock)
    for clock.now in range(32):
        waits.see(compiler=True)
    assert waits.is_over()


def test_the_time_of_a_compiler_does_not_count_for_request_and_pair(clock: Clock) -> None:
    budget = Budget(60.0, 600.0, now=clock)
    waits = Patience(30.0, budget, now=clock)
    waits.hear("compiling")
    waits.see(compiler=True)
    clock.now = 400
    waits.see(compiler=True)
    assert not waits.is_over() and budget.left_s() == 60
    waits.see(compiler=False)  # between two compilers
    clock.now = 429
    assert not waits.is_over() and budget.left_s() == 31
    waits.hear("compiled")
    clock.now = 455  # what was built has a limit of its own to be loaded, within the pair's time
    assert not waits.is_over()
    clock.now = 460
    assert waits.is_over()


def test_compilers_have_a_limit_of_their_own(clock: Clock) -> None:
    waits = patience(clock)
    waits.hear("compiling")
    waits.see(compiler=True)
    clock.now = 601
    assert waits.is_over() and "still compiling after 601 s" in waits.said()
    waits.close()


def test_extensions_may_be_built_side_by_side(clock: Clock) -> None:
    waits = patience(clock)
    waits.hear("compiling")
    waits.hear("compiling")
    waits.see(compiler=True)
    clock.now = 50
    waits.hear("compiled")
    assert waits.claims_to_compile
    clock.now = 90
    assert not waits.is_over()
    waits.hear("compiled")
    assert not waits.claims_to_compile


def test_a_flood_of_events_is_refused(clock: Clock) -> None:
    waits = patience(clock)
    with pytest.raises(ipc.WireViolation):
        waits.hear("compiled")
    waits = patience(clock)
    for _ in range(500):
        waits.hear("compiling")
        waits.hear("compiled")
    with pytest.raises(ipc.WireViolation):
        waits.hear("compiling")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("nvcc", True),
        ("cicc", True),
        ("x86_64-linux-gnu-g++-12", True),
        ("x86_64-linux-gnu-ld.bfd", True),
        ("clang-17", True),
        ("cc1plus", True),
        ("python3.11", False),
        ("nvccc", False),
        ("bash", False),
        ("sleep", False),
    ],
)
def test_names_of_compilers(name: str, known: bool) -> None:
    assert (processes._COMPILER.fullmatch(name) is not None) is known
