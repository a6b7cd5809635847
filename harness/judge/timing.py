"""Times reference, candidate and baselines against each other, and checks what was timed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from harness import bell
from harness.domain import HarnessError, Speed, Status
from harness.judge import clock, cores, nvml, state
from harness.judge.baton import Baton, Timed
from harness.judge.clock import CANDIDATE, REFERENCE
from harness.judge.compare import Mismatch
from harness.judge.oracle import Oracle
from harness.judge.precision import Standard
from harness.judge.problem import InvalidReference, Problem
from harness.judge.remote import RemoteWorker, WorkerFailed
from harness.judge.speed import Measured, speed_of
from harness.judge.staging import Stage
from harness.judge.survey import settle, survey
from harness.judge.timed_outputs import OutputCheck, TimedWrongly

_FLUSH_TIMES = 4
_HOST_BUDGET_BYTES = 512 << 20
_SPARE_BYTES = 2 << 30
_BUSY_S = 3.0
_UNSEEN, _UNSEEN_COUNTED = 20, 2
"""Batches of a candidate that are run again because outputs lay in memory new to the judge: while
they are prepared, and when they count. It may choose which."""
_PROFILED_MS = 1.0
"""Below this a call's host time may hide its kernels' time: the profiler separates them."""
_COMPILE_S = 300.0
"""torch.compile may take its time for the first call; nobody else gets more."""


class _BaselineFailed(Exception):
    """A baseline's worker failed in a batch."""

    def __init__(self, role: str, failed: WorkerFailed) -> None:
        super().__init__(str(failed))
        self.role = role


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a pair is timed.

    Attributes:
        mode: forward, eval or train.
        seed: master seed.
        precision: what the candidate is held to.
        standard: bounds for outputs that are checked whole.
        warm_l2: let inputs stay in the L2 cache.
        timeout_s: for one batch.
    """

    mode: str
    seed: int
    precision: str
    standard: Standard
    warm_l2: bool
    timeout_s: float


@dataclass(slots=True)
class _Log:
    """Batches of one role, hand-shake included."""

    total_ms: list[float] = field(default_factory=list)
    claimed_ms: list[float | None] = field(default_factory=list)


class Stopwatch:
    """One pair's timing on one device.

    Args:
        problem: on the device.
        oracle: what sampled outputs are held against.
        workers: loaded, by role: REFERENCE, CANDIDATE, and baselines under their own names.
        match: how the candidate's state was matched.
        setting: how.
        policy: when to stop and what counts.
        failed: why further baselines could not be loaded.
        progress: told of each step.
    """

    def __init__(
        self,
        problem: Problem,
        oracle: Oracle,
        workers: Mapping[str, RemoteWorker],
        match: state.Match,
        setting: Setting,
        policy: clock.ClockPolicy,
        failed: Mapping[str, str],
        progress: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._progress = progress
        self._problem = problem
        self._oracle = oracle
        self._match = match
        self._setting = setting
        self._policy = policy
        # The order of calls and the choice of checked outputs are secret: the system's entropy,
        # not the seed, which is published with the verdict.
        self._secret = random.SystemRandom()
        self._on_gpu = problem.device.type == "cuda"
        self._batons = {
            role: Baton(
                role,
                worker,
                problem.device,
                timeout_s=setting.timeout_s,
            )
            for role, worker in workers.items()
        }
        self._failed = dict(failed)
        self._running = CANDIDATE
        self._logs = {role: _Log() for role in workers}
        self._quiet_ms = float("inf")
        self._best_beyond_ms: dict[str, float] = {}
        self._jolted: set[str] = set()
        self._seats = ""
        self._calls: dict[str, int] = {}
        self._short = False
        # What is done for the candidate's sake is done for everybody in blocks of short calls: it
        # moves their caches by as much as the difference that is looked for.
        self._alike = False
        self._unchecked: list[tuple[Timed, Mapping[int, Any]]] = []
        self._reruns = _UNSEEN
        self._watch = nvml.GpuWatch(problem.device)

    def run(self) -> Speed:
        """Measure, and return the record.

        Raises:
            TimedWrongly: a checked output of a timed batch is wrong, or a claim is a lie.
            WorkerFailed: the candidate failed while it was timed.
            InvalidReference: the reference did.
            HarnessError: there is no memory to time even single calls.
        """
        seat = os.sched_getaffinity(0)
        try:
            return self._measured()
        except WorkerFailed as failed:
            if self._running == CANDIDATE:
                raise
            if failed.status is Status.OUT_OF_MEMORY:
                raise HarnessError(
                    f"no memory to time the reference beside the candidate: {failed}. "
                    "Next: a smaller --size, or --baselines eager"
                ) from failed
            raise InvalidReference(f"while it was timed, the reference {failed}") from failed
        finally:
            cores.stand_up(seat)

    def _measured(self) -> Speed:
        self._progress("stage")
        self._send_state()
        setting, problem = self._setting, self._problem
        self._survey = survey(problem, setting.mode, setting.seed, setting.precision)
        self._stage = Stage(problem, self._survey.draw_grads, setting.seed)
        self._checks = OutputCheck(
            problem,
            self._oracle,
            self._stage,
            self._match,
            setting.standard,
            setting.mode,
            repeats=self._survey.repeats,
            large=self._survey.large,
            secret=self._secret,
        )
        self._prepare()
        self._progress("blocks")
        self._alike = self._short
        order = random.Random(self._setting.seed)
        while True:
            roles = [REFERENCE, CANDIDATE, *self._others()]
            try:
                blocks = clock.measure(
                    lambda role: self._batch(role) / self._calls_of(role),
                    roles,
                    self._policy,
                    order,
                    condition=self._watch.condition,
                    prepare=self._check_blocks,
                    jolted=self._whose_jolts,
                )
                self._check_blocks()
                break
            except _BaselineFailed as failed:
                self._fail(failed.role, str(failed))
                self._jolted.clear()
        self._alike = False
        handshake_ms = self._handshake_ms()
        blocks.less({role: handshake_ms / self._calls_of(role) for role in roles})
        self._progress("latency")
        latency = {role: self._latency_ms(role, handshake_ms) for role in (REFERENCE, CANDIDATE)}
        log = self._logs[CANDIDATE]
        clocked = [total - handshake_ms for total in log.total_ms]
        lie = clock.lying(clocked, log.claimed_ms, self._policy) if self._on_gpu else ""
        if lie:
            raise TimedWrongly(Mismatch(status=Status.TAMPERED, message=lie))
        self._progress("bound")
        figures = blocks.figures()
        measured = Measured(
            blocks=blocks,
            calls=self._calls,
            latency_ms=latency,
            claimed_ms=self._claimed_ms(CANDIDATE),
            device_ms={
                role: self._device_ms(role, figures[role])
                for role in (REFERENCE, CANDIDATE)
                if role in figures
            },
            handshake_ms=handshake_ms,
            baselines=tuple(self._others()),
            failed=self._failed,
            work=self._survey.work,
            peaks=self._survey.peaks,
            gpu=self._watch.record(),
            notes=tuple(n for n in (self._cache_note(), self._seats, self._watch.blind) if n),
        )
        return speed_of(measured, self._policy)

    # --- preparation ----------------------------------------------------------------------------

    def _others(self) -> list[str]:
        return [r for r in self._batons if r not in (REFERENCE, CANDIDATE)]

    def _send_state(self) -> None:
        state_now = {n: t.detach() for n, t in self._problem.state().items()}
        theirs = {name: state_now[ours] for name, ours in self._match.source.items()}
        for role, baton in list(self._batons.items()):
            values = theirs if role == CANDIDATE else state_now
            if role not in (REFERENCE, CANDIDATE):  # torch.compile wraps the module
                values = {f"_orig_mod.{n}": t for n, t in state_now.items()}
            self._running = role
            self._guarded(role, partial(_write, baton, values))

    def _guarded(self, role: str, work: Callable[[], Any]) -> None:
        """Do work for a role; a baseline that fails is named and does not hide the others."""
        try:
            work()
        except (WorkerFailed, _BaselineFailed) as failed:
            if role in (REFERENCE, CANDIDATE):
                raise
            self._fail(role, str(failed))

    def _fail(self, role: str, why: str) -> None:
        self._failed[role] = why
        self._batons.pop(role).worker.close()

    def _prepare(self) -> None:
        """Stage as many calls as a batch should have, and see how many that is for each role."""
        self._flush = None
        if self._on_gpu and not self._setting.warm_l2:
            properties = torch.cuda.get_device_properties(self._problem.device)
            size = _FLUSH_TIMES * max(int(getattr(properties, "L2_cache_size", 0)), 32 << 20)
            self._flush = torch.empty(size, dtype=torch.uint8, device=self._problem.device)
        self._stage.place(1, list(self._batons.values()))
        if self._survey.large:
            # What the reference wrote is not looked at: that memory serves longer batches.
            for role in (REFERENCE, *self._others()):
                self._batons[role].keep = 1
        for role in list(self._batons):  # compiles what compiles late, fills the allocators
            self._guarded(role, partial(self._warm_up, role))
        if self._on_gpu:  # on the CPU they have theirs
            workers = [baton.worker.pid for baton in self._batons.values()]
            self._seats = cores.take_seats(self._problem.device, workers)
        self._choose_calls()
        settle(self._problem.device)
        for log in self._logs.values():
            log.total_ms.clear()
            log.claimed_ms.clear()
        self._jolted.clear()
        self._reruns = _UNSEEN_COUNTED

    def _choose_calls(self) -> None:
        """Find how many calls of each role take as long as a batch should, and stage them."""
        self._batch_each(1)
        estimates = self._batch_each(1)
        most = min(bell.MAX_CALLS, self._room())
        for _ in range(3):
            self._calls = clock.calls_by_role(estimates, most, self._policy)
            self._short = clock.short_calls(estimates, self._policy)
            if self._places() <= 1.5 * self._stage.count:
                break
            # Short calls hide behind the hand-shake above: once more, from a real batch.
            estimates, most = self._fitting(most)
        self._calls = {role: min(n, self._stage.count) for role, n in self._calls.items()}

    def _batch_each(self, calls: int | None = None) -> dict[str, float]:
        """Run a batch of every role, as long as chosen or said; returns milliseconds per call."""
        taken: dict[str, float] = {}

        def run(role: str) -> None:
            taken[role] = self._batch(role, calls) / (calls or self._calls_of(role))

        for role in list(self._batons):
            self._guarded(role, partial(run, role))
        return taken

    def _calls_of(self, role: str) -> int:
        """Return how many calls a batch of a role has."""
        return min(self._calls[role], self._stage.count)

    def _places(self) -> int:
        """Return how many inputs are to be staged: as many as the quicker of the two calls."""
        return max(self._calls[REFERENCE], self._calls[CANDIDATE])

    def _fitting(self, most: int) -> tuple[dict[str, float], int]:
        """Stage the chosen calls and run each role over them; fewer where memory is short.

        Returns:
            Milliseconds per call, by role; how many calls there is room for.
        """
        while True:
            self._running = CANDIDATE
            self._best_beyond_ms.clear()
            count = min(self._places(), most)
            try:
                self._stage.place(count, list(self._batons.values()))
                return self._batch_each(), most
            except (WorkerFailed, HarnessError, torch.OutOfMemoryError) as error:
                full = not isinstance(error, WorkerFailed) or error.status is Status.OUT_OF_MEMORY
                if count == 1 or not full:
                    raise
                most = count // 2
                torch.cuda.empty_cache()

    def _warm_up(self, role: str) -> None:
        baton = self._batons[role]
        if role not in (REFERENCE, CANDIDATE):
            baton.timeout_s = _COMPILE_S
        for _ in range(2):
            self._batch(role, 1)
        baton.timeout_s = self._setting.timeout_s

    def _room(self) -> int:
        """Return how many calls fit: their inputs once, their outputs as far as they are kept."""
        kept = sum(b.keep > 1 for b in self._batons.values())
        each = self._stage.slot_bytes + kept * sum(self._survey.poison)
        if not self._on_gpu:
            return max(1, _HOST_BUDGET_BYTES // max(each, 1))
        # After one checked call judge and workers hold what they need for one.
        torch.cuda.empty_cache()
        self._checks.check_next_whole()
        self._batch(CANDIDATE, 1)
        free, _ = torch.cuda.mem_get_info(self._problem.device)
        spare = _SPARE_BYTES + 3 * self._stage.slot_bytes + 2 * sum(self._survey.poison)
        return 1 + max(0, free - spare) // max(each, 1)

    def _handshake_ms(self) -> float:
        """Return what a batch costs beside its calls: letting go, waking up, looking at outputs.

        The reference runs no code of the candidate's, so its own events can be believed: they say
        what its calls took, and what the judge's clock says more is the hand-shake. All of its
        batches in the blocks count: what else the machine does then is in them as it is in the
        candidate's.
        """
        log = self._logs[REFERENCE]
        return float(
            np.median(
                [
                    total - claimed
                    for total, claimed in zip(log.total_ms, log.claimed_ms, strict=True)
                    if claimed is not None
                ]
            )
        )

    # --- batches --------------------------------------------------------------------------------

    def _cool(self) -> None:
        """Push what the judge just wrote out of the L2 cache, and see that the GPU is free.

        Raises:
            TimedWrongly: something keeps it busy although the candidate stands still.
        """
        if not self._on_gpu:
            return
        device = self._problem.device
        torch.cuda.synchronize(device)
        if self._flush is None:
            return
        until = time.monotonic() + _BUSY_S
        while time.monotonic() < until:
            began = time.perf_counter()
            self._flush.add_(1)
            torch.cuda.synchronize(device)
            taken_ms = (time.perf_counter() - began) * 1e3
            self._quiet_ms = min(self._quiet_ms, taken_ms)
            if taken_ms < 3 * self._quiet_ms + 0.2:
                return
            time.sleep(0.002)
        if not self._watch.strangers():
            raise TimedWrongly(
                Mismatch(
                    status=Status.TAMPERED,
                    message="the GPU stays busy while the candidate stands still: it leaves work "
                    "behind that runs in the reference's time",
                )
            )

    def _batch(self, role: str, calls: int | None = None, *, each: bool = False) -> float:
        """Run one batch, of as many calls as chosen or said.

        Returns:
            Its milliseconds, the hand-shake included.
        """
        calls = calls or self._calls_of(role)
        self._running = role
        baton = self._batons[role]
        slots = list(range(self._stage.count))
        if self._setting.warm_l2:
            slots = slots[: max(1, self._warm_slots())]
        rounds, rest = divmod(calls, len(slots))
        order = shuffled(slots * rounds + shuffled(slots, self._secret)[:rest], self._secret)
        like_candidate = self._alike or role == CANDIDATE
        if like_candidate:
            self._stage.renew()
        self._rest_others(role)
        poison = list(self._survey.poison) * min(calls, baton.keep)
        try:
            baton.arm(self._setting.mode, poison, each=each)
            # A candidate stands still only now: what it could have read until here is not what it
            # gets. For the others they are written again: the candidate may have left numbers
            # there that they are slow on. And all must stand for as long: caches grow cold.
            self._stage.write()
            self._cool()
            whole = like_candidate and self._checks.wants_whole
            timed = baton.run(order, self._secret, self._checks.most, whole)
        except WorkerFailed as failed:
            if role in (REFERENCE, CANDIDATE):
                raise
            raise _BaselineFailed(role, failed) from failed
        if role == CANDIDATE:
            if timed.seen.unseen and self._reruns:
                # Its allocator took new memory. Now the judge knows it; this batch counts for
                # nothing, or it would be one that nobody had looked at.
                self._reruns -= 1
                return self._batch(role, calls, each=each)
            if self._alike:
                self._unchecked.append((timed, self._checks.inputs_of(timed)))
            else:
                self._checks.check(timed)
        if not each:
            self._logs[role].total_ms.append(timed.total_ms)
            self._logs[role].claimed_ms.append(timed.claimed_ms)
            self._look_for_jolt(baton.role, timed)
        return timed.total_ms

    def _rest_others(self, role: str) -> None:
        """Stop who is not next: who does not stand still is to blame then."""
        for other in self._batons if self._alike else (CANDIDATE,):
            if other == role:
                continue
            self._running = other
            try:
                self._batons[other].rest()
            except WorkerFailed as failed:
                if other in (REFERENCE, CANDIDATE):
                    raise
                raise _BaselineFailed(other, failed) from failed
        self._running = role

    def _check_blocks(self) -> None:
        """Check what was timed in the last block: between blocks nobody's next batch pays for it.

        Raises:
            TimedWrongly: an output was wrong.
        """
        unchecked, self._unchecked = self._unchecked, []
        for timed, inputs in unchecked:
            self._checks.check(timed, inputs)

    def _look_for_jolt(self, role: str, timed: Timed) -> None:
        if timed.claimed_ms is None or self._short or (role == CANDIDATE and not self._on_gpu):
            return  # off the GPU nothing holds a candidate to what it claims
        beyond = timed.total_ms - timed.claimed_ms
        best = self._best_beyond_ms[role] = min(beyond, self._best_beyond_ms.get(role, beyond))
        if clock.is_jolted(timed.total_ms, beyond, best, self._policy):
            self._jolted.add(role)

    def _whose_jolts(self) -> set[str]:
        """Return whose batches were jolted since this was asked last."""
        jolted, self._jolted = self._jolted, set()
        return jolted

    def _warm_slots(self) -> int:
        properties = torch.cuda.get_device_properties(self._problem.device)
        return int(properties.L2_cache_size // 2 // max(self._stage.slot_bytes, 1))

    def _latency_ms(self, role: str, handshake_ms: float) -> float:
        times = [self._batch(role, each=True) for _ in range(self._policy.latency_blocks)]
        return max(float(np.median(times)) - handshake_ms, 1e-6) / self._calls_of(role)

    # --- the record -----------------------------------------------------------------------------

    def _claimed_ms(self, role: str) -> float | None:
        claims = [c / self._calls_of(role) for c in self._logs[role].claimed_ms if c is not None]
        return float(np.median(claims)) if claims and self._on_gpu else None

    def _device_ms(self, role: str, figure_ms: float) -> float | None:
        if not self._on_gpu:
            return None
        claimed = self._claimed_ms(role)
        if figure_ms >= _PROFILED_MS and claimed is not None:
            return claimed
        few = [i % self._stage.count for i in range(min(self._calls_of(role), 3))]
        self._running = role
        return self._batons[role].device_ms(self._setting.mode, few)

    def _cache_note(self) -> str:
        calls = self._calls_of(CANDIDATE)
        text = f"{calls} distinct inputs a batch, written after the candidate was stopped"
        if (slower := self._calls_of(REFERENCE)) < calls:
            text += f" ({slower} of them in one of the reference's)"
        if not self._on_gpu:
            return text
        if self._setting.warm_l2:
            return f"{calls} calls a batch over inputs that fit the L2 cache (warm)"
        return f"{text}; L2 cold"


def shuffled(items: list[int], secret: random.Random) -> list[int]:
    """Return items in an order that the secret decides.

    Asking it for each of a thousand takes milliseconds; it seeds a generator that serves once.
    """
    order: list[int] = np.random.default_rng(secret.getrandbits(128)).permutation(items).tolist()
    return order


def _write(baton: Baton, values: Mapping[str, torch.Tensor]) -> None:
    baton.wake()
    baton.worker.ask("state", **baton.worker.encode(values=values))
    baton.clear()
