"""From measured blocks to the record, with figures that the test makes up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from harness.domain import Refusal, SpeedOutcome, Status
from harness.judge import requirements
from harness.judge.timing import clock
from harness.judge.timing.clock import (
    AGAIN,
    CANDIDATE,
    CANDIDATE_AGAIN,
    REFERENCE,
    Blocks,
    ClockPolicy,
)
from harness.judge.timing.overlap import Latency
from harness.judge.timing.roofline import Pass, Peaks
from harness.judge.timing.speed import Measured, speed_of

STEADY = [1.0, 1.001, 0.999, 1.0, 1.0]
MEASURED = Measured(
    blocks=Blocks(
        ms={
            REFERENCE: [2 * t for t in STEADY],
            AGAIN: [2 * t for t in reversed(STEADY)],
            CANDIDATE: STEADY,
            "torch.compile": [1.5 * t for t in STEADY],
        }
    ),
    calls={REFERENCE: 10, CANDIDATE: 20},
    latency=Latency(
        {REFERENCE: [2.1, 2.05, 2.0], CANDIDATE: [1.05, 1.05, 1.3]}, 0.0, part=0.25, least_ms=0.1
    ),
    claimed_ms=0.99,
    device_ms={REFERENCE: 1.98, CANDIDATE: 0.99},
    overhead_ms=0.4,
    baselines=("torch.compile",),
    failed={"torch.compile max-autotune": "died with SIGSEGV"},
    work=(Pass(moved_bytes=3_600_000_000, flops=0),),
    peaks=Peaks(copy_gb_s=4000.0),
    card="0123456789ab",
    gpu={},
    notes=("L2 cold",),
)


def changed(ms: dict[str, list[float]], **more: object) -> Measured:
    blocks = dataclasses.replace(MEASURED.blocks, ms={**MEASURED.blocks.ms, **ms}, **more)
    return dataclasses.replace(MEASURED, blocks=blocks)


def test_a_steady_pair_has_its_figures_and_its_bounds() -> None:
    speed = speed_of(MEASURED, ClockPolicy())
    assert speed.outcome is SpeedOutcome.FASTER
    assert speed.speedup == pytest.approx(2.0)
    assert speed.late_bound == pytest.approx(0.4 / 20)
    assert speed.bound is not None and speed.bound.share == pytest.approx(0.9)
    compiled, failed = speed.baselines
    assert compiled.speedup == pytest.approx(1.5)
    assert failed.speedup is None and "SIGSEGV" in failed.note
    assert speed.note == "L2 cold"


def test_what_cannot_be_checked_is_not_decided() -> None:
    speed = speed_of(dataclasses.replace(MEASURED, repeats=False), ClockPolicy())
    assert speed.outcome is SpeedOutcome.UNDECIDED
    assert "form and size alone" in speed.note


def test_batches_that_are_all_overhead_decide_nothing() -> None:
    """A candidate can be slow until its calls are counted, and get one call a batch."""
    calls = {REFERENCE: 10, CANDIDATE: 1}
    speed = speed_of(dataclasses.replace(MEASURED, calls=calls), ClockPolicy())
    assert speed.late_bound == pytest.approx(0.4)
    assert speed.outcome is SpeedOutcome.UNDECIDED and "batch overhead" in speed.note


def test_without_blocks_there_is_no_figure_and_a_reason() -> None:
    empty = {role: [] for role in MEASURED.blocks.ms}
    speed = speed_of(changed(empty, discarded={"hardware slowdown": 4}), ClockPolicy())
    assert speed.outcome is SpeedOutcome.UNDECIDED
    assert speed.speedup is None
    assert "4 x hardware slowdown" in speed.note


def test_mostly_throttled_is_undecided_and_mostly_host_delayed_is_not() -> None:
    hot = speed_of(changed({}, discarded={"hardware slowdown": 6}), ClockPolicy())
    assert hot.outcome is SpeedOutcome.UNDECIDED
    assert "most blocks were throttled" in hot.note
    delayed = speed_of(changed({}, discarded={clock.HOST_DELAYED: 6}), ClockPolicy())
    assert delayed.outcome is SpeedOutcome.FASTER
    assert delayed.discarded == 6 and f"6 x {clock.HOST_DELAYED}" in delayed.note


def alone_for(taken_ms: dict[str, list[float]], over_ms: float = 0.0, **more: Any) -> Measured:
    latency = Latency(taken_ms, over_ms, part=0.25, least_ms=0.1, **more)
    return dataclasses.replace(MEASURED, latency=latency)


def test_what_handing_over_takes_is_no_part_of_a_call() -> None:
    alone = {REFERENCE: [2.6, 2.7, 2.6], CANDIDATE: [1.6, 1.7, 1.6]}
    speed = speed_of(alone_for(alone, over_ms=0.6), ClockPolicy())
    assert speed.shape == "throughput"
    assert speed.reference_latency_ms == pytest.approx(2.0)
    assert speed.candidate_latency_ms == pytest.approx(1.0)
    caught = alone_for({REFERENCE: [2.6] * 3, CANDIDATE: [2.1] * 3}, over_ms=0.6)
    speed = speed_of(caught, ClockPolicy())
    assert speed.shape == "latency"
    assert speed.speedup == pytest.approx(2.0 / 1.5)


def test_a_isolated_call_that_its_overhead_drowns_gives_no_figure() -> None:
    """Isolated calls of 0.08 ms under an overhead of 1 ms came out as 1e-6 ms, and 0.00x."""
    alone = {REFERENCE: [0.99, 1.0, 1.01], CANDIDATE: [1.17, 1.18, 1.19]}
    quick = changed({name: [0.08 * t for t in STEADY] for name in (REFERENCE, AGAIN)})
    quick.blocks.ms[CANDIDATE] = [0.05 * t for t in STEADY]
    latency = Latency(alone, 1.0, part=0.25, least_ms=0.1)
    speed = speed_of(
        dataclasses.replace(quick, latency=latency, calls={REFERENCE: 400, CANDIDATE: 400}),
        ClockPolicy(),
    )
    assert speed.shape == "throughput" and speed.speedup == pytest.approx(1.6)
    assert speed.reference_latency_ms is None and speed.candidate_latency_ms is None
    assert speed.outcome is SpeedOutcome.UNDECIDED and "less time than starting it" in speed.note


def test_a_batch_that_its_overhead_drowns_gives_no_figure() -> None:
    """441372x was printed where the overhead exceeded the candidate's batch."""
    nothing = changed({CANDIDATE: [1e-9] * 5})
    speed = speed_of(nothing, ClockPolicy())
    assert speed.outcome is SpeedOutcome.UNDECIDED
    assert speed.speedup is None and speed.candidate_ms is None
    assert "no figure" in speed.note


