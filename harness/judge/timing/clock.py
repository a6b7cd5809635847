"""Blocks in which every role runs its batches, their statistics, and the thresholds for both.

Nothing here knows processes or devices. The caller passes the function that runs a batch and the
clock, so tests can inject both. Each block gives a ratio of batches that ran within a moment of
each other. The figure is the trimmed mean of these ratios, with a bootstrap interval over the
blocks. It is compared with the reference's ratio to itself. Reference and candidate run twice per
block. A worker that runs twice in a row starts with warm caches: both do so equally often.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.domain import CANDIDATE, REFERENCE, SpeedOutcome
from harness.judge.timing import intervals

_FURTHER = 1.1
"""The interval is computed again when there are so many times as many blocks as before: resampling
takes milliseconds in which nothing is measured."""
_BATCHES_PART = 0.8
"""Part of a block's time that its batches take; the rest lies between them."""
AGAIN, CANDIDATE_AGAIN = "again", "candidate again"
_SECOND = {REFERENCE: AGAIN, CANDIDATE: CANDIDATE_AGAIN}
"""The name of a role's second batch in a block."""
_FIRST = {second: role for role, second in _SECOND.items()}
HOST_DELAYED = "the host was busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockPolicy:
    """Thresholds of a speed outcome, and of what is checked while it is measured.

    Attributes:
        cap_s: seconds for all blocks of one pair.
        min_blocks, max_blocks: blocks. In each block reference and candidate run twice, every
            further role once.
        target_half_width: measuring ends when the interval of the ratio is this narrow (relative).
            The batch overhead, which is known only at the end, is still contained in it then.
        least_floor: least noise floor: ratios nearer to 1 are never called FASTER or SLOWER,
            however well the reference agrees with itself.
        short_floor: the same for short calls. A reference of 10 us was 0.96 to 1.02 times as fast
            as its own copy (20 evaluations on two cores, 2026-11-29). That differs from process to
            process, so more blocks do not help.
        same_floor: SAME needs a noise floor of at most this. On a noisier machine a slower solution
            would lie within the floor.
        batch_ms, least_batch_ms: a batch takes the first, less if min_blocks would not fit into
            cap_s, but never less than the second.
        short_call_ms, short_batch_ms: if the reference's calls take less than the first, the host
            decides how long they take, and its pace changes within a second. Their batches take
            the second: more blocks, each within one pace, outweigh a larger part of overhead.
        latency_batches, latency_s, latency_least: reference and candidate each run at most so many
            batches of one call, for about so many seconds, but at least the last.
        claim_part, claim_ms, claim_share: the worker's CUDA events lie if they differ from the
            clock by more than the first (relative) and the second, in more than this share of the
            batches. One hiccup of the host is no lie.
        overlap_part, overlap_ms: batched calls overlap if isolated calls are slower by more than
            the reference explains and by more than both (relative, milliseconds). Medians of
            isolated calls of the same code differed by up to 0.03 ms (six evaluations on two
            cores, 2026-11-29), and by 0.2 ms while only the candidate was treated as it is.
        overlap_gpu_ms: overlap_ms on a GPU. There kernels hide the host's work for the next batched
            call: that of a torch.compile call took 0.17 ms (H200, 2026-11-30).
        isolated_below_ms, isolated_bytes: isolated calls get their inputs one at a time if the
            reference is quicker than the first and a call's inputs and outputs are no larger than
            the second. For all others batches of one call tell enough.
        isolated_least, isolated_rounds, isolated_s: take the place of latency_least,
            latency_batches and latency_s there. After the least, rounds end when they tell.
        isolated_calls, isolated_first: calls of a round, about, and how many before them do not
            count: the worker wakes up.
        isolated_checked: calls of a round whose outputs are checked.
        isolated_part, isolated_ms: take the place of overlap_part and overlap_ms there; the second
            on a CPU. Isolated calls of the same code took no longer than batched ones (69
            references on two cores, 2026-11-29).
        isolated_gpu_ms: isolated_ms on a GPU. Isolated calls of references and of honest solutions
            took at most 1 us more than is explained, surely -0.4 us (35 evaluations on H200s,
            2026-11-29).
        hidden_times: the candidate's kernel time is a claim. It counts up to so many times the
            reference's.
        profiled_ms: the profiler measures kernel times of shorter calls, since their host work may
            hide the kernels. For longer ones CUDA events do.
        drowned_batch: no figure is given if the batch overhead takes so many times as long as the
            calls.
        drowned_part: a time below this part of the overhead subtracted from it is no figure: the
            overhead varies by as much. Batches of one call of 0.08 ms had an overhead of 1.0 ms,
            and the rest came out as zero (H200, 2026-11-30).
        discard_part: the speed is UNDECIDED if more than this part of the blocks were throttled. If
            more than this part were host-delayed, that is what this host is like: they count.
        claimed_part: at most this part of the blocks (or one) is put aside on the candidate's word.
        late_part: the speed is UNDECIDED if the batch overhead is more than this part of the
            candidate's calls: a candidate that is slow until its calls are counted gets short
            batches.
        host_delay_part, host_delay_ms: a batch is host-delayed if the clock ran on by more than
            both (relative, milliseconds) after its events ended, against the role's best batch:
            the GPU was done, and the host did not notice. Batches of short calls never are: all of
            their time is the host's, and there are enough blocks to trim.
        busy_s, busy_times, busy_ms: the GPU is busy while overwriting a buffer takes longer than so
            many times the quickest so far and so many milliseconds more. If it stays busy for so
            many seconds, although the worker stands, the candidate left work behind: TAMPERED.
        new_memory_batches, new_memory_counted: so many batches of the candidate are run again if
            its outputs lie in memory that the judge did not know yet: while batches are prepared,
            and when they count. The candidate may choose which.
        outputs_read, large_outputs_read: outputs of a batch whose elements are read; the second if
            they take gigabytes.
        whole_part: part of the batches of which one output is read whole, if outputs take
            gigabytes. Of all others it is read in every batch.
        element_part, element_size_part: elements may be off, root mean square, by the first part of
            their tensor's spread, but at least by the second part of its size and at most by the
            first. They show work that is late, stale or left out. Precision is judged by whole
            outputs: coarse formats round by up to a hundredth of the size.
        gradients_part: in this part of the batches, and in the first, gradients are held against
            the oracle's. In float64 they take three times as long as outputs.
        state_part: after this part of the blocks, and after the last, one more batch shows the
            state that the candidate's calls leave.
        moved_part, moved_eps: that state may be off by the first part of what the batch changed,
            and by so many units of rounding of its size. Sums of other orders differ by less, an
            update that is left out by all.
        plausible_times: if the reference never gives the same again, the size of outputs may differ
            by this factor.
        alike_part: two outputs of the reference are the same if they differ by no more than this,
            root mean square.
    """

    cap_s: float = 8.0
    min_blocks: int = 12
    max_blocks: int = 500
    target_half_width: float = 0.005
    least_floor: float = 0.005
    short_floor: float = 0.03
    same_floor: float = 0.03
    batch_ms: float = 200.0
    least_batch_ms: float = 50.0
    short_call_ms: float = 0.05
    short_batch_ms: float = 12.0
    latency_batches: int = 15
    latency_s: float = 1.0
    latency_least: int = 5
    claim_part: float = 0.10
    claim_ms: float = 0.5
    claim_share: float = 0.8
    overlap_part: float = 0.25
    overlap_ms: float = 0.1
    overlap_gpu_ms: float = 0.25
    isolated_below_ms: float = 0.4
    isolated_bytes: int = 4 << 20
    isolated_least: int = 15
    isolated_rounds: int = 150
    isolated_s: float = 6.0
    isolated_calls: int = 40
    isolated_first: int = 10
    isolated_checked: int = 4
    isolated_part: float = 0.1
    isolated_ms: float = 0.0003
    isolated_gpu_ms: float = 0.0015
    hidden_times: float = 2.0
    profiled_ms: float = 1.0
    drowned_batch: float = 1.0
    drowned_part: float = 0.25
    discard_part: float = 0.5
    claimed_part: float = 0.1
    late_part: float = 0.25
    host_delay_part: float = 0.01
    host_delay_ms: float = 0.5
    busy_s: float = 3.0
    busy_times: float = 3.0
    busy_ms: float = 0.2
    new_memory_batches: int = 20
    new_memory_counted: int = 2
    outputs_read: int = 4
    large_outputs_read: int = 2
    whole_part: float = 0.25
    element_part: float = 0.05
    element_size_part: float = 0.01
    gradients_part: float = 1 / 8
    state_part: float = 1 / 4
    moved_part: float = 0.25
    moved_eps: float = 64.0
    plausible_times: float = 4.0
    alike_part: float = 1e-3


