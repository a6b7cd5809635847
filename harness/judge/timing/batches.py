"""One timed batch of one role, and everything around it.

The other workers are stopped, inputs are written, caches are flushed, the worker runs, its outputs
are read and checked. ``clock`` and ``latency`` decide how many batches run.

| role | inputs before a batch | stopped meanwhile | one output read whole | outputs checked |
|---|---|---|---|---|
| candidate | new ones | | yes | at once |
| others | the same ones, written again | candidate | no | no |
| all, in blocks of short calls (``alike``) | new ones | all others | yes | after the block |
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.domain import CANDIDATE, REFERENCE, Status
from harness.judge.check.precision import Standard
from harness.judge.check.structure import Mismatch
from harness.judge.timing import clock
from harness.judge.timing.input_pool import InputPool, Values
from harness.judge.timing.isolated_calls import SLOT, CallInputs, IsolatedCalls
from harness.judge.timing.nvml import GpuWatch
from harness.judge.timing.probe import Probe
from harness.judge.timing.timed_outputs import OutputCheck, TimedWrongly
from harness.judge.timing.timed_worker import Timed, TimedWorker
from harness.judge.workers.remote import KilledBesideSolution, WorkerFailed

_FLUSH_TIMES = 4


class BaselineFailed(Exception):
    """A baseline's worker failed in a batch."""

    def __init__(self, role: str, failed: WorkerFailed) -> None:
        super().__init__(str(failed))
        self.role = role


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingConfig:
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
class Log:
    """Batches of one role, batch overhead included."""

    total_ms: list[float] = field(default_factory=list)
    claimed_ms: list[float | None] = field(default_factory=list)


