"""What the stopwatch does around its batches: seats, and what it takes from them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.domain import Status
from harness.judge import cores
from harness.judge.batches import Log
from harness.judge.clock import CANDIDATE, REFERENCE
from harness.judge.cores import Seats
from harness.judge.remote import WorkerFailed
from harness.judge.timing import Stopwatch


@pytest.fixture
def watch() -> Stopwatch:
    watch = object.__new__(Stopwatch)
    watch._batches = SimpleNamespace(running=CANDIDATE)
    return watch


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


def test_handshake_is_what_the_clock_saw_beyond_the_events_of_the_reference(
    watch: Stopwatch,
) -> None:
    watch._batches.logs = {
        REFERENCE: Log([10.4, 10.5, 10.45, 17.0], [10.0] * 4),
        CANDIDATE: Log([99.0], [1.0]),
    }
    assert watch._handshake_ms() == pytest.approx(0.475)