@dataclass(slots=True)
class Blocks:
    """Measured blocks.

    Attributes:
        ms: milliseconds per call by role, one entry per kept block; with the batch overhead,
            until ``less`` subtracts it.
        discarded: number of discarded blocks, by reason.
        host_delayed: blocks put aside, and whether a trusted worker reported the delay; empty when
            measuring has ended.
        capped: whether time ran out before the interval was narrow enough.
        short: whether their calls are short.
    """

    ms: dict[str, list[float]] = field(default_factory=dict)
    discarded: dict[str, int] = field(default_factory=dict)
    host_delayed: list[tuple[Mapping[str, float], bool]] = field(default_factory=list)
    capped: bool = False
    short: bool = False

    def keep(self, block: Mapping[str, float]) -> None:
        """Add one block's milliseconds per call, by role."""
        for role, milliseconds in block.items():
            self.ms[role].append(milliseconds)

    def figures(self) -> dict[str, float]:
        """Return milliseconds per call by role, of roles with kept blocks."""
        return {
            role: float(intervals.middle_mean(np.ravel(self._batches(role))))
            for role, times in self.ms.items()
            if times
        }

    def less(self, overhead_ms: Mapping[str, float]) -> None:
        """Subtract the batch overhead from every batch: milliseconds per call, by role."""
        for name, times in self.ms.items():
            off = overhead_ms[_FIRST.get(name, name)]
            times[:] = [max(ms - off, 1e-9) for ms in times]

    def ratio(self, role: str, over: str, seed: int = 0) -> tuple[float, float, float]:
        """Return the time of role over the time of another, with its interval."""
        if over == _SECOND.get(role):
            return intervals.ratio_interval(self.ms[role], self.ms[over], seed)
        return intervals.ratio_interval(self._batches(role), self._batches(over), seed)

    def _batches(self, role: str) -> np.ndarray:
        """Return a role's batches, one row a block."""
        columns = [self.ms[role]]
        if second := self.ms.get(_SECOND.get(role, "")):
            columns.append(second)
        return np.column_stack(columns)


