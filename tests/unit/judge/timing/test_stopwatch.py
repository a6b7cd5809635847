"""What the stopwatch does around its batches: cores, and what it takes from them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.domain import CANDIDATE, REFERENCE, Status
from harness.judge.timing import affinity
from harness.judge.timing.affinity import CorePair
from harness.judge.timing.batches import Log
from harness.judge.timing.stopwatch import Stopwatch
from harness.judge.workers.remote import WorkerFailed


@pytest.fixture
def watch() -> Stopwatch:
    watch = object.__new__(Stopwatch)
    watch._batches = SimpleNamespace(running=CANDIDATE)
    return watch


def test_judge_sits_only_where_all_workers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without CAP_SYS_NICE a worker of another user cannot be pinned."""
    sat: list[Any] = []
    monkeypatch.setattr(affinity, "claim_cores", lambda device: CorePair(judge=1, workers=0))
    monkeypatch.setattr(affinity, "pin", lambda pid, core: not sat.append((pid, core)))
    monkeypatch.setattr(affinity, "pin_all", lambda pids, core: False)
    device, workers = torch.device("cpu"), [os.getpid()]
    assert "cannot pin" in affinity.pin_judge_and_workers(device, workers)
    assert sat == []
    monkeypatch.setattr(affinity, "pin_all", lambda pids, core: core == 0)
    said = affinity.pin_judge_and_workers(device, workers)
    assert sat == [(0, 1)]
    assert said == "judge on core 1, workers on core 0"
    monkeypatch.setattr(affinity, "claim_cores", lambda device: None)
    assert "no two cores are free" in affinity.pin_judge_and_workers(device, workers)


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


def test_batch_overhead_is_what_the_clock_saw_beyond_the_events_of_the_reference(
    watch: Stopwatch,
) -> None:
    watch._batches.logs = {
        REFERENCE: Log([10.4, 10.5, 10.45, 17.0], [10.0] * 4),
        CANDIDATE: Log([99.0], [1.0]),
    }
    assert watch._overhead_ms() == pytest.approx(0.475)
