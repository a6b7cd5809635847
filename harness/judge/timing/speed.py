"""What a pair's measured blocks say: from figures to the record, with nothing measured any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.domain import CANDIDATE, REFERENCE, Baseline, Speed, SpeedOutcome
from harness.judge.timing import clock, intervals, roofline
from harness.judge.timing.clock import Blocks, ClockPolicy
from harness.judge.timing.overlap import Latency, calls_overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything that was measured of one pair. Times are milliseconds a call, unless a batch.

    Attributes:
        blocks: batches by role.
        calls: calls in a batch, by role.
        latency: of isolated calls.
        claimed_ms: what the candidate's events say; None without a GPU.
        device_ms: what the GPU was busy, by role; None where it is not known.
        overhead_ms: of a batch: what was subtracted.
        baselines: roles beside reference and candidate.
        failed: why further baselines have no figure, by name.
        work: passes of one call.
        peaks: what the device can do; None where there is no GPU.
        card: which GPU it was.
        gpu: what was seen of it meanwhile.
        notes: what the reader should know.
        repeats: whether timed outputs could be held against the reference's.
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


def speed_of(measured: Measured, policy: ClockPolicy) -> Speed:
    """Return the record of a pair's speed.

    Args:
        measured: figures.
        policy: what counts.
    """
    blocks, alone = measured.blocks, measured.latency.own_ms()
    latency = {role: float(np.median(ms)) for role, ms in alone.items()}
    throughput = blocks.figures()
    dropped = dict(sorted(blocks.discarded.items()))
    count = len(blocks.ms[CANDIDATE])
    if count < 2:
        why = ", ".join(f"{n} x {r}" for r, n in dropped.items())
        return Speed(outcome=SpeedOutcome.UNDECIDED, note=f"every block was discarded: {why}")
    floor = clock.noise_floor(blocks, policy)
    ratio, low, high = blocks.ratio(REFERENCE, CANDIDATE)
    late = measured.overhead_ms / max(throughput[CANDIDATE] * measured.calls[CANDIDATE], 1e-9)
    if late > policy.drowned_batch:
        return Speed(
            outcome=SpeedOutcome.UNDECIDED,
            note=f"no figure: starting a batch and reading its outputs takes {late:.3g} times as "
            "long as its calls. Next: a larger --size",
        )
    shape, figures, notes = "throughput", throughput, list(measured.notes)
    overlap = calls_overlap(blocks, measured.latency, measured.device_ms)
    drowned = measured.latency.is_drowned(policy.drowned_part)
    if not drowned:
        isolated = intervals.ratio_interval(alone[REFERENCE], alone[CANDIDATE], 0)
        if overlap or (overlap is None and isolated[0] < ratio):
            shape, figures, (ratio, low, high) = "latency", latency, isolated
    outcome = clock.outcome(low, high, floor)
    if drowned and overlap is not False:
        outcome = SpeedOutcome.UNDECIDED
        notes.append(
            "an isolated call takes less time than starting it and reading its outputs: it does "
            "not tell whether batched calls overlap"
        )
    elif overlap:
        notes.append("its batched calls overlap, so the speedup is that of isolated calls")
    elif overlap is None:
        outcome = SpeedOutcome.UNDECIDED
        notes.append(
            "isolated calls leave open whether its batched calls overlap: the lower of both "
            "figures is given"
        )
    elif (
        not drowned
        and measured.latency.agrees
        and outcome in (SpeedOutcome.FASTER, SpeedOutcome.SLOWER)
    ):
        # The place of its memory makes a process quick or slow; isolated calls hardly show it.
        beside = max(floor, policy.short_floor)
        if outcome is not clock.outcome(isolated[0], isolated[0], beside):
            outcome = SpeedOutcome.UNDECIDED
            notes.append("isolated calls of both do not say the same")
    throttled = sum(n for reason, n in dropped.items() if reason != clock.HOST_DELAYED)
    if throttled > policy.discard_part * (throttled + count):
        outcome = SpeedOutcome.UNDECIDED
        notes.append("most blocks were throttled")
    if not measured.repeats:
        outcome = SpeedOutcome.UNDECIDED
        notes.append(
            "the reference carries something over from call to call: timed outputs were checked "
            "for form and size alone"
        )
    if late > policy.late_part:
        outcome = SpeedOutcome.UNDECIDED
        notes.append("its batches are too short against the batch overhead")
    notes += [f"discarded: {n} x {reason}" for reason, n in dropped.items()]
    limit = None
    if measured.peaks is not None:
        limit = roofline.bound(list(measured.work), measured.peaks, figures[CANDIDATE])
        if limit.share > 1.0:
            notes.append(roofline.why_below(limit))
    baselines = [
        _baseline(name, blocks, floor)
        if shape == "throughput"
        else Baseline(name=name, note="isolated calls of it were not timed")
        for name in measured.baselines
    ]
    baselines += [Baseline(name=name, note=why) for name, why in measured.failed.items()]
    return Speed(
        outcome=outcome,
        speedup=ratio,
        low=low,
        high=high,
        reference_ms=figures[REFERENCE],
        candidate_ms=figures[CANDIDATE],
        claimed_ms=measured.claimed_ms,
        batches=count,
        calls_per_batch=measured.calls[CANDIDATE],
        note="; ".join(notes),
        shape=shape,
        reference_latency_ms=None if drowned else latency[REFERENCE],
        candidate_latency_ms=None if drowned else latency[CANDIDATE],
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


def _baseline(name: str, blocks: Blocks, floor: float) -> Baseline:
    ratio, low, high = blocks.ratio(name, CANDIDATE)
    return Baseline(
        name=name,
        outcome=clock.outcome(low, high, floor),
        speedup=ratio,
        low=low,
        high=high,
        baseline_ms=blocks.figures()[name],
    )