def calls_by_role(
    per_call_ms: Mapping[str, float], most: int, policy: ClockPolicy
) -> dict[str, int]:
    """Return how many calls a batch of each role should have, so that all take equally long.

    With equally many calls, a reference that takes four times as long would take most of the time,
    and few blocks would be left.

    Args:
        per_call_ms: estimates by role; each has a batch in a block, reference and candidate two.
        most: so many calls there is room for.
        policy: how long batches and all blocks should take.
    """
    in_time_ms = _BATCHES_PART * policy.cap_s * 1e3 / policy.min_blocks / (len(per_call_ms) + 2)
    batch_ms = min(policy.batch_ms, max(policy.least_batch_ms, in_time_ms))
    if short_calls(per_call_ms, policy):
        batch_ms = policy.short_batch_ms
    return {
        role: max(1, min(most, round(batch_ms / max(ms, 1e-3)))) for role, ms in per_call_ms.items()
    }


def short_calls(per_call_ms: Mapping[str, float], policy: ClockPolicy) -> bool:
    """Return whether the reference's calls are so short that the host's pace decides."""
    return per_call_ms[REFERENCE] < policy.short_call_ms


def measure(
    run: Callable[[str], float],
    roles: Sequence[str],
    policy: ClockPolicy,
    order: random.Random,
    *,
    prepare: Callable[[], None] = lambda: None,
    condition: Callable[[], str] = lambda: "",
    host_delayed: Callable[[], Collection[str]] = tuple,
    now: Callable[[], float] = time.monotonic,
) -> Blocks:
    """Run blocks until the candidate's ratio is narrow enough or the time is up.

    Args:
        run: runs one batch of a role, returns its milliseconds per call.
        roles: REFERENCE, CANDIDATE, and others.
        policy: when to stop.
        order: source of the order of batches in a block.
        prepare: called before each block.
        condition: called after each block; a reason to discard it, or nothing.
        host_delayed: called after each block; roles whose batches were host-delayed. Such blocks
            are put aside, unless most are: then they count, since this host is like that. Those
            that only the candidate reports are put aside while they are few: it could choose its
            slow ones.
        now: seconds.
    """
    batches = {role: role for role in roles} | {_SECOND[r]: r for r in roles if r in _SECOND}
    blocks = Blocks(ms={name: [] for name in batches})
    began, enough = now(), policy.min_blocks
    while True:
        prepare()
        sequence = list(batches)
        order.shuffle(sequence)
        block = {name: run(batches[name]) for name in sequence}
        reason, delayed = condition(), set(host_delayed())
        late = now() - began > policy.cap_s
        if reason:
            blocks.discarded[reason] = blocks.discarded.get(reason, 0) + 1
        elif delayed:
            blocks.host_delayed.append((block, delayed != {CANDIDATE}))
        else:
            blocks.keep(block)
        kept, aside = len(blocks.ms[CANDIDATE]), len(blocks.host_delayed)
        if kept >= enough and kept > aside:
            if _narrow(blocks, policy):
                break
            enough = math.ceil(kept * _FURTHER)
        if kept + aside >= policy.max_blocks or (late and (kept + aside >= 2 or reason)):
            blocks.capped = True
            break
    _decide_host_delayed(blocks, policy)
    return blocks


