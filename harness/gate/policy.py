"""Every threshold of the gate, and the comparison of two measured speedups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.domain import HarnessError, Speed

PRECISIONS = ("exact", "fp64", "fp32", "fp16", "tf32", "bf16", "worse")
"""From the most to the least precise, as the judge names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """Thresholds of the gate, all relative.

    Attributes:
        slack: a slowdown up to this is OK, however precisely it is measured.
        limit: a slowdown of this much never passes as OK.
        run_to_run: two runs of the same code on one card differ by more than their own intervals:
            other clocks, other addresses, another driver state. This is the 95 % half-width of the
            difference.
        card_to_card, other_card_limit: replace run_to_run and limit if the stored run was on
            another card of the same kind, or on an unknown one: kernels use a card differently, so
            their ratio differs from card to card.
        error_growth: the error's share of its budget may grow by this factor, because every run
            draws new inputs.
        error_share: a share of the budget below this is always OK.
    """

    slack: float = 0.0075
    limit: float = 0.03
    run_to_run: float = 0.009
    card_to_card: float = 0.035
    other_card_limit: float = 0.07
    error_growth: float = 8.0
    error_share: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Relative change of a speedup with its 95 % interval; -0.03 is 3 % slower."""

    change: float
    low: float
    high: float


def change_of(before: Speed, after: Sequence[Speed], policy: GatePolicy) -> Change:
    """Return how far the speedup moved from the stored measurement to the new ones.

    It computes with logarithms: each interval of a ratio becomes a half-width, new measurements are
    averaged, and the squares of independent half-widths add up. A run's own noise floor (the
    reference against itself) replaces ``run_to_run`` or ``card_to_card`` if it is larger. One half
    of its variance belongs to the stored run, the other to each new one, or to their card.

    Args:
        before: the stored measurement.
        after: one or more measurements of this run.
        policy: thresholds.

    Raises:
        HarnessError: a speedup or an end of its interval is missing or not positive.
    """
    stored, stored_width = _log_ratio(before)
    new = [_log_ratio(speed) for speed in after]
    if not new:
        raise HarnessError("a change needs at least one new measurement")
    count = len(new)
    floors = [speed.noise_floor or 0.0 for speed in (before, *after)]
    elsewhere = on_another_card(before, after)
    spread = max(policy.card_to_card if elsewhere else policy.run_to_run, *floors)
    variance = (
        stored_width**2
        + sum(width**2 for _, width in new) / count**2
        + spread**2 / 2
        + spread**2 / 2 / (1 if elsewhere else count)
    )
    moved = sum(ratio for ratio, _ in new) / count - stored
    width = math.sqrt(variance)
    return Change(
        change=math.expm1(moved),
        low=math.expm1(moved - width),
        high=math.expm1(moved + width),
    )


def on_another_card(before: Speed, after: Sequence[Speed]) -> bool:
    """Return whether a new measurement names another card than the stored one.

    If neither names a card (a CPU, or a GPU without an id), they count as the same card.
    """
    return any(speed.card != before.card for speed in after)


def _log_ratio(speed: Speed) -> tuple[float, float]:
    """Return the logarithm of a speedup and the half-width of its interval.

    The wider side of the interval counts.
    """
    ends = (speed.low, speed.speedup, speed.high)
    if any(end is None or not math.isfinite(end) or end <= 0 for end in ends):
        raise HarnessError(f"{ends} is no interval of a speedup")
    low, middle, high = (math.log(end) for end in ends if end is not None)
    return middle, max(high - middle, middle - low, 0.0)
