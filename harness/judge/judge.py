"""Judges one pair from its files to its verdict."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from harness.domain import (
    CANDIDATE,
    Options,
    Pair,
    Refusal,
    Speed,
    SpeedOutcome,
    Status,
    UsageError,
    Verdict,
)
from harness.judge import own_kernels, record, requirements, size
from harness.judge.check import answers, causes, diagnose, trials
from harness.judge.check.checker import Checker
from harness.judge.check.precision import Standard
from harness.judge.policy import Policy
from harness.judge.reference import state
from harness.judge.reference.problem import InvalidReference, Problem, is_out_of_memory
from harness.judge.reference.seeds import derived
from harness.judge.timing import ncu, stopwatch
from harness.judge.timing.batches import TimingConfig
from harness.judge.timing.clock import ClockPolicy
from harness.judge.workers.budget import Budget, OutOfTime
from harness.judge.workers.cache import ExtensionCache
from harness.judge.workers.pool import WorkerPool
from harness.judge.workers.remote import RemoteWorker, WorkerFailed
from harness.pairs.local_files import imported_files, local_files
from harness.pairs.settings import Settings
from harness.usercode import numeric_flags
from harness.usercode.modules import describe_state

Emit = Callable[..., None]
WaitFor = Callable[[str, int | None], int | None]

_LEAST_S = 30.0
"""Time for a pair that is judged again at a smaller size, if the larger one took all of it."""
_ALIVE_S = 5.0
"""Between two signs of life from the same step."""
_PLENTY_BYTES = 20 << 30
"""With this much free, and as much beside it, the baselines' workers come before the first call:
each takes about 1 GiB for its context, and its model. Else they come when the candidate has shown
what it leaves."""
_IGNORES_STREAM = (
    "it ignores the current stream: wrong inside torch.cuda.stream() and under CUDA graph capture"
)
_USES_BUILD = re.compile(r"cpp_extension|load_inline")


_OF_VALUES = frozenset(
    {
        Status.MEMORY_FAULT,
        Status.NOT_FINITE,
        Status.PRECISION_LOST,
        Status.WRONG_SHAPE,
        Status.WRONG_VALUES,
    }
)


class Judge:
    """One pair's evaluation.

    Args:
        pair, options, settings: what is judged and how; options.device is resolved.
        log: file for the workers' output.
        emit: called with an event's name and fields; the fleet listens.
        wait_for: returns when this judge may check on the device ("device"), or has it alone to
            measure ("clock"). Takes the device's memory that the pair needs and returns what others
            leave of it, both in bytes and None where unknown.
        at_most_bytes: choose a size that needs no more: memory ran out at a larger one.
    """

    def __init__(
        self,
        pair: Pair,
        options: Options,
        settings: Settings,
        log: Path,
        emit: Emit,
        wait_for: WaitFor,
        policy: Policy | None = None,
        at_most_bytes: int | None = None,
    ) -> None:
        self._pair = pair
        self._options = options
        self._settings = settings
        self._log = log
        self._emit = emit
        self._wait_for = wait_for
        self._policy = policy or Policy()
        assert options.seed is not None, "the fleet draws the seed of every pair"
        self._seed = options.seed
        self._kind = options.device.partition(":")[0]
        self._device = torch.device(options.device if self._kind == "cuda" else "cpu")
        self._facts = record.Facts()
        self._problem: Problem | None = None
        self._init: Any = None
        self._source: Mapping[str, str] = {}
        self._modes = (options.mode,) if options.mode else tuple(settings.modes)
        self._sizes = size.Sizes(
            pair,
            options,
            settings,
            self._policy,
            train="train" in self._modes,
            at_most_bytes=at_most_bytes,
        )
        self._size: size.Size | None = None
        self._available: int | None = None
        self._short_of_memory = False
        self._phase = ""
        self._phase_since = time.monotonic()
        cache_root = options.cache_dir or Path(".cache")
        self._cache_root = Path(cache_root).resolve()
        nvcc = options.nvcc if self._kind != "cuda" else ()
        self._cache = ExtensionCache(
            self._cache_root, pair.solution, self._kind, nvcc, fast_headers=options.fast_headers
        )
        self._budget = Budget(
            options.time_limit_s, self._policy.build_timeout_s, self._candidates_turn
        )
        self._text = pair.solution.read_text(encoding="utf-8", errors="replace")
        self._imported = [p for p in imported_files(pair.solution) if os.access(p, os.R_OK)]
        self._pool = WorkerPool(
            pair,
            options,
            self._policy,
            log,
            self._cache,
            self._cache_root / "compiled",
            numerics=numeric_flags.TF32 if self._precision() == "tf32" else numeric_flags.STRICT,
            seed=self._seed,
            budget=self._budget,
            notes=self._facts.notes,
            emit=emit,
        )
        if self._pool.threads():
            torch.set_num_threads(self._pool.threads())

    def verdict(self) -> Verdict:
        """Return the pair's verdict; whatever ends the evaluation becomes one."""
        status, message = Status.PASSED, ""
        try:
            self._judge()
        except Refusal as refusal:
            status, message = self._meaning_of(refusal)
        except UsageError as error:  # the command line is checked: the problem's file is at fault
            status, message = Status.INVALID_REFERENCE, str(error)
        except Exception as error:  # noqa: BLE001 - the process edge: every fault gets its name
            status, message = self._meaning_of_unforeseen(error)
        finally:
            self._end_workers()
        return self._record(status, message)

    def _meaning_of(self, refusal: Refusal) -> tuple[Status, str]:
        """Return what a refusal means, given what else is known of the pair."""
        workers = self._pool.workers
        match refusal:
            case answers.Refused():
                message = self._refused(refusal)
                return causes.after_hidden_build(workers, self._kind, refusal.status, message)
            case OutOfTime():
                return self._budget.verdict(self._phase)
            case WorkerFailed():
                status, message = causes.worker_failed(workers, self._phase, refusal)
                if status is Status.OUT_OF_MEMORY and not self._had_room():
                    return self._short(message)
                return status, message
        return refusal.status, str(refusal)

    def _meaning_of_unforeseen(self, error: Exception) -> tuple[Status, str]:
        """Return what an exception means that is no refusal; the log gets its traceback."""
        with self._log.open("a") as log:
            log.write("".join(traceback.format_exception(error)))
        if is_out_of_memory(error):
            return self._short("the judge ran out of GPU memory")
        return Status.HARNESS_ERROR, f"{type(error).__name__}: {error}"

    def _end_workers(self) -> None:
        self._enter("")
        for worker in self._pool.workers:
            self._gather(worker)
        self._facts.numeric_flags = self._pool.numeric_flags
        self._facts.numeric_flags["judge"] = numeric_flags.flags()
        self._pool.close()

    def _record(self, status: Status, message: str) -> Verdict:
        """Return the verdict with all that was found on the way."""
        if self._size is not None and self._size.note:
            self._facts.notes.insert(0, self._size.note)
        status, message = causes.with_findings(self._facts.findings, status, message)
        if status is Status.MEMORY_FAULT:
            self._facts.speed = Speed()
        if self._options.ncu and status is Status.PASSED:
            self._count_kernels()
        if self._size is not None and self._size.halved and status in _OF_VALUES:
            message = (
                f"{message} (at a reduced size, {self._size.halved}: --size full tells whether it "
                "is written for the full size only)"
            )
        return record.verdict(
            self._facts, self._pair, self._options, self._seed, self._log, status, message
        )

    def at_smaller_size(self) -> Judge | None:
        """Return a judge of the same pair at a smaller size, where this one ran out of memory.

        Returns:
            None where memory sufficed, the user chose the size, or there is no smaller one.
        """
        if not self._short_of_memory or self._size is None or self._size.name == "small":
            return None
        needed = self._needed()
        options = self._options
        if needed is None:
            options = dataclasses.replace(options, size="small")
        # One pair, one limit: what the larger size took counts.
        left_s = max(self._budget.left_s(), _LEAST_S)
        options = dataclasses.replace(options, time_limit_s=left_s)
        self._forget_problem()
        gc.collect()
        if self._kind == "cuda":
            torch.cuda.empty_cache()
        return Judge(
            self._pair,
            options,
            self._settings,
            self._log,
            self._emit,
            self._wait_for,  # the device is this process's already, the clock perhaps not
            self._policy,
            None if needed is None else needed // 2,
        )

    # --- phases ---------------------------------------------------------------------------------

    def _judge(self) -> None:
        self._enter("load")
        requirements.readable(self._pool.confinement)
        self._facts.modes = self._modes
        problem = self._problem_for(size.capacity_bytes(self._options, self._device))
        if self._budget.left_s() <= 0:
            raise InvalidReference(
                f"{self._pair.problem}: to import it and to construct Model took "
                f"{self._budget.spent_s():.0f} s, and a pair has {self._budget.limit_s:g} s over "
                "all phases. Next: a smaller --size, or a longer --time-limit"
            )
        requirements.hardware(self._solution_settings("requires"), self._kind, self._device)
        self._enter("build")
        self._build(problem)
        timed = self._options.timed and self._kind in ("cuda", "cpu")
        profiled = self._kind == "cuda" and own_kernels.ships_cuda(
            own_kernels.sources_of(self._text, map(str, local_files(self._pair.solution)))
        )
        if timed and self._kind == "cuda":
            self._pool.start_compilers()
        with self._budget.waiting():
            room = self._wait_for("device", self._needed() if self._kind == "cuda" else None)
        self._enter("load")
        if self._kind == "cuda":
            torch.cuda.set_device(self._device)  # events and streams without a name are its own
        # Other runs may hold memory of this device, and other pairs of this one need some soon.
        free = size.free_bytes(self._options, self._device)
        if free is not None and room is not None:
            free = min(free, room)
        problem = self._problem_for(free)
        if self._kind == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            if timed and free > _PLENTY_BYTES and total > 2 * _PLENTY_BYTES:
                self._pool.start_baselines(problem, profiled=profiled)
        problem.move(self._device)
        worker = self._pool.start("candidate")
        loaded = self._pool.load(
            worker, problem, "ModelNew", self._pair.solution, {}, self._cache.folder
        )
        loaded["files"] = [*loaded["files"], *map(str, self._imported)]
        self._facts.notes += loaded["nvcc"][:50]
        match = self._match(problem, loaded)
        standard = self._standard()
        quick = self._options.quick
        calls = self._policy.quick_calls if quick else self._policy.calls
        checker = Checker(
            problem,
            worker,
            match,
            standard,
            self._domain(),
            count_launches=profiled,
            orders=self._options.thread_orders,
        )
        self._facts.report = checker.report
        plan = trials.plan(self._seed, self._facts.modes, calls, self._settings.fold_state)
        counts = {m: sum(t.mode == m for t in plan) for m in self._facts.modes}

        def progress(trial: trials.Trial) -> None:
            self._enter(f"check {trial.mode}", f"{trial.index + 1}/{counts[trial.mode]}")
            self._budget.check()
            # After the first call what is free is what the candidate will leave.
            second = timed and self._kind == "cuda" and trial is plan[min(1, len(plan) - 1)]
            if second:
                free, total = torch.cuda.mem_get_info(self._device)
                if free > total // 4:
                    self._pool.start_baselines(problem, profiled=profiled)

        self._budget.begin_checks()
        self._enter_problem_code()
        checker.run(plan, progress)
        self._budget.end_checks()
        self._enter_problem_code()
        requirements.launches(self._facts, worker, loaded, self._text, self._kind)
        requirements.strength(checker.report.survivors)
        if timed:
            self._time(problem, checker, worker, match, profiled)
        self._look_at_streams(checker, worker)
        self._emit("harness_code")

    def _look_at_streams(self, checker: Checker, worker: RemoteWorker) -> None:
        """See whether the candidate is right on another stream than the default one.

        The last of all calls: a candidate that fails there, however badly, has been right so far.

        Raises:
            Refusal: it is not, and the problem demands it.
        """
        wrong = ""
        if self._kind == "cuda":
            self._enter("check other stream")
            try:
                wrong = checker.on_other_stream(
                    trials.on_other_stream(self._seed, self._facts.modes[0])
                )
            except (OutOfTime, InvalidReference, RuntimeError) as error:
                known = isinstance(error, (OutOfTime, InvalidReference))
                if not known and not is_out_of_memory(error):
                    raise
                self._facts.notes.append(
                    "not seen whether it is right on another stream: "
                    f"{' '.join(str(error).split())[:200]}"
                )
        elif worker.launches_without_stream:
            wrong = "its launches name no stream, or the default one"
        if not wrong:
            return
        if self._settings.streams == "any":
            raise Refusal(
                Status.WRONG_VALUES,
                f"{_IGNORES_STREAM}, and SETTINGS['streams'] asks for any stream ({wrong})",
            )
        self._facts.warnings.append(f"{_IGNORES_STREAM} ({wrong})")

    def _problem_for(self, available_bytes: int | None) -> Problem:
        """Return the problem at the size that is asked for, or fits into so much memory."""
        self._enter_problem_code()
        chosen = self._sizes.choose(available_bytes)
        self._available = available_bytes
        if self._size is None or self._size.name != chosen.name or self._problem is None:
            self._forget_problem()  # before the next one takes its memory, too
            self._problem = Problem(
                self._pair.problem,
                chosen.overrides,
                torch.device("cpu"),
                derived(self._seed, "construction") % 2**31,
            )
            self._init = self._problem.init_inputs
        # The judge's own products are never TF32's, whatever the problem's file has set: they say
        # what is right.
        numeric_flags.set_flags(numeric_flags.STRICT)
        self._emit("harness_code")
        self._size = chosen
        self._facts.size = chosen.name
        return self._problem

    def _forget_problem(self) -> None:
        """Let go of the problem and of the random numbers that were kept for its workers."""
        if self._problem is not None:
            self._problem.draws.close()
            self._problem = None

    def _had_room(self) -> bool:
        """Return whether the candidate had so much memory that it is at fault where it ran out."""
        if self._available is None:
            return True
        needed = self._needed()
        return needed is None or needed <= self._policy.memory_room * self._available

    def _needed(self) -> int | None:
        return None if self._size is None else self._sizes.need_of(self._size)

    def _short(self, what: str) -> tuple[Status, str]:
        """Return the verdict where memory ran out and nobody is to blame."""
        self._short_of_memory = self._options.size is None
        needed, available = self._needed(), self._available
        figures = [f"at size {self._facts.size}"]
        figures += [f"about {size.gib(needed)} are needed"] if needed is not None else []
        figures += [f"{size.gib(available)} were free"] if available is not None else []
        return Status.SKIPPED, f"{what} ({', '.join(figures)}). Next: --size small"

    def _build(self, problem: Problem) -> None:
        """Import the solution once in a worker that is thrown away, to fill the cache."""
        imported = (p.read_text(errors="replace") for p in self._imported)
        if not any(map(_USES_BUILD.search, (self._text, *imported))):
            return
        if self._cache.complete():
            return
        if self._kind != "cuda":
            with self._budget.compiling():
                why = self._cache.prepare_support(self._log)
            if why:
                raise Refusal(Status.SKIPPED, f"an extension has to be built, but there is {why}")
        worker = self._pool.start("build")
        build_folder = self._cache.build_folder(worker.uid)
        try:
            loaded = self._pool.load(
                worker, problem, "ModelNew", self._pair.solution, {}, build_folder
            )
            worker.kill()
            failed = loaded["failed"]
            self._pool.failed_builds = {key: (said, log) for key, (said, log) in failed.items()}
            self._cache.adopt(
                build_folder,
                loaded["built"],
                [*loaded["files"], *map(str, self._imported)],
                failed=bool(self._pool.failed_builds),
            )
        except WorkerFailed as failed:
            if self._kind != "cuda" or failed.status is not Status.OUT_OF_MEMORY:
                raise
            # Another pair has the device and its memory. The candidate builds when it has it.
            self._facts.notes.append("built late: no GPU memory was free beside another pair")
        finally:
            self._gather(worker)
            worker.close()
            self._pool.workers.remove(worker)
            self._cache.discard(build_folder)

    def _match(self, problem: Problem, loaded: dict[str, Any]) -> state.Match:
        described = describe_state(problem.reference)
        tensors = problem.state()
        constants = frozenset(
            d["name"]
            for d in described
            if d["kind"] == "buffer" and state.is_constant(d["name"], tensors[d["name"]], "buffer")
        )
        try:
            match = state.match(
                described, loaded["state"], constants, training="train" in self._facts.modes
            )
        except state.StateMismatch as mismatch:
            self._facts.state_match = mismatch.lists
            raise
        self._facts.state_match = match.notes
        self._source = match.source
        return match

    def _time(
        self,
        problem: Problem,
        checker: Checker,
        worker: RemoteWorker,
        match: state.Match,
        profiled: bool,
    ) -> None:
        self._enter("time")
        options = self._options
        others, failed = self._pool.baselines(problem, profiled=profiled)
        workers = {CANDIDATE: worker, **others}
        hidden = [role for role, one in workers.items() if one.memory_fd is None]
        if hidden:
            # An output that the judge cannot look at could be anything: no time without it.
            self._facts.speed = Speed(
                note=f"this system does not let {', '.join(hidden)} open /proc/self/mem, so timed "
                "outputs cannot be looked at, and nothing is timed"
            )
            return
        if self._kind == "cuda":
            self._emit("harness_code")
            with self._budget.waiting():
                self._wait_for("clock", self._needed())
            self._enter_problem_code()
        policy = ClockPolicy()
        if options.quick and options.cap_s is None:
            policy = ClockPolicy(cap_s=2.0, min_blocks=3, batch_ms=50.0)
        if options.cap_s is not None:
            policy = dataclasses.replace(policy, cap_s=options.cap_s)
        if self._kind == "cpu":
            self._pool.pin(list(workers.values()))
        watch = stopwatch.Stopwatch(
            problem,
            checker.oracle,
            workers,
            match,
            TimingConfig(
                mode=self._timed_mode(),
                seed=self._seed,
                precision=str(self._precision() or ""),
                standard=checker.standard,
                warm_l2=options.warm_l2,
                timeout_s=self._pool.timeout_s,
            ),
            policy,
            failed,
            self._enter_step,
            budget=self._budget,
        )
        try:
            self._facts.speed = watch.run()
        except OutOfTime:
            self._facts.speed = Speed(
                outcome=SpeedOutcome.UNDECIDED,
                note=f"the pair's time ({self._budget.limit_s:g} s) was over before it was timed; "
                "a longer --time-limit leaves more",
            )
        for other in others.values():
            other.kill()  # what follows is the candidate's alone, and so is the memory

    def _timed_mode(self) -> str:
        return "train" if "train" in self._facts.modes else self._facts.modes[0]

    def _count_kernels(self) -> None:
        """Have Nsight Compute look at one call. The verdict stands: what fails here is a note."""
        self._enter("ncu")
        try:
            self._facts.ncu, note = ncu.profile(
                self._profiled_call,
                self._pool.confinement,
                log=self._log,
                warm_l2=self._options.warm_l2,
                timeout_s=self._policy.ncu_timeout_s,
            )
        except Exception as error:  # noqa: BLE001 - counters have no say in a verdict
            note = f"--ncu: {type(error).__name__}: {error}. Next: a smaller size, or leave it out"
        if note:
            self._facts.notes.append(note)
        self._enter("")

    def _profiled_call(self, build_folder: Path) -> ncu.Call:
        """Return a call like those that were timed, on an input of its own."""
        problem = self._problem
        assert problem is not None
        self._enter_problem_code()
        args = problem.inputs(derived(self._seed, "ncu"))
        self._emit("harness_code")
        state_now = problem.state()
        return ncu.Call(
            load=self._pool.load_fields("ModelNew", self._pair.solution, {}, build_folder),
            init=problem.init_inputs,
            state={theirs: state_now[ours] for theirs, ours in self._source.items()},
            args=args,
            mode=self._timed_mode(),
            rng=derived(self._seed, "ncu", "rng") % 2**31,
        )

    # --- records --------------------------------------------------------------------------------

    def _solution_settings(self, key: str) -> Any:
        entry = self._settings.solutions.get(self._pair.solution.stem)
        return getattr(entry, key, None) if entry is not None else None

    def _precision(self) -> str | None:
        """Return the precision that the solution is held to, None for that of the outputs."""
        if self._options.precision is not None:
            return self._options.precision
        granted: str | None = self._solution_settings("precision")
        return granted

    def _standard(self) -> Standard:
        tolerances = self._settings.tolerances
        return Standard(
            policy=self._policy,
            atol=tolerances.atol if tolerances else None,
            rtol=tolerances.rtol if tolerances else None,
            precision=self._precision(),
        )

    def _domain(self) -> dict[str, dict[str, float]]:
        domain: dict[str, dict[str, float]] = {}
        for name, interval in self._settings.domain.items():
            limits = {"min": interval.min, "max": interval.max}
            domain[name] = {k: v for k, v in limits.items() if v is not None}
        return domain

    def _enter(self, phase: str, detail: str = "") -> None:
        now = time.monotonic()
        if self._phase:
            spent = now - self._phase_since
            self._facts.phases[self._phase] = self._facts.phases.get(self._phase, 0.0) + spent
        self._phase, self._phase_since = phase, now
        if phase:
            self._emit("phase", phase=f"{phase} {detail}".strip())

    def _enter_problem_code(self) -> None:
        """Tell the fleet that the reference's code runs from here on, and how long it may."""
        self._emit("problem_code", left_s=self._budget.fleet_s())

    def _candidates_turn(self, turn: bool) -> None:
        """Tell the fleet whether the candidate works: what takes long then is not the reference."""
        if turn:
            self._emit("harness_code")
        else:
            self._enter_problem_code()

    def _enter_step(self, step: str) -> None:
        """Say which step of the timing runs; the same again only now and then: it wakes others.

        Raises:
            OutOfTime: the pair's time has been over for a while.
        """
        if self._budget.left_s() < -self._policy.overtime_s:
            raise OutOfTime
        phase = f"time {step}"
        if phase != self._phase or time.monotonic() - self._phase_since > _ALIVE_S:
            self._enter(phase)

    def _gather(self, worker: RemoteWorker) -> None:
        self._facts.peak[worker.role] = max(self._facts.peak.get(worker.role, 0), worker.peak_bytes)
        if worker.role != "reference":
            self._facts.findings += worker.findings
            worker.findings = []
        if self._kind == "emulated" and worker.role == "candidate" and worker.launches is not None:
            self._facts.launches = worker.launches

    def _refused(self, refused: answers.Refused) -> str:
        trial, case, mismatch = refused.trial, refused.case, refused.mismatch
        folder = self._cache_root / "reproducers" / re.sub(r"\W+", "_", self._pair.name)
        self._facts.reproducer = diagnose.write_reproducer(
            folder,
            self._pair,
            device=self._options.device,
            mode=trial.mode,
            rng=trial.rng,
            init=self._init,
            state={theirs: case.before[ours] for theirs, ours in self._source.items()},
            inputs=case.inputs,
            expected=case.reference.output,
            message=f"{mismatch.status.value}: {mismatch.message}",
        )
        where = f"in trial {trial.name}: "
        return where + mismatch.message


def judged(
    pair: Pair,
    options: Options,
    settings: Settings,
    log: Path,
    emit: Emit,
    wait_for: WaitFor,
    policy: Policy | None = None,
) -> Verdict:
    """Return a pair's verdict; at a smaller size where memory runs out. Arguments as for Judge."""
    policy = policy or Policy()
    judge = Judge(pair, options, settings, log, emit, wait_for, policy)
    verdict = judge.verdict()
    for _ in range(policy.smaller_sizes):
        smaller = judge.at_smaller_size()
        if smaller is None:
            break
        judge = smaller
        verdict = judge.verdict()
    return verdict
