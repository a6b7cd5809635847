"""Do a candidate's batched calls overlap? Its isolated calls tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.domain import CANDIDATE, REFERENCE
from harness.judge.timing import intervals
from harness.judge.timing.clock import Blocks


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of isolated calls.

    Attributes:
        taken_ms: milliseconds by role; entries of one index ran within a moment of each other.
        over_ms: overhead contained in each of them.
        part: an isolated call of the candidate may take longer than a batched one by this part of
            the batched one's time.
        least_ms: or by this much, if that is more.
        hides: on a GPU, kernels of a batched call hide the host's work for the next call. So an
            isolated call may also take the time of its kernels longer.
        hidden_times: the candidate's kernels count up to so many times the reference's.
        sharp: more rounds can be run until they tell. So if they leave it open, it is undecided.
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
        """Return whether isolated and batched calls must have the same outcome: on a CPU."""
        return self.sharp and not self.hides

    def is_drowned(self, part: float) -> bool:
        """Return whether some call takes less than this part of the overhead subtracted from it.

        Sharp calls never do: their overhead was measured in the same rounds.
        """
        return not self.sharp and any(
            float(np.median(taken)) - self.over_ms < part * self.over_ms
            for taken in self.taken_ms.values()
        )

    def own_ms(self) -> dict[str, list[float]]:
        """Return the times of calls without their overhead, by role."""
        return {
            role: [max(ms - self.over_ms, 1e-6) for ms in taken]
            for role, taken in self.taken_ms.items()
        }


def calls_overlap(
    blocks: Blocks, latency: Latency, kernels_ms: Mapping[str, float | None]
) -> bool | None:
    """Return whether the candidate's batched calls overlap.

    Overlapping calls run side by side, or the first one computes for all. Then a batched call
    takes far less than an isolated one: by more than the isolation costs the reference.

    Args:
        blocks: of batched calls.
        latency: of isolated calls.
        kernels_ms: kernel time of a call, by role; the candidate's is a claim.

    Returns:
        None where isolated calls leave it open.
    """
    reference_ms = blocks.figures()[REFERENCE]
    ratio, low, _ = blocks.ratio(REFERENCE, CANDIDATE)
    # The host can change its pace within a few blocks. So a proof has to hold even for the longest
    # time of a batched call within the interval.
    _, least, most = _too_long(reference_ms, reference_ms / low, latency, kernels_ms)
    if least > 0.0:
        # On a host that is too busy for isolated calls the proof is worth nothing.
        return True if latency.sharp or _is_steady(latency) else None
    if latency.sharp and most > 0.0:
        return None
    # The candidate can choose in which blocks and isolated calls it is slow. So the figure itself
    # (from the ratio: a third of a candidate's times may be trimmed) must not be contradicted.
    middle, _, _ = _too_long(reference_ms, reference_ms / ratio, latency, kernels_ms)
    return None if middle > 0.0 else False


def _is_steady(latency: Latency) -> bool:
    """Return whether the reference's isolated calls vary by less than the candidate is allowed."""
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
    # Round by round: if the host changes its pace, it changes for both roles.
    longer = taken_ms[CANDIDATE] - taken_ms[REFERENCE] + reference_ms - candidate_ms
    longer += min(alone_ms - reference_ms, 0.0)
    allowed = max(latency.part * candidate_ms, latency.least_ms)
    if latency.hides:
        believed_ms = latency.hidden_times * (kernels_ms[REFERENCE] or 0.0)
        allowed += min(kernels_ms[CANDIDATE] or 0.0, believed_ms, candidate_ms)
    return intervals.interval(longer - allowed, 0)
