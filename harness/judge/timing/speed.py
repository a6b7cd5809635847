"""From a pair's measured blocks to the record of its speed. Nothing is measured here.

Two tables decide the outcome. ``_choice`` chooses between the figures of batched and of isolated
calls: the first rule that holds counts. ``_doubts`` lists what makes any figure UNDECIDED: every
rule that holds counts. Each rule has its note, which the record shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from harness.domain import CANDIDATE, REFERENCE, Baseline, Speed, SpeedOutcome
from harness.judge.timing import clock, intervals, roofline
from harness.judge.timing.clock import Blocks, ClockPolicy
from harness.judge.timing.overlap import Latency, calls_overlap

_Interval = tuple[float, float, float]
"""A speedup and the ends of its 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything that was measured of one pair. Times are milliseconds per call, unless noted.

    Attributes:
        blocks: batches by role.
        calls: calls in a batch, by role.
        latency: times of isolated calls.
        claimed_ms: what the candidate's CUDA events say; None without a GPU.
        device_ms: how long the GPU was busy, by role; None where it is not known.
        overhead_ms: batch overhead, milliseconds per batch; already subtracted from the blocks.
        baselines: roles beside reference and candidate.
        failed: why further baselines have no figure, by name.
        work: passes of one call.
        peaks: what the device can do; None without a GPU.
        card: which GPU it was.
        gpu: what NVML reported during the blocks.
        notes: further notes for the reader.
        repeats: whether timed outputs could be compared with the reference's.
    """

    blocks: Blocks
    calls: Mapping[str, int]
    latency: Latency
    claimed_ms: float | None
    device_ms: Mapping[str, float | None]
    overhead_ms: float
    baselines: Sequence[str]
    failed: Mapping[str, str]
    work: Sequence[roofline.Pass]
    peaks: roofline.Peaks | None
    card: str
    gpu: Mapping[str, Any]
    notes: Sequence[str]
    repeats: bool = True


class _Choice(NamedTuple):
    """A rule's figure: whether it is that of isolated calls, whether it can decide, the note."""

    isolated: bool
    decided: bool
    note: str


def _choice(
    batched: _Interval,
    isolated: _Interval | None,
    overlap: bool | None,
    agrees: bool,
    floor: float,
    policy: ClockPolicy,
) -> _Choice:
    """Return which figure the record gets: the first rule that holds.

    There is no speedup of isolated calls where the batch overhead hides their time. Where they
    leave it open whether batched calls overlap, ``overlap`` is None. ``agrees`` says that isolated
    and batched calls must have the same outcome.
    """
    if isolated is None and overlap is not False:
        note = (
            "an isolated call takes less time than starting it and reading its outputs: it does "
            "not tell whether batched calls overlap"
        )
        return _Choice(False, False, note)
    if overlap is True:
        note = "its batched calls overlap, so the speedup is that of isolated calls"
        return _Choice(True, True, note)
    if overlap is None:
        note = (
            "isolated calls leave open whether its batched calls overlap: the lower of both "
            "figures is given"
        )
        return _Choice(isolated is not None and isolated[0] < batched[0], False, note)
    outcome = clock.outcome(*batched[1:], floor, policy)
    if isolated and agrees and outcome in (SpeedOutcome.FASTER, SpeedOutcome.SLOWER):
        # The place of its memory makes a process quick or slow. Isolated calls hardly show that.
        alone = clock.outcome(isolated[0], isolated[0], max(floor, policy.short_floor), policy)
        if outcome is not alone:
            return _Choice(False, False, "isolated calls of both do not say the same")
    return _Choice(False, True, "")


def _doubts(
    measured: Measured, kept: int, throttled: int, late: float, policy: ClockPolicy
) -> list[str]:
    """Return the notes of all rules that hold and make the outcome UNDECIDED."""
    rules = {
        "most blocks were throttled": throttled > policy.discard_part * (throttled + kept),
        "the reference carries something over from call to call: timed outputs were checked "
        "for form and size alone": not measured.repeats,
        "its batches are too short against the batch overhead": late > policy.late_part,
    }
    return [note for note, holds in rules.items() if holds]


