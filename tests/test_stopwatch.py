"""What the stopwatch does around its batches: seats, and whose word moves a block."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.domain import Status
from harness.judge import cores, timing
from harness.judge.baton import Timed
from harness.judge.clock import CANDIDATE, REFERENCE, ClockPolicy
from harness.judge.cores import Seats
from harness.judge.remote import WorkerFailed
from harness.judge.timing import Stopwatch


@pytest.fixture
def watch() -> Stopwatch:
    watch = object.__new__(Stopwatch)
    watch._on_gpu = True
    watch._problem = SimpleNamespace(device=torch.device("cpu"))
    watch._policy = ClockPolicy()
    watch._best_beyond_ms = {}
    watch._jolted = set()
    watch._short = watch._alike = False
    watch._seats = ""
    watch._running = CANDIDATE
    watch._reruns = 3
    worker = SimpleNamespace(pid=os.getpid())
    watch._batons = {REFERENCE: SimpleNamespace(worker=worker)}
    return watch


def timed(total_ms: float, claimed_ms: float) -> Timed:
    return Timed(
        total_ms=total_ms,
        claimed_ms=claimed_ms,
        order=(),
        seen=SimpleNamespace(unseen=False),
    )


def test_a_batch_that_ran_on_beyond_its_events_is_a_jolt(watch: Stopwatch) -> None:
    for total in (28.4, 28.5, 45.0, 28.4):
        watch._look_for_jolt(REFERENCE, timed(total, 28.0))
    assert watch._whose_jolts() == {REFERENCE}
    assert watch._whose_jolts() == set()
    watch._look_for_jolt(CANDIDATE, timed(45.0, 28.0))  # its own best, so far
    watch._look_for_jolt(CANDIDATE, timed(62.0, 28.0))
    assert watch._whose_jolts() == {CANDIDATE}


def test_off_the_gpu_a_candidate_is_not_asked(watch: Stopwatch) -> None:
    watch._on_gpu = False
    for total in (28.4, 45.0):
        watch._look_for_jolt(CANDIDATE, timed(total, 28.0))
        watch._look_for_jolt(REFERENCE, timed(total, 28.0))
    assert watch._whose_jolts() == {REFERENCE}


def test_calls_of_the_host_alone_have_no_jolts(watch: Stopwatch) -> None:
    """What a slow host adds to their batches, it adds to their calls: half of the blocks had to go
    on a noisy one, and the rest spread all the more."""
    watch._short = True
    for total in (12.4, 17.0):
        watch._look_for_jolt(REFERENCE, timed(total, 12.0))
    assert watch._whose_jolts() == set()


def test_judge_sits_only_where_all_workers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without CAP_SYS_NICE a worker of another user cannot be pinned."""
    sat: list[Any] = []
    monkeypatch.setattr(cores, "seats_for", lambda device: Seats(judge=1, workers=0))
    monkeypatch.setattr(cores, "sit", lambda pid, core: not sat.append((pid, core)))
    monkeypatch.setattr(cores, "sit_all", lambda pids, core: False)
    device, workers = torch.device("cpu"), [os.getpid()]
    assert "cannot pin" in cores.take_seats(device, workers)
    assert sat == []
    monkeypatch.setattr(cores, "sit_all", lambda pids, core: core == 0)
    said = cores.take_seats(device, workers)
    assert sat == [(0, 1)]
    assert said == "judge on core 1, workers on core 0"
    monkeypatch.setattr(cores, "seats_for", lambda device: None)
    assert "no two cores are free" in cores.take_seats(device, workers)