def test_kernels_of_a_call_may_hide_the_way_to_the_next() -> None:
    """On a GPU batched calls take the longer of host and kernels, a single one takes both."""
    alone = {REFERENCE: [2.0] * 3, CANDIDATE: [1.9] * 3}
    assert speed_of(alone_for(alone, hides=True), ClockPolicy()).shape == "throughput"
    assert speed_of(alone_for(alone, hides=False), ClockPolicy()).shape == "latency"
    # More than all of its time cannot have been hidden, whatever its profiler claims.
    busy = alone_for({REFERENCE: [2.0] * 3, CANDIDATE: [2.9] * 3}, hides=True)
    busy = dataclasses.replace(busy, device_ms={REFERENCE: 1.98, CANDIDATE: 50.0})
    assert speed_of(busy, ClockPolicy()).shape == "latency"
    # Nor more than the reference's kernels, which are no claim, let one expect.
    little = alone_for(alone, hides=True)
    little = dataclasses.replace(little, device_ms={REFERENCE: 0.2, CANDIDATE: 0.99})
    assert speed_of(little, ClockPolicy()).shape == "latency"


def test_blocks_that_disagree_do_not_make_isolated_calls_slow() -> None:
    """A host that changes its pace once in a few blocks: the candidate's calls look quick."""
    moody = changed({CANDIDATE: [1.0, 1.9, 1.0, 1.9, 1.2]})
    alone = {REFERENCE: [2.0] * 5, CANDIDATE: [1.8] * 5}
    latency = Latency(alone, 0.0, part=0.1, least_ms=0.001)
    speed = speed_of(dataclasses.replace(moody, latency=latency), ClockPolicy())
    assert speed.outcome is SpeedOutcome.UNDECIDED and "leave open" in speed.note
    steady = speed_of(dataclasses.replace(MEASURED, latency=latency), ClockPolicy())
    assert steady.shape == "latency" and "its batched calls overlap" in steady.note


