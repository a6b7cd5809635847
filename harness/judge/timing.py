"""Times reference, candidate and baselines against each other, and checks what was timed."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from harness import bell
from harness.domain import Baseline, HarnessError, Speed, SpeedOutcome, Status
from harness.judge import clock, compare, nvml, roofline, state, trials
from harness.judge.baton import Baton, Timed
from harness.judge.clock import AGAIN, CANDIDATE, REFERENCE
from harness.judge.compare import Mismatch, Standard
from harness.judge.oracle import Oracle
from harness.judge.problem import Outcome, Problem
from harness.judge.remote import RemoteWorker, WorkerFailed
from harness.judge.staging import Stage
from harness.modules import differentiable, shown_tensors, tensors_of, write_state

_LARGE_BYTES = 1 << 30
_FLUSH_TIMES = 4
_HOST_BUDGET_BYTES = 512 << 20
_SPARE_BYTES = 2 << 30
_BUSY_S = 3.0
_COMPILE_S = 300.0
"""torch.compile may take its time for the first call; nobody else gets more."""
_SAMPLE = 1 << 22
_SLICE_PART = 0.05
"""Shown elements may be off by this part of their tensor's root mean square: they are there to
see work that is late, stale or left out; precision is judged on whole outputs."""


class TimedWrongly(Exception):
    """An output of a timed batch is wrong; carries the mismatch."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(mismatch.message)
        self.mismatch = mismatch


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
    """Batches of one role."""

    clocked_ms: list[float] = field(default_factory=list)
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
        progress: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._progress = progress
        self._problem = problem
        self._oracle = oracle
        self._match = match
        self._setting = setting
        # The oracle may be too large for the moment: the reference then stands in for it. What
        # rounds differently has been found by the checked calls.
        self._standard = dataclasses.replace(setting.standard, oracle_precision="itself")
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
                trusted=role != CANDIDATE,
                timeout_s=setting.timeout_s,
            )
            for role, worker in workers.items()
        }
        self._failed: dict[str, str] = {}
        self._logs = {role: _Log() for role in (*workers, AGAIN)}
        self._batches = 0
        self._handshake_ms = 0.0
        self._quiet_ms = float("inf")
        self._watch = nvml.GpuWatch(problem.device)
        self._touched = False

    def run(self) -> Speed:
        """Measure, and return the record.

        Raises:
            TimedWrongly: a checked output of a timed batch is wrong, or a claim is a lie.
            WorkerFailed: reference or candidate failed while it was timed.
        """
        self._progress("stage")
        self._send_state()
        self._survey()
        calls = self._prepare()
        self._progress("blocks")
        order = random.Random(self._setting.seed)
        while True:
            roles = [REFERENCE, AGAIN, CANDIDATE, *self._others()]
            try:
                blocks = clock.measure(
                    lambda role: self._batch(role, calls) / calls,
                    roles,
                    self._policy,
                    order,
                    condition=self._watch.condition,
                )
                break
            except _BaselineFailed as failed:
                self._fail(failed.role, str(failed))
        self._progress("latency")
        latency = {role: self._latency_ms(role, calls) for role in (REFERENCE, CANDIDATE)}
        log = self._logs[CANDIDATE]
        lie = clock.lying(log.clocked_ms, log.claimed_ms, self._policy) if self._on_gpu else ""
        if lie:
            raise TimedWrongly(Mismatch(status=Status.TAMPERED, message=lie))
        self._progress("bound")
        return self._record(blocks, calls, latency)

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
            self._guarded(role, partial(_write, baton, values))

    def _guarded(self, role: str, work: Callable[[], Any]) -> None:
        """Do work for a role; a baseline that fails is named and does not hide the others."""
        try:
            work()
        except (WorkerFailed, _BaselineFailed) as failed:
            if role in (REFERENCE, CANDIDATE, AGAIN):
                raise
            self._fail(role, str(failed))

    def _fail(self, role: str, why: str) -> None:
        self._failed[role] = why
        self._batons.pop(role).worker.close()

    def _survey(self) -> None:
        """Call the reference: what comes out, how large it is, whether it repeats."""
        setting, problem = self._setting, self._problem
        inputs = problem.inputs(trials.derived(setting.seed, "timed", 0, 0))
        outcome = problem.call(problem.reference, setting.mode, inputs, 0, None)
        outputs = tensors_of(outcome.output)
        forms = [(tuple(o.shape), o.dtype) if differentiable(o) else None for o in outputs]
        self._poison = [t.numel() * t.element_size() for t in outputs]
        out = sum(self._poison)
        into = sum(t.numel() * t.element_size() for t in tensors_of(inputs))
        train = setting.mode == "train"
        if train:
            self._poison += [t.numel() * t.element_size() for t in tensors_of(inputs)]
        self._large = into + out > _LARGE_BYTES
        # What a call draws at random, or carries over from the last, no second process repeats.
        before = {n: t.detach().clone() for n, t in problem.state().items()}
        again = problem.call(problem.reference, setting.mode, inputs, 1, None, private=True)
        again = problem.call(problem.reference, setting.mode, inputs, 2, None, private=True)
        write_state(problem.reference, before)
        self._repeats = all(
            _alike(a, b)
            for a, b in zip(outputs, tensors_of(again.output), strict=True)
            if differentiable(a)
        )
        del outputs, again, outcome

        def draw(seed: int) -> list[torch.Tensor | None]:
            return [
                None
                if form is None
                else torch.randn(
                    form[0],
                    generator=torch.Generator(device=problem.device).manual_seed(
                        trials.derived(seed, "timed grad", i)
                    ),
                    device=problem.device,
                    dtype=form[1] if form[1] is torch.float64 else torch.float32,
                ).to(form[1])
                for i, form in enumerate(forms)
            ]

        grads = draw if train else None
        # A gradient call bounds its passes with what it is given.
        self._work = (
            roofline.passes(problem, setting.mode, inputs, draw(0) if train else None)
            if self._on_gpu
            else []
        )
        write_state(problem.reference, before)
        floating = [t.dtype for t in tensors_of(inputs) if t.is_floating_point()]
        self._dtype = max(floating, key=lambda d: d.itemsize) if floating else torch.float32
        del inputs
        torch.cuda.empty_cache()
        self._stage = Stage(problem, grads, setting.seed)
        self._out_bytes = sum(self._poison)

    def _prepare(self) -> int:
        """Stage as many calls as a batch should have; returns their number."""
        self._flush = None
        if self._on_gpu and not self._setting.warm_l2:
            properties = torch.cuda.get_device_properties(self._problem.device)
            size = _FLUSH_TIMES * max(int(getattr(properties, "L2_cache_size", 0)), 32 << 20)
            self._flush = torch.empty(size, dtype=torch.uint8, device=self._problem.device)
        self._stage.place(1, list(self._batons.values()))
        self._stage.refresh()
        for role in list(self._batons):  # compiles what compiles late, fills the allocators
            self._guarded(role, partial(self._warm_up, role))
        for role in self._batons:
            self._batch(role, 1)
        per_call_ms = max((self._batch(REFERENCE, 1) + self._batch(CANDIDATE, 1)) / 2, 1e-3)
        room = self._room()
        calls = max(1, min(bell.MAX_CALLS, room, round(self._policy.batch_ms / per_call_ms)))
        calls = self._fitting(calls)
        if calls > 1:
            # Short calls hide behind the hand-shake above: once more, from a real batch.
            per_call_ms = max(self._batch(CANDIDATE, calls) / calls, 1e-3)
            better = max(1, min(bell.MAX_CALLS, room, round(self._policy.batch_ms / per_call_ms)))
            if better > 1.5 * calls:
                calls = self._fitting(better)
        self._calibrate(calls)
        for log in self._logs.values():
            log.clocked_ms.clear()
            log.claimed_ms.clear()
        return calls

    def _fitting(self, calls: int) -> int:
        """Stage calls and run each role once over them; fewer where memory does not suffice."""
        while True:
            try:
                self._stage.place(calls, list(self._batons.values()))
                for role in list(self._batons):
                    self._guarded(role, partial(self._batch, role, calls))
            except (WorkerFailed, HarnessError, torch.OutOfMemoryError) as error:
                full = not isinstance(error, WorkerFailed) or error.status is Status.OUT_OF_MEMORY
                if calls == 1 or not full:
                    raise
                calls //= 2
                torch.cuda.empty_cache()
                continue
            return calls

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
        each = self._stage.slot_bytes + kept * self._out_bytes
        if not self._on_gpu:
            return max(1, _HOST_BUDGET_BYTES // max(each, 1))
        # After one checked call judge and workers hold what they need for one.
        torch.cuda.empty_cache()
        self._batches = 0
        self._batch(CANDIDATE, 1)
        free, _ = torch.cuda.mem_get_info(self._problem.device)
        spare = _SPARE_BYTES + 3 * self._stage.slot_bytes + 2 * self._out_bytes
        return 1 + max(0, free - spare) // max(each, 1)

    def _calibrate(self, calls: int) -> None:
        """Measure what a batch costs that calls nothing: hand-shake, events, showing."""
        baton = self._batons[REFERENCE]
        times = []
        for _ in range(15):
            baton.arm(self._setting.mode, [], each=False, again=True)
            self._cool()
            timed = baton.run([], calls, self._secret, self._most)
            times.append(timed.total_ms)
        self._handshake_ms = sorted(times)[len(times) // 2]

    # --- batches --------------------------------------------------------------------------------

    @property
    def _most(self) -> int:
        return 2 if self._large else 4

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

    def _batch(self, role: str, calls: int, *, each: bool = False) -> float:
        """Run one batch; returns its milliseconds without the hand-shake."""
        baton = self._batons[REFERENCE if role == AGAIN else role]
        if self._touched:
            self._stage.refresh(redraw=False)
            self._touched = False
        slots = list(range(min(calls, self._stage.count)))
        if self._setting.warm_l2:
            slots = slots[: max(1, self._warm_slots())]
        order = [slots[i % len(slots)] for i in range(calls)]
        self._secret.shuffle(order)
        if role != CANDIDATE:
            self._batons[CANDIDATE].rest()
        baton.arm(self._setting.mode, self._poison * min(calls, baton.keep), each=each)
        if role == CANDIDATE:
            # It stands still only now: what it could have read until here is not what it gets.
            self._stage.refresh()
            self._touched = True
        if self._large:
            torch.cuda.empty_cache()  # what the judge drew with, workers may need
        self._cool()
        try:
            timed = baton.run(order, calls, self._secret, self._most)
        except WorkerFailed as failed:
            if role in (REFERENCE, AGAIN, CANDIDATE):
                raise
            raise _BaselineFailed(role, failed) from failed
        clocked = max(timed.total_ms - self._handshake_ms, 1e-6)
        if role == CANDIDATE:
            self._check(baton, timed)
        if not each:
            self._logs[role].clocked_ms.append(clocked)
            self._logs[role].claimed_ms.append(timed.claimed_ms)
        return clocked

    def _warm_slots(self) -> int:
        properties = torch.cuda.get_device_properties(self._problem.device)
        return int(properties.L2_cache_size // 2 // max(self._stage.slot_bytes, 1))

    def _check(self, baton: Baton, timed: Timed) -> None:
        """Check elements of several outputs as they were at *done*, and some outputs whole."""
        self._batches += 1
        whole = not self._large or self._batches % 4 == 1
        chosen = self._secret.choice(timed.picks)
        for row, position in enumerate(timed.picks):
            if position != chosen and self._large and not whole:
                continue
            expected, oracle = self._expected(timed.order[position], position == chosen and whole)
            if self._repeats:
                self._check_shown(baton, row, expected, timed.elements, position)
            if position == chosen and whole:
                self._check_whole(baton, position, expected, oracle)

    def _check_shown(
        self, baton: Baton, row: int, expected: Outcome, elements: np.ndarray, position: int
    ) -> None:
        like = shown_tensors(expected.output, None)
        if self._setting.mode == "train":
            like = [*like, *expected.input_grads]
        raw = torch.from_numpy(elements)
        for column, tensor in enumerate(like[: bell.MAX_TENSORS]):
            if tensor is None or not tensor.numel() or tensor.layout is not torch.strided:
                continue
            got = baton.shown(row, column, tensor)
            want = torch.take(tensor, (raw % tensor.numel()).to(tensor.device))
            if differentiable(tensor):
                wide = torch.complex128 if tensor.is_complex() else torch.float64
                allowed = _SLICE_PART * max(_rms(tensor), _rms(want))
                same = ~torch.isfinite(want)
                off = torch.where(same, 0.0, (got.to(wide) - want.to(wide)).abs())
                wrong = not bool(_rms(off) <= allowed)
            else:
                wrong = not torch.equal(got, want)
            if wrong:
                raise TimedWrongly(
                    Mismatch(
                        status=Status.WRONG_VALUES,
                        message=f"output {position + 1} of {baton.role} was not there when it "
                        "said done (late, stale or left out)",
                    )
                )

    def _check_whole(self, baton: Baton, position: int, expected: Outcome, oracle: Any) -> None:
        answer = baton.worker.ask("fetch", position=position)
        values = baton.worker.values(answer)
        mismatch = (
            Mismatch(status=Status.WRONG_STRUCTURE, message=str(answer["odd"])[:300])
            if answer.get("odd")
            else compare.structure(values.get("output"), expected.output)
        )
        if mismatch is not None:
            raise TimedWrongly(mismatch)
        if not self._repeats:
            return
        triples: list[tuple[str, Any, torch.Tensor, torch.Tensor]] = [
            ("output", got, want, exact)
            for got, want, exact in zip(
                tensors_of(values["output"]),
                tensors_of(expected.output),
                tensors_of(oracle),
                strict=False,
            )
        ]
        if self._setting.mode == "train":
            grads = values.get("input_grads")
            for got, want in zip(
                grads if isinstance(grads, list) else [], expected.input_grads, strict=False
            ):
                if want is not None:
                    triples.append(("gradient of an input", got, want, want))
            theirs = values.get("state_grads")
            for name, ours in self._match.source.items():
                want = expected.state_grads.get(ours)
                if want is not None and isinstance(theirs, dict):
                    self._check_state_grad(ours, theirs.get(name), want)
        for what, got, want, exact in triples:
            if not isinstance(got, torch.Tensor) or got.shape != want.shape:
                mismatch = Mismatch(
                    status=Status.WRONG_GRADIENTS, message=f"the {what} is missing or misshapen"
                )
            else:
                _, mismatch = compare.tensor(got, want, exact, self._standard, "time", what)
            if mismatch is not None:
                raise TimedWrongly(mismatch)

    def _check_state_grad(self, name: str, got: Any, want: torch.Tensor) -> None:
        """See that a parameter's gradient is there; checked calls have judged its precision.

        It sums over the whole batch: the reference's own rounding is far above an element's.
        """
        there = isinstance(got, torch.Tensor) and got.shape == want.shape
        if not there or not _rms(got - want) <= _SLICE_PART * _rms(want):
            raise TimedWrongly(
                Mismatch(status=Status.WRONG_GRADIENTS, message=f"the gradient of {name} is wrong")
            )

    def _expected(self, slot: int, whole: bool) -> tuple[Outcome, Any]:
        problem, mode = self._problem, self._setting.mode
        before: Mapping[str, torch.Tensor] = {
            n: t.detach().clone() for n, t in problem.state().items()
        }
        inputs, grads = self._stage.values(slot)
        oracle = None
        if whole and not self._oracle.is_reference and not self._large:
            oracle = self._oracle.call(mode, inputs, 0, None).output
        outcome = problem.call(problem.reference, mode, inputs, 0, grads, private=True)
        write_state(problem.reference, before)
        return outcome, outcome.output if oracle is None else oracle

    def _latency_ms(self, role: str, calls: int) -> float:
        times = [self._batch(role, calls, each=True) for _ in range(self._policy.latency_blocks)]
        return float(np.median(times)) / calls

    # --- the record -----------------------------------------------------------------------------

    def _record(
        self,
        blocks: clock.Blocks,
        calls: int,
        latency: Mapping[str, float],
    ) -> Speed:
        policy = self._policy
        medians = {role: float(np.median(times)) for role, times in blocks.ms.items() if times}
        if CANDIDATE not in medians or len(blocks.ms[CANDIDATE]) < 2:
            why = ", ".join(f"{n} x {r}" for r, n in blocks.discarded.items())
            return Speed(outcome=SpeedOutcome.UNDECIDED, note=f"every block was discarded: {why}")
        floor = clock.noise_floor(blocks, policy)
        ratio, low, high = blocks.ratio(REFERENCE, CANDIDATE)
        shape = "throughput"
        notes = [self._cache_note(calls)]
        if clock.overlaps(medians, latency, policy):
            shape = "latency"
            factor = (latency[REFERENCE] / latency[CANDIDATE]) / ratio
            ratio, low, high = ratio * factor, low * factor, high * factor
            notes.append("its calls run side by side back to back: the latency counts")
        count = len(blocks.ms[CANDIDATE])
        dropped = sum(blocks.discarded.values())
        outcome = clock.outcome(low, high, floor)
        if dropped > policy.discard_part * (dropped + count):
            outcome = SpeedOutcome.UNDECIDED
            notes.append("most blocks were throttled")
        if self._watch.blind:
            notes.append(self._watch.blind)
        baselines = [self._baseline(name, blocks, floor) for name in self._others()]
        baselines += [Baseline(name=n, note=why) for n, why in self._failed.items()]
        figures = latency if shape == "latency" else medians
        claims = [c / calls for c in self._logs[CANDIDATE].claimed_ms if c is not None]
        device_ms = {r: self._device_ms(r, calls) for r in (REFERENCE, CANDIDATE)}
        limit = None
        if self._on_gpu:
            self._stage.close(list(self._batons.values()))
            limit = roofline.bound(
                self._work,
                self._problem.device,
                self._dtype,
                self._setting.precision,
                figures[CANDIDATE],
            )
            if limit.share > 1.0:
                notes.append(
                    "below the bound: it does less than the reference's algorithm must, or the "
                    "bound counts what can be left out; the outputs timed were right"
                )
        return Speed(
            outcome=outcome,
            speedup=ratio,
            low=low,
            high=high,
            reference_ms=figures[REFERENCE],
            candidate_ms=figures[CANDIDATE],
            claimed_ms=float(np.median(claims)) if claims and self._on_gpu else None,
            batches=count,
            calls_per_batch=calls,
            note="; ".join(notes),
            shape=shape,
            reference_latency_ms=latency[REFERENCE],
            candidate_latency_ms=latency[CANDIDATE],
            reference_device_ms=device_ms[REFERENCE],
            candidate_device_ms=device_ms[CANDIDATE],
            noise_floor=floor,
            late_bound=self._handshake_ms / max(medians[CANDIDATE] * calls, 1e-9),
            handshake_ms=self._handshake_ms,
            discarded=dropped,
            capped=blocks.capped,
            baselines=tuple(baselines),
            bound=limit,
            gpu=self._watch.record(),
            blocks={role: tuple(times) for role, times in blocks.ms.items()},
        )

    def _device_ms(self, role: str, calls: int) -> float | None:
        if not self._on_gpu:
            return None
        few = [i % self._stage.count for i in range(min(calls, 3))]
        return self._batons[role].device_ms(self._setting.mode, few)

    def _baseline(self, name: str, blocks: clock.Blocks, floor: float) -> Baseline:
        ratio, low, high = blocks.ratio(name, CANDIDATE)
        return Baseline(
            name=name,
            outcome=clock.outcome(low, high, floor),
            speedup=ratio,
            low=low,
            high=high,
            baseline_ms=float(np.median(blocks.ms[name])),
        )

    def _cache_note(self, calls: int) -> str:
        text = f"{calls} distinct inputs a batch, written after the candidate was stopped"
        if not self._on_gpu:
            return text
        if self._setting.warm_l2:
            return f"{calls} calls a batch over inputs that fit the L2 cache (warm)"
        return f"{text}; L2 cold"


def _write(baton: Baton, values: Mapping[str, torch.Tensor]) -> None:
    baton.wake()
    baton.worker.ask("state", **baton.worker.encode(values=values))
    baton.worker.ask("clear")


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two outputs are the same but for rounding, by a sample of their elements."""
    if a.shape != b.shape:
        return False
    if a.numel() > _SAMPLE:
        chosen = torch.randint(a.numel(), (_SAMPLE,), device=a.device)
        a, b = torch.take(a, chosen), torch.take(b, chosen)
    return torch.equal(a, b) or _rms(a - b) <= 1e-3 * _rms(b)


def _rms(t: torch.Tensor) -> float:
    """Return the root mean square of the finite elements, of a sample where there are many."""
    if not t.numel():
        return 0.0
    if t.numel() > _SAMPLE:
        t = torch.take(t, torch.randint(t.numel(), (_SAMPLE,), device=t.device))
    size = t.to(torch.complex128 if t.is_complex() else torch.float64).abs()
    finite = torch.where(torch.isfinite(size), size, torch.zeros_like(size))
    return float(finite.square().mean().sqrt())