def test_judge_stands_up_however_timing_ends(
    watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = os.sched_getaffinity(0)

    def measured() -> None:
        os.sched_setaffinity(0, {max(everywhere)})
        raise WorkerFailed(Status.CRASHED, "it died")

    monkeypatch.setattr(watch, "_measured", measured, raising=False)
    with pytest.raises(WorkerFailed):
        watch.run()
    assert os.sched_getaffinity(0) == everywhere


def test_who_does_not_stand_still_is_to_blame_and_not_who_is_next(watch: Stopwatch) -> None:
    def rest() -> None:
        raise WorkerFailed(Status.TAMPERED, "it does not stand still")

    watch._batons[CANDIDATE] = SimpleNamespace(rest=rest)
    watch._stage = SimpleNamespace(count=1)
    watch._setting = SimpleNamespace(warm_l2=False)
    watch._secret = random.Random(1)
    with pytest.raises(WorkerFailed):
        watch._batch(REFERENCE, 1)
    assert watch._running == CANDIDATE


def test_everybody_waits_for_inputs_alike(watch: Stopwatch) -> None:
    """A worker that stood still for longer wakes up slower: that must cancel."""
    events: list[str] = []

    def baton(role: str) -> SimpleNamespace:
        def run(*args: Any) -> Timed:
            events.append("run")
            return timed(10.0, 9.0)

        return SimpleNamespace(
            role=role,
            keep=1,
            rest=lambda: None,
            arm=lambda *args, **named: events.append("stopped"),
            run=run,
        )

    watch._batons = {role: baton(role) for role in (REFERENCE, CANDIDATE)}
    watch._stage = SimpleNamespace(
        count=1,
        renew=lambda: events.append("drawn"),
        write=lambda: events.append("written"),
    )
    watch._setting = SimpleNamespace(warm_l2=False, mode="eval")
    watch._survey = SimpleNamespace(poison=())
    watch._secret = random.Random(1)
    watch._checks = SimpleNamespace(most=1, wants_whole=True, check=lambda timed: None)
    watch._logs = {role: timing._Log() for role in (REFERENCE, CANDIDATE)}
    watch._cool = lambda: events.append("cool")  # type: ignore[method-assign]
    for role in (CANDIDATE, REFERENCE, REFERENCE):
        assert watch._batch(role, 1) == 10.0
    assert events == ["drawn", *["stopped", "written", "cool", "run"] * 3]


def test_in_blocks_of_short_calls_everybody_is_treated_like_the_candidate(
    watch: Stopwatch,
) -> None:
    """What is done for its sake alone made its 10 us calls look a percent slower."""
    events: list[str] = []
    looked: list[bool] = []

    def baton(role: str) -> SimpleNamespace:
        def run(order: Any, secret: Any, most: int, whole: bool) -> Timed:
            looked.append(whole)
            return timed(10.0, 9.0)

        return SimpleNamespace(
            role=role,
            keep=1,
            rest=lambda: events.append(f"{role} rests"),
            arm=lambda *args, **named: events.append(f"{role} armed"),
            run=run,
        )

    watch._batons = {role: baton(role) for role in (REFERENCE, CANDIDATE)}
    watch._stage = SimpleNamespace(
        count=1, renew=lambda: events.append("drawn"), write=lambda: None
    )
    watch._setting = SimpleNamespace(warm_l2=False, mode="eval")
    watch._survey = SimpleNamespace(poison=())
    watch._secret = random.Random(1)
    watch._logs = {role: timing._Log() for role in (REFERENCE, CANDIDATE)}
    watch._cool = lambda: None  # type: ignore[method-assign]
    watch._checks = SimpleNamespace(
        most=1,
        wants_whole=True,
        inputs_of=lambda timed: {0: "inputs"},
        check=lambda timed, inputs: events.append(f"checked with {inputs[0]}"),
    )
    watch._unchecked = []
    watch._short = watch._alike = True
    for role in (REFERENCE, CANDIDATE):
        watch._batch(role, 1)
    assert looked == [True, True]
    assert events == [
        *["drawn", f"{CANDIDATE} rests", f"{REFERENCE} armed"],
        *["drawn", f"{REFERENCE} rests", f"{CANDIDATE} armed"],
    ]
    watch._check_blocks()
    watch._check_blocks()
    assert events[6:] == ["checked with inputs"]


def test_handshake_is_what_the_clock_saw_beyond_the_events_of_the_reference(
    watch: Stopwatch,
) -> None:
    watch._logs = {
        REFERENCE: timing._Log([10.4, 10.5, 10.45, 17.0], [10.0] * 4),
        CANDIDATE: timing._Log([99.0], [1.0]),
    }
    assert watch._handshake_ms() == pytest.approx(0.475)


def test_baseline_that_fails_at_the_start_line_hides_nobody(watch: Stopwatch) -> None:
    def arm(*args: Any, **named: Any) -> None:
        raise WorkerFailed(Status.CRASHED, "it died")

    rest = SimpleNamespace(rest=lambda: None)
    watch._batons = {"torch.compile": SimpleNamespace(arm=arm, keep=1), CANDIDATE: rest}
    watch._stage = SimpleNamespace(count=1)
    watch._setting = SimpleNamespace(warm_l2=False, mode="eval")
    watch._survey = SimpleNamespace(poison=())
    watch._secret = random.Random(1)
    with pytest.raises(timing._BaselineFailed):
        watch._batch("torch.compile", 1)


def test_a_batch_in_new_memory_is_run_again_and_not_counted(watch: Stopwatch) -> None:
    """Nobody could look at it. A candidate that always takes new memory is judged as it is."""
    times = iter([11.0, 12.0, *range(13, 200)])
    checked: list[float] = []

    def run(*args: Any) -> Timed:
        total = next(times)
        seen = SimpleNamespace(unseen=total < unseen_below)
        return Timed(total_ms=total, claimed_ms=total - 1, order=(), seen=seen)

    watch._batons[CANDIDATE] = SimpleNamespace(
        role=CANDIDATE, keep=1, arm=lambda *args, **named: None, run=run
    )
    watch._stage = SimpleNamespace(count=1, renew=lambda: None, write=lambda: None)
    watch._setting = SimpleNamespace(warm_l2=False, mode="eval")
    watch._survey = SimpleNamespace(poison=())
    watch._secret = random.Random(1)
    watch._checks = SimpleNamespace(
        most=1, wants_whole=True, check=lambda timed: checked.append(timed.total_ms)
    )
    watch._logs = {CANDIDATE: timing._Log()}
    watch._cool = lambda: None  # type: ignore[method-assign]
    unseen_below = 13.0
    assert watch._batch(CANDIDATE, 1) == 13.0
    assert checked == watch._logs[CANDIDATE].total_ms == [13.0]
    unseen_below = 1e9
    watch._batch(CANDIDATE, 1)
    assert watch._reruns == 0 and len(checked) == 2