def test_overlapping_calls_are_judged_by_their_latency() -> None:
    alone = {REFERENCE: [2.0, 2.1, 2.0], CANDIDATE: [2.0, 2.1, 2.0]}
    speed = speed_of(alone_for(alone), ClockPolicy())
    assert speed.shape == "latency"
    assert speed.speedup == pytest.approx(1.0)
    assert speed.candidate_ms == 2.0
    # Its batches against the compiler's would say what they must not say against the reference's.
    assert [b.speedup for b in speed.baselines] == [None, None]


def test_what_isolated_calls_leave_open_is_not_decided() -> None:
    """Its 1.0 ms back to back may be 1.0 to 1.3 alone: 0.25 would be nobody's business."""
    alone = {REFERENCE: [2.0] * 5, CANDIDATE: [1.0, 1.1, 1.2, 1.3, 1.4]}
    speed = speed_of(alone_for(alone, sharp=True), ClockPolicy())
    assert speed.outcome is SpeedOutcome.UNDECIDED and "leave open" in speed.note
    assert speed.speedup == pytest.approx(2.0 / 1.2, rel=0.01), "the lower of both"
    assert speed_of(alone_for(alone), ClockPolicy()).outcome is SpeedOutcome.FASTER


def test_who_disagrees_with_itself_gets_no_figure_that_isolated_calls_contradict() -> None:
    """Slow blocks of its choice make its interval wide: its far end looks harmless then."""
    moody = changed({CANDIDATE: [0.2, 1.9, 0.2, 1.9, 0.25]})
    alone = {REFERENCE: [2.0] * 5, CANDIDATE: [1.9] * 5}
    for sharp in (True, False):
        latency = Latency(alone, 0.0, part=0.1, least_ms=0.001, sharp=sharp)
        speed = speed_of(dataclasses.replace(moody, latency=latency), ClockPolicy())
        assert speed.outcome is SpeedOutcome.UNDECIDED and "leave open" in speed.note
        assert speed.shape == "latency"
        assert speed.speedup == pytest.approx(2.0 / 1.9), "the lower of both"


@pytest.mark.parametrize(
    ("candidate_ms", "alone_ms", "outcome"),
    [
        (0.8, 0.99, SpeedOutcome.UNDECIDED),
        (1.25, 1.01, SpeedOutcome.UNDECIDED),
        (0.8, 0.85, SpeedOutcome.FASTER),
        (1.25, 1.2, SpeedOutcome.SLOWER),
    ],
)
def test_on_a_cpu_isolated_calls_must_say_the_same(
    candidate_ms: float, alone_ms: float, outcome: SpeedOutcome
) -> None:
    """A reference was 0.80 times as fast as its own copy: memory lay worse in one process."""
    times = dict.fromkeys((REFERENCE, AGAIN), STEADY)
    steady = changed({**times, CANDIDATE: [candidate_ms * t for t in STEADY]})
    alone = {REFERENCE: [1.0] * 15, CANDIDATE: [alone_ms] * 15}
    latency = Latency(alone, 0.0, part=0.5, least_ms=0.1, sharp=True)
    speed = speed_of(dataclasses.replace(steady, latency=latency), ClockPolicy())
    assert speed.outcome is outcome
    assert ("isolated calls of both" in speed.note) == (outcome is SpeedOutcome.UNDECIDED)
    on_gpu = dataclasses.replace(latency, hides=True)  # there they are another matter
    speed = speed_of(dataclasses.replace(steady, latency=on_gpu), ClockPolicy())
    assert speed.outcome is not SpeedOutcome.UNDECIDED