class Batches:
    """Runs batches.

    Args:
        timed_workers: by role.
        device: what the workers run on.
        config: how a pair is timed.
        policy: thresholds.
        watch: knows of other processes on the GPU.
        secret: source of the order of calls, and of the choice of outputs that are read.
        alive: called before each batch: many slow ones take minutes.

    Attributes:
        timed_workers: by role; a baseline that fails is taken out.
        calls: calls of a batch, by role.
        logs: batches by role, since they were cleared.
        running: the role to blame if a worker fails.
        reruns: so many further batches of the candidate are run again if its outputs lie in memory
            that is new to the judge.
        short: calls take only the host's time: no batch counts as host-delayed.
        on_gpu: whether workers run on a GPU.
        alike: every role is treated as the candidate. In blocks of short calls that treatment moves
            caches by as much as the difference that is measured.
    """

    def __init__(
        self,
        timed_workers: dict[str, TimedWorker],
        device: torch.device,
        config: TimingConfig,
        policy: clock.ClockPolicy,
        watch: GpuWatch,
        secret: random.Random,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.timed_workers = timed_workers
        self.calls: dict[str, int] = {}
        self.logs = {role: Log() for role in timed_workers}
        self.running = CANDIDATE
        self.reruns = 0
        self.short = self.alike = False
        self._device = device
        self.on_gpu = device.type == "cuda"
        self._config = config
        self._policy = policy
        self._watch = watch
        self._secret = secret
        self._alive = alive
        self._quiet_ms = float("inf")
        self._best_beyond_ms: dict[str, float] = {}
        self._host_delayed: set[str] = set()
        self._unchecked: list[tuple[Timed, Mapping[int, Values]]] = []
        self._flush: torch.Tensor | None = None
        self._isolated_calls: dict[str, IsolatedCalls] = {}

    def over(self, input_pool: InputPool, checks: OutputCheck, probe: Probe) -> None:
        """Set inputs and checks.

        Args:
            input_pool: holds the inputs of batches.
            checks: checks the candidate's outputs.
            probe: facts about a call.
        """
        self._input_pool, self._checks, self._probe = input_pool, checks, probe
        if self.on_gpu and not self._config.warm_l2:
            properties = torch.cuda.get_device_properties(self._device)
            size = _FLUSH_TIMES * max(int(getattr(properties, "L2_cache_size", 0)), 32 << 20)
            self._flush = torch.empty(size, dtype=torch.uint8, device=self._device)

    def calls_of(self, role: str) -> int:
        """Return how many calls a batch of a role has."""
        return min(self.calls[role], self._input_pool.count)

    def begin_anew(self) -> None:
        """Forget the times of the batches that were run for preparation."""
        for log in self.logs.values():
            log.total_ms.clear()
            log.claimed_ms.clear()
        self._host_delayed.clear()

    def forget_best(self) -> None:
        """Forget the best batches: from now on batches have other sizes."""
        self._best_beyond_ms.clear()

    def _cool(self) -> None:
        """Push the inputs out of the L2 cache, and wait until the GPU is free.

        Raises:
            TimedWrongly: the GPU stays busy although the candidate stands still.
        """
        if not self.on_gpu:
            return
        device = self._device
        torch.cuda.synchronize(device)
        if self._flush is None:
            return
        policy, until = self._policy, time.monotonic() + self._policy.busy_s
        while time.monotonic() < until:
            began = time.perf_counter()
            self._flush.add_(1)
            torch.cuda.synchronize(device)
            taken_ms = (time.perf_counter() - began) * 1e3
            self._quiet_ms = min(self._quiet_ms, taken_ms)
            if taken_ms < policy.busy_times * self._quiet_ms + policy.busy_ms:
                return
            time.sleep(0.002)
        if not self._watch.other_processes():
            raise TimedWrongly(
                Mismatch(
                    status=Status.TAMPERED,
                    message="the GPU stays busy while the candidate stands still: the candidate "
                    "left work behind that runs in the reference's time",
                )
            )

    def check_state(self) -> None:
        """Run one more batch of the candidate, and check the state that it leaves.

        The candidate cannot tell this batch from those that count.

        Raises:
            TimedWrongly: its state is not the reference's after as many calls.
        """
        self.run(CANDIDATE, logged=False, state=True)

    def run(
        self, role: str, calls: int | None = None, *, logged: bool = True, state: bool = False
    ) -> float:
        """Run one batch.

        Args:
            role: of the worker.
            calls: None for as many as were chosen.
            state: whether the state that the calls leave is checked.
            logged: whether it counts among the role's batches: a batch of one call does not.

        Returns:
            Its milliseconds, the batch overhead included.
        """
        self._alive()
        calls = calls or self.calls_of(role)
        self.running = role
        timed_worker = self.timed_workers[role]
        slots = list(range(self._input_pool.count))
        if self._config.warm_l2 and self.on_gpu:
            slots = slots[: max(1, self._warm_slots())]
        rounds, rest = divmod(calls, len(slots))
        order = shuffled(slots * rounds + shuffled(slots, self._secret)[:rest], self._secret)
        like_candidate = self.alike or role == CANDIDATE
        if like_candidate:
            self._input_pool.renew()
        self._suspend_others(role)
        poison = list(self._probe.poison) * min(calls, timed_worker.keep)
        try:
            timed_worker.prepare(self._config.mode, poison)
            # The candidate stands still only now, so it could not read these inputs early. For the
            # others they are written again, because the candidate may have left numbers there that
            # are slow to compute with. All workers stand for as long: caches grow cold meanwhile.
            self._input_pool.write()
            self._cool()
            whole = like_candidate and self._checks.wants_whole
            see = self._checks.see_inputs if role == CANDIDATE else None
            seed = 1 + self._secret.getrandbits(60) if self._probe.draws else 0
            timed = timed_worker.run(
                order, self._secret, self._checks.most, whole, see, seed, state=state
            )
        except WorkerFailed as failed:
            if role in (REFERENCE, CANDIDATE) or isinstance(failed, KilledBesideSolution):
                raise
            raise BaselineFailed(role, failed) from failed
        if role == CANDIDATE:
            if timed.seen.unseen and self.reruns:
                # Its allocator took new memory, in which the judge could not read outputs. Now the
                # judge knows that memory.
                self.reruns -= 1
                return self.run(role, calls, logged=logged, state=state)
            if state:
                self._checks.check_moved(timed)
            if self.alike:
                self._unchecked.append((timed, self._checks.inputs_of(timed)))
            else:
                self._checks.check(timed)
        if logged:
            self.logs[role].total_ms.append(timed.total_ms)
            self.logs[role].claimed_ms.append(timed.claimed_ms)
            self._note_host_delay(timed_worker.role, timed)
        return timed.total_ms

    def run_alone(
        self, role: str, given: Sequence[CallInputs], first: int, keep: int, *, empty: bool = False
    ) -> list[float]:
        """Make isolated calls of a role, each with inputs that were nowhere before.

        Args:
            role: reference or candidate.
            given: inputs of the calls.
            first: how many of them do not count.
            empty: pass messages without calls, to measure their overhead; the reference only.
            keep: how many outputs of the candidate wait to be checked (``check_pending``).

        Returns:
            Milliseconds of each call that counts, with the overhead of its messages.
        """
        self._alive()
        self.running = role
        if role not in self._isolated_calls:
            self._isolated_calls[role] = IsolatedCalls(
                self.timed_workers[role], self._input_pool, self._secret
            )
        self._suspend_others(role)
        self._cool()
        times, kept = self._isolated_calls[role].run(
            self._config.mode, given, first, keep, empty=empty
        )
        if role == CANDIDATE:
            self._unchecked += [(timed, {SLOT: values}) for timed, values in kept]
        return times

    def _suspend_others(self, role: str) -> None:
        """Stop the other workers; one that does not stand still is to blame."""
        for other in self.timed_workers if self.alike else (CANDIDATE,):
            if other == role:
                continue
            self.running = other
            try:
                self.timed_workers[other].suspend()
            except WorkerFailed as failed:
                if other in (REFERENCE, CANDIDATE):
                    raise
                raise BaselineFailed(other, failed) from failed
        self.running = role

    def check_pending(self) -> None:
        """Check the outputs that are left. Between blocks that delays no batch.

        Raises:
            TimedWrongly: an output was wrong.
        """
        unchecked, self._unchecked = self._unchecked, []
        for timed, inputs in unchecked:
            self._checks.check(timed, inputs)

    def _note_host_delay(self, role: str, timed: Timed) -> None:
        if timed.claimed_ms is None or self.short or (role == CANDIDATE and not self.on_gpu):
            return  # without a GPU nothing contradicts a candidate's claim
        beyond = timed.total_ms - timed.claimed_ms
        best = self._best_beyond_ms[role] = min(beyond, self._best_beyond_ms.get(role, beyond))
        if clock.is_host_delayed(timed.total_ms, beyond, best, self._policy):
            self._host_delayed.add(role)

    def host_delayed_roles(self) -> set[str]:
        """Return the roles with host-delayed batches since the last call."""
        host_delayed, self._host_delayed = self._host_delayed, set()
        return host_delayed

    def _warm_slots(self) -> int:
        properties = torch.cuda.get_device_properties(self._device)
        return int(properties.L2_cache_size // 2 // max(self._input_pool.slot_bytes, 1))


def shuffled(items: list[int], secret: random.Random) -> list[int]:
    """Return items in a secret order.

    To draw a thousand numbers from the secret takes milliseconds. So it seeds a generator once.
    """
    order: list[int] = np.random.default_rng(secret.getrandbits(128)).permutation(items).tolist()
    return order
