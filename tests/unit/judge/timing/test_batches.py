"""What stands around one timed batch, and whose word moves a block."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.domain import CANDIDATE, REFERENCE, Status
from harness.judge.timing.batches import BaselineFailed, Batches
from harness.judge.timing.clock import ClockPolicy
from harness.judge.timing.timed_worker import Timed
from harness.judge.workers.remote import WorkerFailed


def timed(total_ms: float, claimed_ms: float, *, unseen: bool = False) -> Timed:
    return Timed(
        total_ms=total_ms,
        claimed_ms=claimed_ms,
        order=(),
        seen=SimpleNamespace(unseen=unseen),
    )


class Stand:
    """Batches over timed workers that the test makes up, and what happened to them in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.whole: list[bool] = []
        self.checked: list[float] = []
        self.batches = Batches(
            {role: self.timed_worker(role) for role in (REFERENCE, CANDIDATE)},
            torch.device("cpu"),
            SimpleNamespace(warm_l2=False, mode="eval"),
            ClockPolicy(),
            SimpleNamespace(other_processes=bool),
            random.Random(1),
            alive=lambda: self.events.append("alive"),
        )
        stage = SimpleNamespace(
            count=1,
            renew=lambda: self.events.append("drawn"),
            write=lambda: self.events.append("written"),
        )
        checks = SimpleNamespace(
            most=1,
            wants_whole=True,
            inputs_of=lambda timed: {0: "inputs"},
            see_inputs=lambda slots: None,
            check=self.check,
        )
        self.batches.over(stage, checks, SimpleNamespace(poison=(), draws=False))
        self.batches._cool = lambda: self.events.append("cool")  # type: ignore[method-assign]

    def timed_worker(self, role: str, **changes: Callable[..., Any]) -> Any:
        def run(
            order: Any, secret: Any, most: int, whole: bool, see: Any, seed: int, *, state: bool
        ) -> Timed:
            self.events.append("run")
            self.whole.append(whole)
            assert (see is not None) == (role == CANDIDATE)
            return timed(10.0, 9.0)

        acts = {
            "suspend": lambda: self.events.append(f"{role} rests"),
            "prepare": lambda *args, **named: self.events.append(f"{role} armed"),
            "run": run,
        }
        return SimpleNamespace(role=role, keep=1, **acts | changes)

    def check(self, timed: Timed, inputs: Any = None) -> None:
        self.checked.append(timed.total_ms)
        self.events.append("checked" if inputs is None else f"checked with {inputs[0]}")


@pytest.fixture
def stand() -> Stand:
    return Stand()


@pytest.fixture
def batches(stand: Stand) -> Batches:
    return stand.batches


def test_a_batch_that_ran_on_beyond_its_events_is_a_host_delay(batches: Batches) -> None:
    batches.on_gpu = True
    for total in (28.4, 28.5, 45.0, 28.4):
        batches._note_host_delay(REFERENCE, timed(total, 28.0))
    assert batches.host_delayed_roles() == {REFERENCE}
    assert batches.host_delayed_roles() == set()
    batches._note_host_delay(CANDIDATE, timed(45.0, 28.0))  # its own best, so far
    batches._note_host_delay(CANDIDATE, timed(62.0, 28.0))
    assert batches.host_delayed_roles() == {CANDIDATE}


def test_off_the_gpu_a_candidate_is_not_asked(batches: Batches) -> None:
    for total in (28.4, 45.0):
        batches._note_host_delay(CANDIDATE, timed(total, 28.0))
        batches._note_host_delay(REFERENCE, timed(total, 28.0))
    assert batches.host_delayed_roles() == {REFERENCE}


def test_calls_of_the_host_alone_have_no_host_delays(batches: Batches) -> None:
    """What a slow host adds to their batches, it adds to their calls: half of the blocks had to go
    on a noisy one, and the rest spread all the more."""
    batches.short = True
    for total in (12.4, 17.0):
        batches._note_host_delay(REFERENCE, timed(total, 12.0))
    assert batches.host_delayed_roles() == set()


def test_who_does_not_stand_still_is_to_blame_and_not_who_is_next(
    stand: Stand, batches: Batches
) -> None:
    def never_stands() -> None:
        raise WorkerFailed(Status.TAMPERED, "it does not stand still")

    batches.timed_workers[CANDIDATE] = stand.timed_worker(CANDIDATE, suspend=never_stands)
    with pytest.raises(WorkerFailed):
        batches.run(REFERENCE, 1)
    assert batches.running == CANDIDATE


def test_everybody_waits_for_inputs_alike(stand: Stand, batches: Batches) -> None:
    """A worker that stood still for longer wakes up slower: that must cancel."""
    for role in (CANDIDATE, REFERENCE, REFERENCE):
        assert batches.run(role, 1) == 10.0
    waited = [e for e in stand.events if e in ("drawn", "written", "cool", "run", "checked")]
    assert waited == ["drawn", "written", "cool", "run", "checked", *["written", "cool", "run"] * 2]
    assert stand.whole == [True, False, False]


def test_in_blocks_of_short_calls_everybody_is_treated_like_the_candidate(
    stand: Stand, batches: Batches
) -> None:
    """What is done for its sake alone made its 10 us calls look a percent slower."""
    batches.alike = True
    for role in (REFERENCE, CANDIDATE):
        batches.run(role, 1)
    assert stand.whole == [True, True]
    waits = ["written", "cool", "run"]
    assert stand.events == [
        *["alive", "drawn", f"{CANDIDATE} rests", f"{REFERENCE} armed", *waits],
        *["alive", "drawn", f"{REFERENCE} rests", f"{CANDIDATE} armed", *waits],
    ]
    batches.check_pending()
    batches.check_pending()
    assert stand.events[len(waits) * 2 + 8 :] == ["checked with inputs"]


@pytest.mark.parametrize("where", ["prepare", "suspend"])
def test_baseline_that_fails_around_a_batch_hides_nobody(
    where: str, stand: Stand, batches: Batches
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise WorkerFailed(Status.CRASHED, "it died")

    batches.timed_workers["torch.compile"] = stand.timed_worker("torch.compile", **{where: fail})
    batches.alike = True
    with pytest.raises(BaselineFailed) as failed:
        batches.run("torch.compile" if where == "prepare" else CANDIDATE, 1)
    assert failed.value.role == "torch.compile"


def test_a_batch_in_new_memory_is_run_again_and_not_counted(stand: Stand, batches: Batches) -> None:
    """Nobody could look at it. A candidate that always takes new memory is judged as it is."""
    times = iter([11.0, 12.0, *range(13, 200)])

    def run(*args: Any, **named: Any) -> Timed:
        total = next(times)
        return timed(total, total - 1, unseen=total < unseen_below)

    batches.timed_workers[CANDIDATE] = stand.timed_worker(CANDIDATE, run=run)
    batches.reruns = 3
    unseen_below = 13.0
    assert batches.run(CANDIDATE, 1) == 13.0
    assert stand.checked == batches.logs[CANDIDATE].total_ms == [13.0]
    unseen_below = 1e9
    batches.run(CANDIDATE, 1)
    assert batches.reruns == 0 and len(stand.checked) == 2


def test_what_prepared_the_blocks_is_no_part_of_them(batches: Batches) -> None:
    batches.run(REFERENCE, 1)
    batches.begin_anew()
    assert batches.logs[REFERENCE].total_ms == batches.logs[REFERENCE].claimed_ms == []