def speed_of(measured: Measured, policy: ClockPolicy) -> Speed:
    """Return the record of a pair's speed.

    Args:
        measured: figures.
        policy: thresholds.
    """
    blocks, own_ms = measured.blocks, measured.latency.own_ms()
    dropped = dict(sorted(blocks.discarded.items()))
    count = len(blocks.ms[CANDIDATE])
    if count < 2:
        why = ", ".join(f"{n} x {r}" for r, n in dropped.items())
        return Speed(outcome=SpeedOutcome.UNDECIDED, note=f"every block was discarded: {why}")
    figures = blocks.figures()
    late = measured.overhead_ms / max(figures[CANDIDATE] * measured.calls[CANDIDATE], 1e-9)
    if late > policy.drowned_batch:
        return Speed(
            outcome=SpeedOutcome.UNDECIDED,
            note=f"no figure: starting a batch and reading its outputs takes {late:.3g} times as "
            "long as its calls. Next: a larger --size",
        )
    floor = clock.noise_floor(blocks, policy)
    figure = batched = blocks.ratio(REFERENCE, CANDIDATE)
    isolated, latency = None, dict.fromkeys((REFERENCE, CANDIDATE))
    if not measured.latency.is_drowned(policy.drowned_part):
        isolated = intervals.ratio_interval(own_ms[REFERENCE], own_ms[CANDIDATE], 0)
        latency = {role: float(np.median(ms)) for role, ms in own_ms.items()}
    overlap = calls_overlap(blocks, measured.latency, measured.device_ms)
    choice = _choice(batched, isolated, overlap, measured.latency.agrees, floor, policy)
    if choice.isolated and isolated is not None:
        figure, figures = isolated, {role: ms for role, ms in latency.items() if ms is not None}
    throttled = sum(n for reason, n in dropped.items() if reason != clock.HOST_DELAYED)
    doubts = _doubts(measured, count, throttled, late, policy)
    decided = choice.decided and not doubts
    notes = [note for note in (*measured.notes, choice.note, *doubts) if note]
    notes += [f"discarded: {n} x {reason}" for reason, n in dropped.items()]
    limit = None
    if measured.peaks is not None:
        limit = roofline.bound(list(measured.work), measured.peaks, figures[CANDIDATE])
        if limit.share > 1.0:
            notes.append(roofline.why_below(limit))
    baselines = [
        Baseline(name=name, note="isolated calls of it were not timed")
        if choice.isolated
        else _baseline(name, blocks, floor, policy)
        for name in measured.baselines
    ]
    baselines += [Baseline(name=name, note=why) for name, why in measured.failed.items()]
    return Speed(
        outcome=clock.outcome(*figure[1:], floor, policy) if decided else SpeedOutcome.UNDECIDED,
        speedup=figure[0],
        low=figure[1],
        high=figure[2],
        reference_ms=figures[REFERENCE],
        candidate_ms=figures[CANDIDATE],
        claimed_ms=measured.claimed_ms,
        batches=count,
        calls_per_batch=measured.calls[CANDIDATE],
        note="; ".join(notes),
        shape="latency" if choice.isolated else "throughput",
        reference_latency_ms=latency[REFERENCE],
        candidate_latency_ms=latency[CANDIDATE],
        reference_device_ms=measured.device_ms[REFERENCE],
        candidate_device_ms=measured.device_ms[CANDIDATE],
        noise_floor=floor,
        late_bound=late,
        handshake_ms=measured.overhead_ms,
        discarded=sum(dropped.values()),
        capped=blocks.capped,
        baselines=tuple(baselines),
        bound=limit,
        card=measured.card,
        gpu=measured.gpu,
        blocks={role: tuple(times) for role, times in blocks.ms.items()},
    )


def _baseline(name: str, blocks: Blocks, floor: float, policy: ClockPolicy) -> Baseline:
    ratio, low, high = blocks.ratio(name, CANDIDATE)
    return Baseline(
        name=name,
        outcome=clock.outcome(low, high, floor, policy),
        speedup=ratio,
        low=low,
        high=high,
        baseline_ms=blocks.figures()[name],
    )
