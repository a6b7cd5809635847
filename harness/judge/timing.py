"""Times reference and candidate: stages inputs in their workers, runs batches, checks outputs."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping
from typing import Any

import torch

from harness.domain import Speed, Status
from harness.judge import clock, compare, state, trials
from harness.judge.compare import Mismatch, Standard
from harness.judge.oracle import Oracle
from harness.judge.problem import Problem
from harness.judge.remote import RemoteWorker
from harness.modules import differentiable, mapped, tensors_of, write_state

_MAX_STAGED = 64
_MAX_CALLS = 2000
_LARGE_BYTES = 1 << 30


class TimedWrongly(Exception):
    """An output of a timed batch is wrong; carries the mismatch."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(mismatch.message)
        self.mismatch = mismatch


class Stopwatch:
    """One pair's timing on one device.

    Args:
        problem: on the device.
        oracle: what sampled outputs are held against.
        reference, candidate: loaded workers.
        match: how the candidate's state was matched.
        standard: bounds for the outputs that are checked.
        mode: mode that is timed.
        seed: master seed.
    """

    def __init__(
        self,
        problem: Problem,
        oracle: Oracle,
        reference: RemoteWorker,
        candidate: RemoteWorker,
        match: state.Match,
        standard: Standard,
        mode: str,
        seed: int,
        policy: clock.ClockPolicy,
    ) -> None:
        self._problem = problem
        self._oracle = oracle
        self._workers = {"reference": reference, "candidate": candidate}
        self._match = match
        # The oracle may be too large for the moment: the reference then stands in for it. What
        # rounds differently has been found by the checked calls.
        self._standard = dataclasses.replace(standard, oracle_precision="itself")
        self._mode = mode
        self._seed = seed
        self._policy = policy
        # The order of calls and the choice of checked outputs are secret: the system's entropy,
        # not the seed, which is published with the verdict.
        self._secret = random.SystemRandom()
        self._staged = 0
        self._batches = 0
        self._large = False
        self._slots: list[int] = []
        self._poison: list[int] = []
        self._sends_state = True

    def run(self) -> Speed:
        """Measure, and return the record.

        Raises:
            TimedWrongly: a checked output of a timed batch is wrong.
            WorkerFailed: a worker failed while it was timed.
        """
        self._stage()
        calls = self._calibrate()
        overhead = self._handshake_ms()
        claims: list[float] = []

        def batch(role: str) -> float:
            milliseconds, claimed = self._batch(role, calls)
            if role == "candidate" and claimed is not None:
                claims.append(claimed / calls)
            return max(milliseconds - overhead, 1e-6)

        blocks, ratio, low, high = clock.measure(
            lambda: batch("reference"),
            lambda: batch("candidate"),
            calls,
            self._policy,
            random.Random(self._seed),
        )
        blocks.claimed_ms.extend(claims)
        note = f"{self._staged} distinct inputs, {calls} calls a batch, outputs checked after done"
        return clock.speed(blocks, ratio, low, high, calls, self._policy, note)

    def _inputs(self, slot: int) -> list[Any]:
        seed = trials.derived(self._seed, "timed", slot)
        if slot == 0:
            self._base = self._problem.inputs(seed)
            return self._base

        # Drawing gigabytes again and again would take longer than the measurement: further
        # inputs are the first one scaled and rolled, different in every element.
        def other(t: torch.Tensor) -> torch.Tensor:
            if not differentiable(t) or t.numel() < 2:
                return t
            rolled = torch.roll(t, 1 + slot, dims=0) if t.dim() else t
            return trials.restored(rolled * (1 - 0.01 * (slot % 50)), t)

        return [mapped(v, other) for v in self._base]

    def _grads(self, slot: int) -> list[torch.Tensor | None] | None:
        if self._mode != "train":
            return None
        return [
            None
            if o is None
            else torch.randn(
                o,
                generator=torch.Generator(device=self._problem.device).manual_seed(
                    trials.derived(self._seed, "timed grad", slot, i)
                ),
                device=self._problem.device,
            ).to(self._grad_dtypes[i])
            for i, o in enumerate(self._grad_shapes)
        ]

    def _stage(self) -> None:
        inputs = self._inputs(0)
        outcome = self._problem.call(self._problem.reference, self._mode, inputs, 0, None)
        outputs = tensors_of(outcome.output)
        self._grad_shapes = [tuple(o.shape) if differentiable(o) else None for o in outputs]
        self._grad_dtypes = [o.dtype for o in outputs]
        self._poison = [t.numel() * t.element_size() for t in outputs]
        # A gradient call keeps the gradients of its inputs beside its outputs, and is staged
        # with output gradients beside its inputs.
        into = sum(t.numel() * t.element_size() for t in tensors_of(inputs))
        out = sum(self._poison)
        both = into + out if self._mode == "train" else 0
        self._large = into + out > _LARGE_BYTES
        del outcome, outputs
        # The judge itself needs room for fresh inputs, the expected and the returned output, and
        # the arenas for as much again.
        budget = self._memory_budget(reserve_bytes=4 * into + 3 * out)
        self._staged = max(1, min(_MAX_STAGED, int(0.45 * budget // max(both or into, 1))))
        self._max_calls = max(1, min(_MAX_CALLS, int(0.55 * budget // max(both or out, 1))))
        state_now = {n: t.detach() for n, t in self._problem.state().items()}
        for role, worker in self._workers.items():
            values = (
                state_now
                if role == "reference"
                else {theirs: state_now[ours] for theirs, ours in self._match.source.items()}
            )
            worker.ask("state", **worker.encode(values=values))
            worker.ask("stage", slot=-1)
        for slot in range(self._staged):
            inputs, grads = self._inputs(slot), self._grads(slot)
            for worker in self._workers.values():
                fields = worker.encode(args=inputs, grads=grads)
                fields["grads"] = fields["grads"] if grads is not None else None
                worker.ask("stage", slot=slot, **fields)

    def _memory_budget(self, reserve_bytes: int) -> float:
        """Return bytes that one worker may hold in staged inputs and kept outputs."""
        if self._problem.device.type == "cuda":
            torch.cuda.empty_cache()
            for worker in self._workers.values():
                worker.ask("stage", slot=-1)
            free, _ = torch.cuda.mem_get_info(self._problem.device)
            return max(free - reserve_bytes - (2 << 30), 0) * 0.45
        return float(512 << 20)

    def _calibrate(self) -> int:
        """Return calls per batch: long against the hand-shake, within memory."""
        for role in self._workers:
            self._batch(role, min(2, self._max_calls), check=False)
        once, _ = self._batch("reference", min(3, self._max_calls), check=False)
        per_call = max(once / min(3, self._max_calls), 1e-3)
        return max(1, min(self._max_calls, round(self._policy.batch_ms / per_call)))

    def _handshake_ms(self) -> float:
        """Return the cost of *go* and *done* around an empty batch, milliseconds."""
        worker = self._workers["reference"]
        times = []
        for _ in range(20):
            started = time.perf_counter()
            worker.ask("go", slots=[], each=False)
            times.append((time.perf_counter() - started) * 1e3)
        return sorted(times)[len(times) // 2]

    def _batch(self, role: str, calls: int, check: bool = True) -> tuple[float, float | None]:
        worker = self._workers[role]
        order = [self._secret.randrange(self._staged) for _ in range(calls)]
        if self._staged >= calls:
            order = self._secret.sample(range(self._staged), calls)
        worker.ask("ready", mode=self._mode, poison=self._poison)
        before = time.perf_counter()
        answer = worker.ask("go", slots=order, each=False)
        milliseconds = (time.perf_counter() - before) * 1e3
        claimed = answer.get("claimed_ms")
        if check and role == "candidate":
            self._check(worker, order)
        if self._problem.device.type != "cuda" or not isinstance(claimed, (int, float)):
            return milliseconds, None
        return milliseconds, float(claimed)

    def _check(self, worker: RemoteWorker, order: list[int]) -> None:
        """Check the last output of a batch and one more, chosen now.

        Every batch, but for gigabytes every fourth: comparing them takes longer than the batch.
        """
        self._batches += 1
        if self._large and self._batches % 4 != 1:
            return
        positions = {len(order) - 1, self._secret.randrange(len(order))}
        for position in positions:
            answer = worker.ask("fetch", position=position)
            values = worker.values(answer)
            expected, oracle = self._expected(order[position])
            mismatch = (
                Mismatch(status=Status.WRONG_STRUCTURE, message=str(answer["odd"])[:300])
                if answer.get("odd")
                else compare.structure(values.get("output"), expected)
            )
            if mismatch is None:
                for got, r, o in zip(
                    tensors_of(values["output"]),
                    tensors_of(expected),
                    tensors_of(oracle),
                    strict=False,
                ):
                    _, mismatch = compare.tensor(got, r, o, self._standard, "time", "output")
                    if mismatch is not None:
                        break
            if mismatch is not None:
                raise TimedWrongly(mismatch)

    def _expected(self, slot: int) -> tuple[Any, Any]:
        problem = self._problem
        before: Mapping[str, torch.Tensor] = {
            n: t.detach().clone() for n, t in problem.state().items()
        }
        inputs = self._inputs(slot) if slot else self._base
        reference = problem.call(problem.reference, self._mode, inputs, 0, None)
        write_state(problem.reference, before)
        if self._oracle.is_reference or self._large:
            return reference.output, reference.output
        return reference.output, self._oracle.call(self._mode, inputs, 0, None).output