def _decide_host_delayed(blocks: Blocks, policy: ClockPolicy) -> None:
    aside, blocks.host_delayed = blocks.host_delayed, []
    count = len(blocks.ms[CANDIDATE]) + len(aside)
    claimed = [block for block, believed in aside if not believed]
    if len(claimed) > max(1, policy.claimed_part * count):
        aside = [(block, believed) for block, believed in aside if believed]
        for block in claimed:
            blocks.keep(block)
    if count - len(aside) < 2 or len(aside) > policy.discard_part * count:
        for block, _ in aside:
            blocks.keep(block)
    elif aside:
        blocks.discarded[HOST_DELAYED] = len(aside)


def _narrow(blocks: Blocks, policy: ClockPolicy) -> bool:
    for other in blocks.ms:
        if other not in (CANDIDATE, CANDIDATE_AGAIN, AGAIN):
            ratio, low, high = blocks.ratio(other, CANDIDATE)
            if (high - low) / 2 / ratio >= policy.target_half_width:
                return False
    return True


def noise_floor(blocks: Blocks, policy: ClockPolicy) -> float:
    """Return how far the reference strays from itself in the same blocks, relative.

    For short calls it is no less than the difference of two processes of the same code.
    """
    _, low, high = blocks.ratio(REFERENCE, AGAIN)
    least = policy.short_floor if blocks.short else policy.least_floor
    return max(least, abs(low - 1), abs(high - 1))


def outcome(low: float, high: float, floor: float, policy: ClockPolicy) -> SpeedOutcome:
    """Return the outcome that an interval of the speedup supports.

    FASTER and SLOWER need the whole interval beyond the noise floor. SAME needs the whole interval
    within a floor that is low: on a noisy machine nothing can be called the same.
    """
    if low > 1 + floor:
        return SpeedOutcome.FASTER
    if high < 1 - floor:
        return SpeedOutcome.SLOWER
    if low >= 1 - floor and high <= 1 + floor and floor <= policy.same_floor:
        return SpeedOutcome.SAME
    return SpeedOutcome.UNDECIDED


def lying(
    total_ms: Sequence[float],
    overhead_ms: float,
    claimed_ms: Sequence[float | None],
    policy: ClockPolicy,
    *,
    alone: bool = True,
) -> str:
    """Return why the worker's CUDA events are a lie; empty if they are none.

    Events lie between *go* and *done*. So they cannot show more time than the judge's clock. That
    they show less is a proof only while no other process makes the batch overhead longer.

    Args:
        total_ms: per batch, the batch overhead included.
        overhead_ms: the batch overhead.
        claimed_ms: times of the same batches by the worker's events.
        policy: how far honest events may differ from the clock. Most batches must disagree, in one
            direction.
        alone: no other process has used the GPU meanwhile.
    """
    pairs = [(t, c) for t, c in zip(total_ms, claimed_ms, strict=True) if c is not None]
    if len(pairs) < 2:
        return ""
    own = [t - overhead_ms for t, _ in pairs]
    less = [
        o - c > max(policy.claim_part * o, policy.claim_ms)
        for o, (_, c) in zip(own, pairs, strict=True)
    ]
    more = [c - t > max(policy.claim_part * t, policy.claim_ms) for t, c in pairs]
    for found, word in ((less if alone else [], "less"), (more, "more")):
        off = [f for f in found if f]
        if len(off) > policy.claim_share * len(pairs):
            clocked = float(np.median(own if word == "less" else [t for t, _ in pairs]))
            claimed = float(np.median([c for _, c in pairs]))
            return (
                f"its CUDA events claim {claimed:.3g} ms for batches that take {clocked:.3g} ms by "
                f"the judge's clock: {word} in {len(off)} of {len(pairs)} batches"
            )
    return ""


def is_host_delayed(
    clocked_ms: float, beyond_ms: float, best_ms: float, policy: ClockPolicy
) -> bool:
    """Return whether the host noticed late that the GPU had done a batch.

    Args:
        clocked_ms: the batch by the judge's clock.
        beyond_ms: clock time less event time.
        best_ms: the least of that in this role's batches.
        policy: thresholds.
    """
    return beyond_ms - best_ms > max(policy.host_delay_ms, policy.host_delay_part * clocked_ms)
