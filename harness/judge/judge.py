"""Judges one pair from its files to its verdict."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import secrets
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
from harness.pairs.settings import Settings, SolutionSettings, Tolerances
from harness.usercode import numeric_flags
from harness.usercode.modules import describe_state

Emit = Callable[..., None]
WaitFor = Callable[[str, int | None], int | None]

_ALIVE_S = 5.0
"""Seconds between two signs of life from the same step."""
_PLENTY_BYTES = 20 << 30
"""On a GPU with so much free memory, of more than twice as much, the baselines' workers start
before the first call. Each takes its model and about 1 GiB for its context. On a smaller GPU they
start after the candidate's first call, which shows how much memory it leaves."""
_IGNORES_STREAM = (
    "it ignores the current stream: wrong inside torch.cuda.stream() and under CUDA graph capture"
)
_USES_BUILD = re.compile(r"cpp_extension|load_inline")
_MAY_DEPEND_ON_SIZE = frozenset(
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
        emit: tells the fleet of an event: its name and its fields.
        wait_for: returns when this judge may check on the device ("device"), or has it alone to
            measure ("clock"). Takes the memory that the pair needs, and returns the memory that
            other pairs leave; both are in bytes, and None where unknown.
        at_most_bytes: the judge chooses a size that needs no more: memory ran out at a larger one.
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
        self._granted = settings.solutions.get(pair.solution.stem, SolutionSettings())
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
        self._source: Mapping[str, str] = {}
        self._modes = (options.mode,) if options.mode else tuple(settings.modes)
        self._timed = options.timed and self._kind in ("cuda", "cpu")
        self._profiled = False
        self._sizes = size.Sizes(
            pair,
            options,
            settings,
            self._policy,
            train="train" in self._modes,
            at_most_bytes=at_most_bytes,
        )
        self._phase = ""
        self._phase_since = time.monotonic()
        cache_root = options.cache_dir or Path(".cache")
        self._cache_root = Path(cache_root).resolve()
        nvcc = options.nvcc if self._kind != "cuda" else ()
        self._cache = ExtensionCache(
            self._cache_root, pair.solution, self._kind, nvcc, fast_headers=options.fast_headers
        )
        self._budget = Budget(options.time_limit_s, self._policy.build_timeout_s)
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
                if status is Status.OUT_OF_MEMORY and not self._sizes.had_room():
                    return self._sizes.short_of_memory(message)
                return status, message
        return refusal.status, str(refusal)

    def _meaning_of_unforeseen(self, error: Exception) -> tuple[Status, str]:
        """Return what an exception means that is no refusal; the log gets its traceback."""
        with self._log.open("a") as log:
            log.write("".join(traceback.format_exception(error)))
        if is_out_of_memory(error):
            return self._sizes.short_of_memory("the judge ran out of GPU memory")
        return Status.HARNESS_ERROR, f"{type(error).__name__}: {error}"

    def _end_workers(self) -> None:
        self._enter("")
        for worker in self._pool.workers:
            self._gather(worker)
        self._facts.numeric_flags = self._pool.numeric_flags
        self._facts.numeric_flags["judge"] = numeric_flags.flags()
        self._pool.close()

    def _record(self, status: Status, message: str) -> Verdict:
        """Return the verdict with all that the judge found out."""
        facts, chosen = self._facts, self._sizes.chosen
        if chosen is not None and chosen.note:
            facts.notes.insert(0, chosen.note)
        status, message = causes.with_findings(facts.findings, status, message)
        if status is Status.MEMORY_FAULT:
            facts.speed = Speed()
        if self._options.ncu and status is Status.PASSED:
            self._count_kernels()
        if chosen is not None and chosen.halved and status in _MAY_DEPEND_ON_SIZE:
            message += (
                f" (at a reduced size, {chosen.halved}: --size full tells whether the solution is "
                "written for the full size only)"
            )
        return record.verdict(
            facts, self._pair, self._options, self._seed, self._log, status, message
        )

    def at_smaller_size(self) -> Judge | None:
        """Return a judge of the same pair at a smaller size, where this one ran out of memory.

        Returns:
            None where memory was enough, the user chose the size, or no smaller one is left.
        """
        if not self._sizes.can_shrink():
            return None
        needed = self._sizes.needed_bytes()
        options = dataclasses.replace(
            self._options,
            size="small" if needed is None else None,
            # The time that the larger size took counts: a pair has one limit.
            time_limit_s=max(self._budget.left_s(), self._policy.again_s),
        )
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
            self._wait_for,  # this process already has the device, but perhaps not the clock
            self._policy,
            None if needed is None else needed // 2,
        )

    # --- phases ---------------------------------------------------------------------------------

    def _judge(self) -> None:
        self._enter("load")
        requirements.readable(self._pool.confinement)
        self._facts.modes = self._modes
        problem = self._load_problem()
        requirements.hardware(self._granted.requires, self._kind, self._device)
        self._enter("build")
        self._build(problem)
        problem = self._take_device()
        worker = self._pool.start("candidate")
        loaded = self._load_candidate(worker, problem)
        match = self._match(problem, loaded)
        checker = Checker(
            problem,
            worker,
            match,
            self._standard(),
            self._domain(),
            count_launches=self._profiled,
            orders=self._options.thread_orders,
        )
        self._check(problem, checker)
        requirements.launches(self._facts, worker, loaded, self._text, self._kind)
        requirements.strength(checker.report.survivors)
        if self._timed:
            self._time(problem, checker, worker, match)
        self._look_at_streams(checker, worker)

    def _load_problem(self) -> Problem:
        """Return the problem, loaded on the CPU at a size that fits into the whole device."""
        problem = self._problem_for(size.capacity_bytes(self._options, self._device))
        if self._budget.left_s() <= 0:
            raise InvalidReference(
                f"{self._pair.problem}: its import and the construction of Model took "
                f"{self._budget.spent_s():.0f} s, and a pair has {self._budget.limit_s:g} s for "
                "all phases. Next: a smaller --size, or a longer --time-limit"
            )
        return problem

    def _take_device(self) -> Problem:
        """Wait for the device. Return the problem on it, at a size that fits into free memory."""
        on_gpu = self._kind == "cuda"
        if on_gpu:
            files = map(str, local_files(self._pair.solution))
            self._profiled = own_kernels.ships_cuda(own_kernels.sources_of(self._text, files))
            if self._timed:
                self._pool.start_compilers()
        with self._budget.waiting():
            room = self._wait_for("device", self._sizes.needed_bytes() if on_gpu else None)
        self._enter("load")
        if on_gpu:
            torch.cuda.set_device(self._device)  # events and streams without a name are its own
        # Other runs may hold memory of this device, and other pairs of this run need some soon.
        free = size.free_bytes(self._options, self._device)
        if free is not None and room is not None:
            free = min(free, room)
        problem = self._problem_for(free)
        if on_gpu and self._timed:
            free, total = torch.cuda.mem_get_info(self._device)
            if free > _PLENTY_BYTES and total > 2 * _PLENTY_BYTES:
                self._pool.start_baselines(problem, profiled=self._profiled)
        problem.move(self._device)
        return problem

    def _load_candidate(self, worker: RemoteWorker, problem: Problem) -> dict[str, Any]:
        loaded = self._pool.load(
            worker, problem, "ModelNew", self._pair.solution, {}, self._cache.folder
        )
        loaded["files"] = [*loaded["files"], *map(str, self._imported)]
        self._facts.notes += loaded["nvcc"][:50]
        return loaded

    def _check(self, problem: Problem, checker: Checker) -> None:
        self._facts.report = checker.report
        calls = self._policy.quick_calls if self._options.quick else self._policy.calls
        plan = trials.plan(self._seed, self._modes, calls, self._settings.fold_state)
        counts = {m: sum(t.mode == m for t in plan) for m in self._modes}

        def progress(trial: trials.Trial) -> None:
            self._enter(f"check {trial.mode}", f"{trial.index + 1}/{counts[trial.mode]}")
            self._budget.check()
            # After the first call, the free memory is the memory that the candidate leaves.
            if self._timed and self._kind == "cuda" and trial is plan[min(1, len(plan) - 1)]:
                free, total = torch.cuda.mem_get_info(self._device)
                if free > total // 4:
                    self._pool.start_baselines(problem, profiled=self._profiled)

        self._budget.begin_checks()
        checker.run(plan, progress)
        self._budget.end_checks()

    def _look_at_streams(self, checker: Checker, worker: RemoteWorker) -> None:
        """Check whether the candidate is right on another stream than the default one.

        This is the last of all calls, so a failure here spoils no other check.

        Raises:
            Refusal: it is not right, and the problem demands it.
        """
        wrong = ""
        if self._kind == "cuda":
            self._enter("check other stream")
            try:
                wrong = checker.on_other_stream(trials.on_other_stream(self._seed, self._modes[0]))
            except (OutOfTime, InvalidReference, RuntimeError) as error:
                if not isinstance(error, Refusal) and not is_out_of_memory(error):
                    raise
                self._facts.notes.append(
                    "unknown whether the solution is right on another stream: "
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
        """Return the problem at the size that the user asked for, or that fits into this memory."""
        before = self._sizes.chosen
        self._on_problem_code(True)  # it may try the problem's file at several sizes
        try:
            chosen = self._sizes.choose(available_bytes)
        finally:
            self._on_problem_code(False)
        if self._problem is None or before is None or before.name != chosen.name:
            self._forget_problem()  # free its memory before the next one is constructed
            self._problem = Problem(
                self._pair.problem,
                chosen.overrides,
                torch.device("cpu"),
                derived(self._seed, "construction") % 2**31,
                self._on_problem_code,
            )
        # The problem's file may have allowed TF32. The judge must not compute in it: its results
        # say what is right.
        numeric_flags.set_flags(numeric_flags.STRICT)
        self._facts.size = chosen.name
        return self._problem

    def _forget_problem(self) -> None:
        """Free the problem and the random numbers for its workers."""
        if self._problem is not None:
            self._problem.draws.close()
            self._problem = None

    def _build(self, problem: Problem) -> None:
        """Import the solution once, in a worker of its own, to cache its extensions."""
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
            if d["kind"] == "buffer"
            and state.is_constant(d["name"], tensors[d["name"]], "buffer", problem.drawn_buffers)
        )
        try:
            match = state.match(
                described, loaded["state"], constants, training="train" in self._modes
            )
        except state.StateMismatch as mismatch:
            self._facts.state_match = mismatch.lists
            raise
        self._facts.state_match = match.notes
        self._source = match.source
        return match

    def _time(
        self, problem: Problem, checker: Checker, worker: RemoteWorker, match: state.Match
    ) -> None:
        self._enter("time")
        options = self._options
        others, failed = self._pool.baselines(problem, profiled=self._profiled)
        workers = {CANDIDATE: worker, **others}
        hidden = [role for role, one in workers.items() if one.memory_fd is None]
        if hidden:
            # The judge cannot check outputs that it cannot read, and so measures nothing.
            self._facts.speed = Speed(
                note=f"this system does not let {', '.join(hidden)} open /proc/self/mem, so the "
                "judge cannot look at timed outputs, and measures nothing"
            )
            return
        if self._kind == "cuda":
            with self._budget.waiting():
                self._wait_for("clock", self._sizes.needed_bytes())
        if self._kind == "cpu":
            self._pool.pin(list(workers.values()))
        watch = stopwatch.Stopwatch(
            problem,
            checker.oracle,
            workers,
            match,
            TimingConfig(
                mode=self._timed_mode(),
                # Not the pair's, which a user may have chosen: it tells what the inputs are.
                seed=secrets.randbits(63),
                precision=str(self._precision() or ""),
                standard=checker.standard,
                warm_l2=options.warm_l2,
                timeout_s=self._pool.timeout_s,
            ),
            _clock_policy(options),
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
            other.kill()  # the remaining calls are the candidate's: it may use all the memory

    def _timed_mode(self) -> str:
        return "train" if "train" in self._modes else self._modes[0]

    def _count_kernels(self) -> None:
        """Count one call's kernels with Nsight Compute. A failure here only adds a note."""
        self._enter("ncu")
        try:
            self._facts.ncu, note = ncu.profile(
                self._profiled_call,
                self._pool.confinement,
                log=self._log,
                warm_l2=self._options.warm_l2,
                timeout_s=self._policy.ncu_timeout_s,
            )
        except Exception as error:  # noqa: BLE001 - counters do not change a verdict
            note = f"--ncu: {type(error).__name__}: {error}. Next: a smaller size, or leave it out"
        if note:
            self._facts.notes.append(note)
        self._enter("")

    def _profiled_call(self, build_folder: Path) -> ncu.Call:
        """Return a call like the timed ones, on an input of its own."""
        problem = self._problem
        assert problem is not None
        args = problem.inputs(derived(self._seed, "ncu"))
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

    def _precision(self) -> str | None:
        """Return the precision that the solution must have; None is the outputs' own."""
        return self._options.precision or self._granted.precision

    def _standard(self) -> Standard:
        tolerances = self._settings.tolerances or Tolerances()
        return Standard(
            policy=self._policy,
            atol=tolerances.atol,
            rtol=tolerances.rtol,
            precision=self._precision(),
        )

    def _domain(self) -> dict[str, dict[str, float]]:
        return {
            name: {end: v for end, v in dataclasses.asdict(interval).items() if v is not None}
            for name, interval in self._settings.domain.items()
        }

    def _enter(self, phase: str, detail: str = "") -> None:
        now = time.monotonic()
        if self._phase:
            spent = now - self._phase_since
            self._facts.phases[self._phase] = self._facts.phases.get(self._phase, 0.0) + spent
        self._phase, self._phase_since = phase, now
        if phase:
            self._emit("phase", phase=f"{phase} {detail}".strip())

    def _on_problem_code(self, runs: bool) -> None:
        """Tell the fleet whether the reference's code runs in this process, and how long it may."""
        if runs:
            self._emit("problem_code", left_s=self._budget.fleet_s())
        else:
            self._emit("harness_code")

    def _enter_step(self, step: str) -> None:
        """Tell the fleet which step of the timing runs, seldom: each message wakes the fleet.

        Raises:
            OutOfTime: the pair's time has been over for longer than the timing may overrun.
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
        """Write a program that reproduces the failure; return its message."""
        trial, case, mismatch = refused.trial, refused.case, refused.mismatch
        folder = self._cache_root / "reproducers" / re.sub(r"\W+", "_", self._pair.name)
        self._facts.reproducer = diagnose.write_reproducer(
            folder,
            self._pair,
            device=self._options.device,
            mode=trial.mode,
            rng=trial.rng,
            init=self._problem.init_inputs if self._problem is not None else [],
            state={theirs: case.before[ours] for theirs, ours in self._source.items()},
            inputs=case.inputs,
            expected=case.reference.output,
            message=f"{mismatch.status.value}: {mismatch.message}",
        )
        return f"in trial {trial.name}: {mismatch.message}"


def _clock_policy(options: Options) -> ClockPolicy:
    policy = ClockPolicy()
    if options.quick and options.cap_s is None:
        policy = ClockPolicy(cap_s=2.0, min_blocks=3, batch_ms=50.0)
    if options.cap_s is not None:
        policy = dataclasses.replace(policy, cap_s=options.cap_s)
    return policy


def judged(
    pair: Pair,
    options: Options,
    settings: Settings,
    log: Path,
    emit: Emit,
    wait_for: WaitFor,
    policy: Policy | None = None,
) -> Verdict:
    """Return a pair's verdict, at a smaller size if memory runs out. Arguments as for Judge."""
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
