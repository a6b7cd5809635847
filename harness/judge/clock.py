"""The judge's clock: batches of distinct inputs, run in turn by reference and candidate.

The figure of record is taken here, around *go* and *done*; what a worker says about time is a
claim. Outputs to check are chosen after *done*, so a call that was skipped or answered from a
cache shows as a wrong output.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.domain import HarnessError, Speed, SpeedOutcome

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockPolicy:
    """Thresholds of the clock.

    Attributes:
        cap_s: seconds for all blocks of one pair.
        min_blocks, max_blocks: block pairs.
        target_half_width: stop when the interval of the ratio is this narrow (relative).
        same_within: ratios nearer to 1 than this are SAME; the first form's fixed noise floor.
        batch_ms: a batch should take this long.
        claim_tolerance: how far a claim may lie above the clock before the pair is suspect.
    """

    cap_s: float = 12.0
    min_blocks: int = 5
    max_blocks: int = 40
    target_half_width: float = 0.005
    same_within: float = 0.02
    batch_ms: float = 200.0


@dataclass(slots=True)
class Blocks:
    """Milliseconds per call, one entry per block pair."""

    reference_ms: list[float] = field(default_factory=list)
    candidate_ms: list[float] = field(default_factory=list)
    claimed_ms: list[float] = field(default_factory=list)


def measure(
    run_reference: Callable[[], float],
    run_candidate: Callable[[], float],
    calls: int,
    policy: ClockPolicy,
    order: random.Random,
    now: Callable[[], float] = time.monotonic,
) -> tuple[Blocks, float, float, float]:
    """Run interleaved blocks until the ratio is narrow enough or the time is up.

    Args:
        run_reference: runs one batch, returns its milliseconds by the judge's clock.
        run_candidate: the same for the candidate.
        calls: calls per batch.
        policy: when to stop.
        order: decides who goes first in each block.
        now: seconds; tests inject a fake one.

    Returns:
        Blocks, ratio of medians, and its interval's ends.
    """
    blocks = Blocks()
    started = now()
    ratio = low = high = float("nan")
    for done in range(1, policy.max_blocks + 1):
        if order.random() < 0.5:
            reference, candidate = run_reference(), run_candidate()
        else:
            candidate, reference = run_candidate(), run_reference()
        blocks.reference_ms.append(reference / calls)
        blocks.candidate_ms.append(candidate / calls)
        if done < policy.min_blocks:
            continue
        ratio, low, high = ratio_interval(
            blocks.reference_ms, blocks.candidate_ms, order.getrandbits(32)
        )
        if (high - low) / 2 / ratio < policy.target_half_width:
            break
        if now() - started > policy.cap_s:
            break
    return blocks, ratio, low, high


def ratio_interval(
    reference_ms: Sequence[float], candidate_ms: Sequence[float], seed: int
) -> tuple[float, float, float]:
    """Return the ratio of medians and its 95 % bootstrap interval over block pairs.

    Raises:
        HarnessError: fewer than two blocks, or lists of different length.
    """
    if len(reference_ms) != len(candidate_ms) or len(reference_ms) < 2:
        raise HarnessError("a ratio needs at least two block pairs")
    a, b = np.asarray(reference_ms), np.asarray(candidate_ms)
    picks = np.random.default_rng(seed).integers(0, len(a), (_RESAMPLES, len(a)))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(a) / np.median(b)), float(low), float(high)


def outcome(low: float, high: float, policy: ClockPolicy) -> SpeedOutcome:
    """Return what an interval of the speedup says.

    FASTER or SLOWER only if the whole interval lies beyond the noise floor, SAME only if the
    whole interval lies within it.
    """
    if low > 1 + policy.same_within:
        return SpeedOutcome.FASTER
    if high < 1 - policy.same_within:
        return SpeedOutcome.SLOWER
    if low >= 1 - policy.same_within and high <= 1 + policy.same_within:
        return SpeedOutcome.SAME
    return SpeedOutcome.UNDECIDED


def speed(
    blocks: Blocks,
    ratio: float,
    low: float,
    high: float,
    calls: int,
    policy: ClockPolicy,
    note: str,
) -> Speed:
    """Return the record of a measurement."""
    claims = blocks.claimed_ms
    return Speed(
        outcome=outcome(low, high, policy),
        speedup=ratio,
        low=low,
        high=high,
        reference_ms=float(np.median(blocks.reference_ms)),
        candidate_ms=float(np.median(blocks.candidate_ms)),
        claimed_ms=float(np.median(claims)) if claims else None,
        batches=len(blocks.reference_ms),
        calls_per_batch=calls,
        note=note,
    )