def test_what_is_left_open_and_quicker_alone_keeps_its_figure() -> None:
    alone = {REFERENCE: [20.0] * 5, CANDIDATE: [9.6, 10.0, 10.0, 10.0, 10.4]}
    latency = Latency(alone, 8.0, part=0.1, least_ms=0.001, sharp=True)
    speed = speed_of(dataclasses.replace(MEASURED, latency=latency), ClockPolicy())
    assert speed.speedup == pytest.approx(2.0)


def test_slow_isolated_calls_of_its_choice_clear_nobody() -> None:
    """It sleeps in two rounds of five: the interval of few rounds then begins below any of them."""
    alone = {REFERENCE: [2.0] * 5, CANDIDATE: [1.9, 600.0, 1.9, 600.0, 1.9]}
    speed = speed_of(alone_for(alone), ClockPolicy())
    assert speed.outcome is SpeedOutcome.UNDECIDED and "leave open" in speed.note
    assert speed.speedup is not None and speed.speedup < 1.1


def test_batches_that_disagree_within_a_block_hide_no_figure() -> None:
    """One quick batch a block, less than a third of all: its time is honest, its ratio is not."""
    count = 12
    reference = [2.0 + 0.001 * i for i in range(count)]
    moody = {
        REFERENCE: reference,
        AGAIN: reference,
        CANDIDATE: [0.1] * 7 + [1.9] * 5,
        CANDIDATE_AGAIN: [1.9] * count,
    }
    latency = Latency({REFERENCE: [2.0] * 15, CANDIDATE: [1.9] * 15}, 0.0, 0.1, 0.001, sharp=True)
    speed = speed_of(dataclasses.replace(changed(moody), latency=latency), ClockPolicy())
    assert speed.outcome is SpeedOutcome.UNDECIDED, speed
    assert speed.speedup == pytest.approx(2.0 / 1.9)


def test_one_slow_isolated_call_is_no_overlap() -> None:
    alone = {REFERENCE: [2.0] * 5, CANDIDATE: [1.1, 1.1, 2.0, 1.1, 1.1]}
    speed = speed_of(alone_for(alone), ClockPolicy())
    assert (speed.shape, speed.outcome) == ("throughput", SpeedOutcome.FASTER)
    # Two of three are no proof either, but they leave it open.
    alone = {REFERENCE: [2.0] * 3, CANDIDATE: [1.1, 2.0, 2.0]}
    speed = speed_of(alone_for(alone), ClockPolicy())
    assert "leave open" in speed.note


@pytest.mark.parametrize(
    ("wanted", "capability", "fits"),
    [
        (None, (7, 0), True),
        ("sm_90", (9, 0), True),
        ("sm_90", (10, 0), True),
        ("sm_90", (8, 9), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
    ],
)
def test_required_hardware_is_that_or_later_and_a_suffix_means_exactly(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, capability: tuple[int, int], fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if fits:
        requirements.hardware(wanted, "cuda", torch.device("cpu"))
        return
    with pytest.raises(Refusal, match=f"requires {wanted}") as refusal:
        requirements.hardware(wanted, "cuda", torch.device("cpu"))
    assert refusal.value.status is Status.SKIPPED
