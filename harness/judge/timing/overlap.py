"""What isolated calls say of batched calls: whether batched calls overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.domain import CANDIDATE, REFERENCE
from harness.judge.timing import intervals
from harness.judge.timing.clock import Blocks


@dataclass(frozen=True, slots=True)
class Latency:
    """What calls take that are alone.

    Attributes:
        taken_ms: by role, in pairs that ran within a moment of each other.
        over_ms: how much of that is no part of a call.
        part: a candidate's calls may take so much longer, of what they take back to back, before
            that says something.
        least_ms: and this much.
        hides: kernels of a batched call hide the host's work for the next one: what its
            kernels take an honest call may take longer, too.
        hidden_times: but not more than so many times what the reference's take.
        sharp: there can be as many as it takes to tell: what they leave open is not decided.
    """

    taken_ms: Mapping[str, Sequence[float]]
    over_ms: float
    part: float
    least_ms: float
    hides: bool = False
    hidden_times: float = 2.0
    sharp: bool = False

    @property
    def agrees(self) -> bool:
        """Return whether isolated calls say of two solutions what batched calls should say."""
        return self.sharp and not self.hides

    def is_drowned(self, part: float) -> bool:
        """Return whether a call takes less than this part of what is subtracted from its time.

        Sharp ones are not: what is subtracted from them was measured in the same rounds.
        """
        return not self.sharp and any(
            float(np.median(taken)) - self.over_ms < part * self.over_ms
            for taken in self.taken_ms.values()
        )

    def own_ms(self) -> dict[str, list[float]]:
        """Return what calls take themselves, by role."""
        return {
            role: [max(ms - self.over_ms, 1e-6) for ms in taken]
            for role, taken in self.taken_ms.items()
        }


def calls_overlap(
    blocks: Blocks, latency: Latency, kernels_ms: Mapping[str, float | None]
) -> bool | None:
    """Return whether the candidate's batched calls overlap.

    They run side by side, or the first has seen the inputs of all. Back to back a call takes far
    less then than one that is alone: by more than being alone costs, which the reference shows.

    In a few blocks the host can change its pace: so the most that the candidate's calls may take is
    held against it. But whose figure isolated calls contradict, on the whole, is not cleared: it
    chooses, perhaps, in which blocks and which of these calls it is slow.

    Args:
        blocks: of batched calls.
        latency: of isolated calls.
        kernels_ms: of a call, by role; what the candidate's take is a claim.

    Returns:
        None where isolated calls leave it open.
    """
    reference_ms = blocks.figures()[REFERENCE]
    ratio, low, _ = blocks.ratio(REFERENCE, CANDIDATE)
    _, least, most = _too_long(reference_ms, reference_ms / low, latency, kernels_ms)
    if least > 0.0:
        return True if latency.sharp or _is_steady(latency) else None
    # The ratio is the figure: of a candidate's times another third may be trimmed.
    middle, _, _ = _too_long(reference_ms, reference_ms / ratio, latency, kernels_ms)
    return None if middle > 0.0 or (latency.sharp and most > 0.0) else False


def _is_steady(latency: Latency) -> bool:
    """Return whether the reference's isolated calls agree with each other as far as is needed."""
    _, low, high = intervals.interval(np.asarray(latency.taken_ms[REFERENCE]), 0)
    own_ms = (low + high) / 2 - latency.over_ms
    return (high - low) / 2 <= max(latency.part * own_ms, latency.least_ms)


def _too_long(
    reference_ms: float,
    candidate_ms: float,
    latency: Latency,
    kernels_ms: Mapping[str, float | None],
) -> tuple[float, float, float]:
    """Return by how much the candidate's isolated calls are slower than is allowed.

    Args:
        reference_ms: of a batched call.
        candidate_ms: the same.
        latency: of isolated calls.
        kernels_ms: by role.

    Returns:
        Milliseconds beyond what is allowed, with their 95 % interval.
    """
    taken_ms = {role: np.asarray(ms) for role, ms in latency.taken_ms.items()}
    alone_ms = float(intervals.middle_mean(taken_ms[REFERENCE])) - latency.over_ms
    # Round by round: where the host changes its pace, both change theirs.
    longer = taken_ms[CANDIDATE] - taken_ms[REFERENCE] + reference_ms - candidate_ms
    longer += min(alone_ms - reference_ms, 0.0)
    allowed = max(latency.part * candidate_ms, latency.least_ms)
    if latency.hides:
        believed_ms = latency.hidden_times * (kernels_ms[REFERENCE] or 0.0)
        allowed += min(kernels_ms[CANDIDATE] or 0.0, believed_ms, candidate_ms)
    return intervals.interval(longer - allowed, 0)
