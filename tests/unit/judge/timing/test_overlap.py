"""What isolated calls say of batched calls."""

from __future__ import annotations

import numpy as np
import pytest

from harness.domain import CANDIDATE, REFERENCE
from harness.judge.timing.clock import Blocks
from harness.judge.timing.overlap import Latency, calls_overlap

ROLES = (REFERENCE, CANDIDATE)


def said(throughput_ms: dict[str, float], latency: Latency) -> bool | None:
    """Return what is said of blocks that all take as long."""
    blocks = Blocks(ms={role: [ms] * 5 for role, ms in throughput_ms.items()})
    return calls_overlap(blocks, latency, dict.fromkeys(ROLES))


def overlaps(throughput_ms: dict[str, float], alone_ms: dict[str, list[float]]) -> bool | None:
    return said(throughput_ms, Latency(alone_ms, 0.0, part=0.25, least_ms=0.1))


def test_overlapping_calls_are_noticed() -> None:
    reference = {REFERENCE: 2.0, CANDIDATE: 0.5}
    assert overlaps(reference, {REFERENCE: [2.02] * 5, CANDIDATE: [2.0] * 5})
    assert overlaps(reference, {REFERENCE: [2.02] * 5, CANDIDATE: [0.52] * 5}) is False


def test_isolated_calls_that_are_slow_now_and_then_are_no_overlap() -> None:
    """After standing still a call finds cold caches: it takes 0.4 to 0.7 ms more (CPU)."""
    rng = np.random.default_rng(5)
    flagged, caught = 0, 0
    for _ in range(200):
        cold = {role: list(0.4 + 0.3 * rng.random(15)) for role in ROLES}
        honest = {role: [1.0 + c for c in cold[role]] for role in ROLES}
        flagged += overlaps({REFERENCE: 1.0, CANDIDATE: 0.9}, honest) is not False
        caught += overlaps({REFERENCE: 1.0, CANDIDATE: 0.2}, honest) is True
    assert flagged <= 4
    assert caught >= 160


def test_a_host_that_changes_its_pace_hides_no_overlap() -> None:
    """(1, 128) on an H200: a round took both 37 us or both 63; unpaired, 10 more were 6 to 12."""
    rng = np.random.default_rng(2)
    caught = flagged = 0
    for _ in range(100):
        pace = rng.choice([0.037, 0.063], 27, p=[0.3, 0.7])
        reference, candidate = (pace + 0.001 * rng.standard_normal(27) for _ in range(2))
        alone = {REFERENCE: list(reference), CANDIDATE: list(candidate + 0.004)}
        latency = Latency(alone, 0.03, 0.1, 0.0015, sharp=True)
        caught += said({REFERENCE: 0.017, CANDIDATE: 0.013}, latency) is True
        flagged += said({REFERENCE: 0.017, CANDIDATE: 0.021}, latency) is not False
    assert (caught, flagged) == (100, 0)


@pytest.mark.parametrize(("longer_ms", "together"), [(0.0, False), (0.0015, None), (0.006, True)])
def test_what_isolated_calls_leave_open_is_not_said(
    longer_ms: float, together: bool | None
) -> None:
    """Who works ahead by as much as noise may hide is not called FASTER for it."""
    noise = 0.001 * np.random.default_rng(4).standard_normal(30)
    alone = {REFERENCE: [0.05] * 30, CANDIDATE: list(0.05 + longer_ms + noise)}
    latency = Latency(alone, 0.03, 0.1, 0.0015, sharp=True)
    assert said({REFERENCE: 0.017, CANDIDATE: 0.017}, latency) is together


def test_a_host_too_busy_for_isolated_calls_accuses_nobody() -> None:
    """Batches of one beside 16 compilers: both took 5 ms more or less, for calls of 0.4 (H200)."""
    reference = [3.4, -4.2, 0.8, -4.0, 0.3, -3.1, 1.9, 0.6, -4.1, 12.0, 0.9, 1.2, -4.0, -1.2, 1.5]
    candidate = [-4.4, 0.9, 6.1, -0.6, 6.4, 4.9, 4.2, -3.0, -1.3, 6.2, 0.8, 7.1, 4.7, 5.0, 6.8]
    busy = {REFERENCE: [5.5 + ms for ms in reference], CANDIDATE: [5.5 + ms for ms in candidate]}
    latency = Latency(busy, 5.5, part=0.25, least_ms=0.1)
    assert said({REFERENCE: 0.468, CANDIDATE: 0.122}, latency) is None
    steady = {REFERENCE: [6.0] * 15, CANDIDATE: [6.0] * 15}
    assert said({REFERENCE: 0.468, CANDIDATE: 0.122}, Latency(steady, 5.5, 0.25, 0.1)) is True


def test_waiting_that_costs_the_reference_as_much_is_no_overlap() -> None:
    short = {REFERENCE: 0.010, CANDIDATE: 0.008}
    assert overlaps(short, {REFERENCE: [0.030] * 3, CANDIDATE: [0.028] * 3}) is False
