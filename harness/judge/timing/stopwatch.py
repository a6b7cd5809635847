"""Times reference, candidate and baselines of one pair: stages inputs, asks for blocks."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from harness.domain import CANDIDATE, REFERENCE, HarnessError, Speed, Status
from harness.ipc import mailbox
from harness.judge.check.structure import Mismatch
from harness.judge.reference import state
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import InvalidReference, Problem
from harness.judge.timing import affinity, clock, nvml
from harness.judge.timing.batches import BaselineFailed, Batches, TimingConfig
from harness.judge.timing.input_pool import InputPool
from harness.judge.timing.latency import IsolatedRounds
from harness.judge.timing.overlap import Latency, calls_overlap
from harness.judge.timing.probe import probe, settle
from harness.judge.timing.speed import Measured, speed_of
from harness.judge.timing.timed_outputs import OutputCheck, TimedWrongly
from harness.judge.timing.timed_worker import TimedWorker
from harness.judge.workers.budget import Budget, OutOfTime
from harness.judge.workers.remote import KilledBesideSolution, RemoteWorker, WorkerFailed

_HOST_BUDGET_BYTES = 512 << 20
_SPARE_BYTES = 2 << 30
_COMPILE_S = 300.0
"""Limit of a batch in which torch.compile may compile. All other batches have the usual limit."""


class Stopwatch:
    """One pair's timing on one device.

    Args:
        problem: on the device.
        oracle: gives the exact outputs.
        workers: loaded, by role: REFERENCE, CANDIDATE, and baselines under their own names.
        match: how the candidate's state was matched.
        config: how the pair is timed.
        policy: thresholds.
        failed: why further baselines could not be loaded.
        progress: called with the name of each step, and again before each of its batches.
        budget: the pair's time; None is endless.
    """

    def __init__(
        self,
        problem: Problem,
        oracle: Oracle,
        workers: Mapping[str, RemoteWorker],
        match: state.Match,
        config: TimingConfig,
        policy: clock.ClockPolicy,
        failed: Mapping[str, str],
        progress: Callable[[str], None] = lambda step: None,
        *,
        budget: Budget | None = None,
    ) -> None:
        self._budget = budget or Budget(math.inf, math.inf)
        self._progress, self._step = progress, ""
        self._problem = problem
        self._oracle = oracle
        self._match = match
        self._config = config
        self._policy = policy
        # The order of calls and the choice of checked outputs are secret. They come from the
        # system's entropy, not from the seed, which is published with the verdict.
        self._secret = random.SystemRandom()
        self._on_gpu = problem.device.type == "cuda"
        self._timed_workers = {
            role: TimedWorker(role, worker, problem.device, timeout_s=config.timeout_s)
            for role, worker in workers.items()
        }
        self._failed = dict(failed)
        self._affinity_note = ""
        self._watch = nvml.GpuWatch(problem.device)
        self._batches = Batches(
            self._timed_workers,
            problem.device,
            config,
            policy,
            self._watch,
            self._secret,
            alive=lambda: progress(self._step),
        )
        self._batches.reruns = policy.new_memory_batches

    def run(self) -> Speed:
        """Measure, and return the record.

        Raises:
            TimedWrongly: a checked output of a timed batch is wrong, or a claim is a lie.
            WorkerFailed: the candidate failed while it was timed.
            InvalidReference: the reference did.
            torch.OutOfMemoryError: there is no memory to time even isolated calls.
            OutOfTime: from ``progress``.
        """
        try:
            with affinity.affinity_restored():
                speed = self._measured()
            # The candidate stands since its last batch; further calls may follow.
            self._batches.running = CANDIDATE
            self._timed_workers[CANDIDATE].clear()
            return speed
        except OutOfTime:
            self._batches.running = CANDIDATE
            self._timed_workers[CANDIDATE].clear()  # it may stand still, and one more call follows
            raise
        except WorkerFailed as failed:
            if self._batches.running == CANDIDATE or isinstance(failed, KilledBesideSolution):
                raise
            if failed.status is Status.OUT_OF_MEMORY:
                raise torch.OutOfMemoryError(
                    f"no memory to time the reference beside the candidate: {failed}"
                ) from failed
            raise InvalidReference(f"while it was timed, the reference {failed}") from failed

    def _measured(self) -> Speed:
        self._enter("stage")
        self._send_state()
        config, problem = self._config, self._problem
        self._probe = probe(problem, config.mode, config.seed, config.precision, self._policy)
        self._input_pool = InputPool(problem, self._probe.draw_grads, config.seed)
        self._checks = OutputCheck(
            problem,
            self._oracle,
            self._input_pool,
            self._match,
            config.standard,
            self._policy,
            config.mode,
            repeats=self._probe.repeats,
            large=self._probe.large,
            secret=self._secret,
            moving=self._probe.moving,
        )
        self._timed_workers[CANDIDATE].moving = [
            theirs for theirs, ours in self._match.source.items() if ours in self._probe.moving
        ]
        for timed_worker in self._timed_workers.values():
            timed_worker.values = self._probe.values
        batches = self._batches
        batches.over(self._input_pool, self._checks, self._probe)
        self._prepare()
        self._enter("blocks")
        batches.alike = batches.short
        order = random.Random(self._config.seed)
        left_s = self._budget.left_s()
        policy = dataclasses.replace(self._policy, cap_s=min(self._policy.cap_s, left_s))
        while True:
            roles = [REFERENCE, CANDIDATE, *self._others()]
            try:
                blocks = clock.measure(
                    lambda role: batches.run(role) / batches.calls_of(role),
                    roles,
                    policy,
                    order,
                    condition=self._watch.condition,
                    prepare=self._between_blocks,
                    host_delayed=batches.host_delayed_roles,
                )
                batches.check_pending()
                if self._probe.moving:
                    batches.check_state()
                break
            except BaselineFailed as failed:
                self._fail(failed.role, str(failed))
                batches.host_delayed_roles()  # of a block that is not there
        batches.alike = False
        blocks.short = batches.short
        overhead_ms = self._overhead_ms()
        blocks.less({role: overhead_ms / batches.calls_of(role) for role in roles})
        self._enter("latency")
        figures = blocks.figures()
        device_ms = {
            role: self._device_ms(role, figures[role])
            for role in (REFERENCE, CANDIDATE)
            if role in figures
        }
        latency = self._latency(blocks, overhead_ms, device_ms)
        log = batches.logs[CANDIDATE]
        lie = clock.lying(
            log.total_ms,
            overhead_ms,
            log.claimed_ms,
            self._policy,
            alone=not self._watch.was_shared,
        )
        if self._on_gpu and lie:
            raise TimedWrongly(Mismatch(status=Status.TAMPERED, message=lie))
        self._enter("bound")
        measured = Measured(
            blocks=blocks,
            calls=batches.calls,
            latency=latency,
            claimed_ms=self._claimed_ms(CANDIDATE),
            device_ms=device_ms,
            overhead_ms=overhead_ms,
            baselines=tuple(self._others()),
            failed=self._failed,
            work=self._probe.work,
            peaks=self._probe.peaks,
            card=self._watch.card,
            gpu=self._watch.record(),
            repeats=self._probe.repeats,
            notes=tuple(
                note
                for note in (
                    self._cache_note(),
                    self._affinity_note,
                    self._watch.blind,
                    self._time_note() if blocks.capped and policy != self._policy else "",
                )
                if note
            ),
        )
        return speed_of(measured, self._policy)

    def _between_blocks(self) -> None:
        """Check what the last block timed, and now and then what calls make of the state."""
        self._batches.check_pending()
        if self._probe.moving and self._secret.random() < self._policy.state_part:
            self._batches.check_state()

    def _enter(self, step: str) -> None:
        self._step = step
        self._progress(step)

    def _latency(
        self, blocks: clock.Blocks, overhead_ms: float, device_ms: Mapping[str, float | None]
    ) -> Latency:
        if len(blocks.ms[CANDIDATE]) < 2:  # there will be no figure
            return Latency({}, 0.0, 0.0, 0.0)

        def tells(latency: Latency) -> bool:
            return calls_overlap(blocks, latency, device_ms) is not None

        alone = IsolatedRounds(
            self._batches,
            self._input_pool,
            self._policy,
            self._secret,
            self._fail,
            draws=self._probe.draws,
        )
        figures = blocks.figures()
        back_to_back = {role: figures[role] for role in (REFERENCE, CANDIDATE)}
        return alone.latency(back_to_back, overhead_ms, tells)

    # --- preparation ----------------------------------------------------------------------------

    def _others(self) -> list[str]:
        return [r for r in self._timed_workers if r not in (REFERENCE, CANDIDATE)]

    def _send_state(self) -> None:
        state_now = {n: t.detach() for n, t in self._problem.state().items()}
        theirs = {name: state_now[ours] for name, ours in self._match.source.items()}
        for role, timed_worker in list(self._timed_workers.items()):
            values = theirs if role == CANDIDATE else state_now
            if role.startswith("torch.compile"):  # which wraps the module
                values = {f"_orig_mod.{n}": t for n, t in state_now.items()}
            self._batches.running = role
            self._guarded(role, partial(_write, timed_worker, values))

    def _guarded(self, role: str, work: Callable[[], Any]) -> None:
        """Do work for a role; a baseline that fails is recorded, and the others go on."""
        try:
            work()
        except (WorkerFailed, BaselineFailed) as failed:
            if role in (REFERENCE, CANDIDATE) or isinstance(failed, KilledBesideSolution):
                raise
            self._fail(role, str(failed))

    def _fail(self, role: str, why: str) -> None:
        self._failed[role] = why
        self._timed_workers.pop(role).worker.close()

    def _prepare(self) -> None:
        """Choose how many calls a batch of each role has, and stage inputs for them."""
        self._input_pool.place(1, list(self._timed_workers.values()))
        if self._probe.large:
            # The reference's outputs are not checked. Their memory serves longer batches.
            for role in (REFERENCE, *self._others()):
                self._timed_workers[role].keep = 1
        for role in list(self._timed_workers):  # compiles what compiles late, fills the allocators
            self._guarded(role, partial(self._warm_up, role))
        if self._on_gpu:  # on the CPU they have theirs
            workers = [timed_worker.worker.pid for timed_worker in self._timed_workers.values()]
            self._affinity_note = affinity.pin_judge_and_workers(
                self._problem.device, workers, self._pin_workers
            )
        self._choose_calls()
        settle(self._problem.device)
        self._batches.begin_anew()
        self._batches.reruns = self._policy.new_memory_counted

    def _pin_workers(self, cores: set[int]) -> bool:
        """Let the main thread of every worker move to some cores; return whether all did."""
        for role, timed_worker in list(self._timed_workers.items()):
            self._batches.running = role
            self._guarded(role, partial(timed_worker.pin, cores))
        return all(timed_worker.runs_on(cores) for timed_worker in self._timed_workers.values())

    def _choose_calls(self) -> None:
        """Find how many calls of each role fill a batch, and stage their inputs."""
        self._batch_each(1)
        estimates = self._batch_each(1)
        layout = self._timed_workers[REFERENCE].layout
        words = self._probe.values + (len(layout.forms) if layout else 0)
        most = min(mailbox.MAX_CALLS, self._room(), max(mailbox.MAX_WORDS // max(words, 1), 1))
        for _ in range(3):
            self._batches.calls = clock.calls_by_role(estimates, most, self._policy)
            self._batches.short = clock.short_calls(estimates, self._policy)
            if self._places() <= 1.5 * self._input_pool.count:
                break
            # The batch overhead above hides short calls: a longer batch gives a better estimate.
            estimates, most = self._fitting(most)
        chosen = self._batches.calls
        self._batches.calls = {role: min(n, self._input_pool.count) for role, n in chosen.items()}

    def _batch_each(self, calls: int | None = None) -> dict[str, float]:
        """Run a batch of every role; return milliseconds per call."""
        taken: dict[str, float] = {}

        def run(role: str) -> None:
            taken[role] = self._batches.run(role, calls) / (calls or self._batches.calls_of(role))

        for role in list(self._timed_workers):
            self._guarded(role, partial(run, role))
        return taken

    def _places(self) -> int:
        """Return how many inputs are needed: as many as the quicker role has calls in a batch."""
        return max(self._batches.calls[REFERENCE], self._batches.calls[CANDIDATE])

    def _fitting(self, most: int) -> tuple[dict[str, float], int]:
        """Stage inputs of the chosen calls and run each role over them; fewer if memory is short.

        Returns:
            Milliseconds per call, by role; how many calls there is room for.
        """
        while True:
            self._batches.running = CANDIDATE
            self._batches.forget_best()
            count = min(self._places(), most)
            try:
                self._input_pool.place(count, list(self._timed_workers.values()))
                return self._batch_each(), most
            except (WorkerFailed, HarnessError, torch.OutOfMemoryError) as error:
                full = not isinstance(error, WorkerFailed) or error.status is Status.OUT_OF_MEMORY
                if count == 1 or not full:
                    raise
                most = count // 2
                torch.cuda.empty_cache()

    def _warm_up(self, role: str) -> None:
        timed_worker = self._timed_workers[role]
        compiles = role not in (REFERENCE, CANDIDATE)
        if compiles:
            timed_worker.timeout_s = _COMPILE_S
        with self._budget.compiling() if compiles else contextlib.nullcontext():
            for _ in range(2):
                self._batches.run(role, 1)
        timed_worker.timeout_s = self._config.timeout_s

    def _room(self) -> int:
        """Return how many calls fit into memory, with inputs and the outputs that are kept."""
        kept = sum(b.keep > 1 for b in self._timed_workers.values())
        each = self._input_pool.slot_bytes + kept * sum(self._probe.poison)
        if not self._on_gpu:
            return max(1, _HOST_BUDGET_BYTES // max(each, 1))
        # After one checked batch judge and workers hold all that they need for one call.
        torch.cuda.empty_cache()
        self._checks.check_next_whole()
        self._batches.run(CANDIDATE, 1)
        free, _ = torch.cuda.mem_get_info(self._problem.device)
        spare = _SPARE_BYTES + 3 * self._input_pool.slot_bytes + 2 * sum(self._probe.poison)
        return 1 + max(0, free - spare) // max(each, 1)

    def _overhead_ms(self) -> float:
        """Return the batch overhead: waking the worker, starting it and reading its outputs.

        The reference's worker runs no code of the candidate, so its CUDA events can be believed.
        The overhead is clock time less event time: the median of all of its batches in the blocks,
        since these meet the same disturbances as the candidate's.
        """
        log = self._batches.logs[REFERENCE]
        return float(
            np.median(
                [
                    total - claimed
                    for total, claimed in zip(log.total_ms, log.claimed_ms, strict=True)
                    if claimed is not None
                ]
            )
        )

    # --- the record -----------------------------------------------------------------------------

    def _claimed_ms(self, role: str) -> float | None:
        claims = [ms for ms in self._batches.logs[role].claimed_ms if ms is not None]
        if not claims or not self._on_gpu:
            return None
        return float(np.median(claims)) / self._batches.calls_of(role)

    def _device_ms(self, role: str, figure_ms: float) -> float | None:
        if not self._on_gpu:
            return None
        claimed = self._claimed_ms(role)
        if figure_ms >= self._policy.profiled_ms and claimed is not None:
            return claimed
        few = [i % self._input_pool.count for i in range(min(self._batches.calls_of(role), 3))]
        self._batches.running = role
        return self._timed_workers[role].device_ms(self._config.mode, few)

    def _time_note(self) -> str:
        return (
            f"the pair's time ({self._budget.limit_s:g} s) ended the timing; a longer --time-limit "
            "leaves more"
        )

    def _cache_note(self) -> str:
        calls = self._batches.calls_of(CANDIDATE)
        text = f"{calls} distinct inputs a batch, written after the candidate was stopped"
        if (slower := self._batches.calls_of(REFERENCE)) < calls:
            text += f" ({slower} of them in one of the reference's)"
        if not self._on_gpu:
            return text
        if self._config.warm_l2:
            return f"{calls} calls a batch over inputs that fit the L2 cache (warm)"
        return f"{text}; L2 cold"


def _write(timed_worker: TimedWorker, values: Mapping[str, torch.Tensor]) -> None:
    timed_worker.resume()
    timed_worker.worker.ask("state", **timed_worker.worker.encode(values=values))
    timed_worker.clear()
