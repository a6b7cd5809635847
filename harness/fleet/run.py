"""Evaluates many pairs: starts their judges, where and when there is room, and keeps verdicts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.domain import (
    BASELINES,
    HarnessError,
    Options,
    Pair,
    Refusal,
    Status,
    UsageError,
    Verdict,
    to_json,
)
from harness.fleet.devices import Plan, make_plan
from harness.fleet.judge_process import Deadlines, JudgeProcess, Outcome
from harness.fleet.judge_server import JUDGE_COMMAND, JudgeServer
from harness.fleet.key import pair_key
from harness.fleet.logs import append, log_file, new_log_folder
from harness.fleet.preflight import preflight
from harness.fleet.replay import replay_command
from harness.fleet.resume import ResumeFile
from harness.fleet.turns import Turn
from harness.machine.environment import PROJECT_ROOT, find_compiler
from harness.machine.folders import cache_folder
from harness.machine.packaged_nvcc import linked_home

_MODES = (None, "forward", "eval", "train")
_POLL_S = 0.05
_OTHERS_CAN_CAUSE = frozenset(
    {
        Status.CRASHED,
        Status.HARNESS_ERROR,
        Status.INVALID_REFERENCE,
        Status.MEMORY_FAULT,
        Status.OUT_OF_MEMORY,
        Status.SKIPPED,
        Status.TAMPERED,
        Status.TIMED_OUT,
    }
)
"""Statuses that another pair on the same GPU can cause, by taking memory or time. The fleet
evaluates such a pair again, alone. Wrong values are always the pair's own."""


class Listener(Protocol):
    """Hears what happens, from several threads."""

    def started(self, pair: str, device: str) -> None:
        """A pair begins."""

    def phase(self, pair: str, phase: str) -> None:
        """A pair enters a phase, e.g. ``build`` or ``check eval 3/12``."""

    def finished(self, verdict: Verdict) -> None:
        """A pair has its verdict."""

    def reused(self, verdict: Verdict) -> None:
        """The fleet took a pair's verdict from the resume file, and does not start the pair."""


class Interrupted(KeyboardInterrupt):
    """The run was interrupted; everything it started has ended.

    Attributes:
        verdicts: one per pair, SKIPPED for those that had come to none.
    """

    def __init__(self, verdicts: list[Verdict]) -> None:
        super().__init__()
        self.verdicts = verdicts


class _Silent:
    """Listens to nothing."""

    def started(self, pair: str, device: str) -> None:
        pass

    def phase(self, pair: str, phase: str) -> None:
        pass

    def finished(self, verdict: Verdict) -> None:
        pass

    def reused(self, verdict: Verdict) -> None:
        pass


def run_pairs(
    pairs: Sequence[Pair],
    options: Options,
    *,
    listener: Listener | None = None,
    judge_command: Sequence[str] | None = None,
    deadlines: Deadlines | None = None,
    plan: Plan | None = None,
    resume: ResumeFile | None = None,
    judges: JudgeServer | None = None,
) -> list[Verdict]:
    """Return one verdict per pair, in their order, even where a judge fails.

    Args:
        pairs: what to evaluate; names must be unique.
        options: what the user asked for.
        listener: hears of progress.
        judge_command: starts one judge; None is the real one.
        deadlines: when to give up on a judge; None follows from the options.
        plan: how to use the machine; None makes one from the options.
        resume: gets every verdict at once. The fleet does not evaluate a pair whose verdict the
            file already holds.
        judges: forks the judges of several runs; None is one of this run's own, where there are
            several pairs.

    Raises:
        UsageError: an option is not valid, or its device is not there.
        Interrupted: Ctrl-C; carries the verdicts so far.
    """
    _validate(pairs, options)
    # The judge runs in another folder.
    pairs = [
        dataclasses.replace(p, problem=p.problem.absolute(), solution=p.solution.absolute())
        for p in pairs
    ]
    plan = plan or make_plan(options, len(pairs))
    if options.ncu and not plan.devices[0].startswith("cuda"):
        raise UsageError(
            f"--ncu reads a GPU's counters, and this run is on {plan.devices[0]}. "
            "Next: --device cuda, or leave out --ncu"
        )
    run = _Run(
        options,
        plan,
        listener or _Silent(),
        judge_command or JUDGE_COMMAND,
        deadlines or Deadlines.from_options(options),
        resume,
        judges,
    )
    return run.evaluate(pairs)


def _validate(pairs: Sequence[Pair], options: Options) -> None:
    names = [pair.name for pair in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"{', '.join(sorted(twice))}: named twice in one run")
    if options.mode not in _MODES:
        raise UsageError(f"unknown mode {options.mode!r}; valid: forward, eval, train")
    if not 0 < options.timeout_s < float("inf"):
        raise UsageError(f"the timeout must be positive seconds, not {options.timeout_s!r}")
    if not 0 < options.time_limit_s < float("inf"):
        raise UsageError(f"the time limit must be positive seconds, not {options.time_limit_s!r}")
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"the number of jobs must be at least 1, not {options.jobs!r}")
    if options.cap_s is not None and not 0 < options.cap_s < float("inf"):
        raise UsageError(f"the cap must be positive seconds, not {options.cap_s!r}")
    unknown = [n for n in options.baselines or () if n != "eager" and n not in BASELINES]
    if unknown:
        raise UsageError(f"unknown baseline {unknown[0]!r}; valid: eager, {', '.join(BASELINES)}")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise UsageError(f"the seed must be between 0 and 2**63 - 1, not {options.seed!r}")


class _Run:
    """One run over some pairs."""

    def __init__(
        self,
        options: Options,
        plan: Plan,
        listener: Listener,
        judge_command: Sequence[str],
        deadlines: Deadlines,
        resume: ResumeFile | None,
        judges: JudgeServer | None,
    ) -> None:
        self._options = options
        self._plan = plan
        self._listener = listener
        self._judge_command = judge_command
        self._deadlines = deadlines
        self._resume = resume
        self._judges = judges
        self._logs = new_log_folder(options.log_dir)
        self._cache = options.cache_dir or cache_folder()
        self._verdicts: dict[str, Verdict] = {}
        self._stop = threading.Event()
        self._why_stopped = ""
        self._mutex = threading.Lock()

    def evaluate(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return the verdicts of all pairs."""
        waiting: queue.SimpleQueue[Pair] = queue.SimpleQueue()
        for pair in pairs:
            if not self._take_stored(pair):
                waiting.put(pair)
        with contextlib.ExitStack() as ends_with_this_run:
            if self._judges is None and waiting.qsize() > 1:
                self._judges = ends_with_this_run.enter_context(JudgeServer())
            interrupted = self._work_side_by_side(waiting)
        verdicts = [self._verdicts.get(pair.name) or self._unreached(pair) for pair in pairs]
        if interrupted:
            raise Interrupted(verdicts)
        return verdicts

    def _work_side_by_side(self, waiting: queue.SimpleQueue[Pair]) -> bool:
        """Evaluate all pairs; returns whether the user interrupted that."""
        # Not Thread.join: where an interrupt ends it, Python 3.11 takes the thread for ended.
        ends = [threading.Event() for _ in range(min(self._plan.alive, waiting.qsize()))]

        def work(end: threading.Event) -> None:
            try:
                self._work(waiting)
            finally:
                end.set()

        interrupted = False
        for i, end in enumerate(ends):
            threading.Thread(target=work, args=(end,), name=f"fleet-{i}", daemon=True).start()
        while not all(end.is_set() for end in ends):
            try:
                for end in ends:
                    end.wait()
            except KeyboardInterrupt:
                interrupted = True
                self._stop_all("interrupted before it came to a verdict")
        return interrupted

    def _work(self, waiting: queue.SimpleQueue[Pair]) -> None:
        """Evaluate pairs until none waits."""
        while not self._stop.is_set():
            try:
                pair = waiting.get_nowait()
            except queue.Empty:
                return
            key = self._key(pair)
            try:
                verdict = self._evaluate(pair)
            except Exception:  # noqa: BLE001 - edge of a thread: a record is written whatever happens
                verdict = self._failed(
                    pair,
                    self._options,
                    HarnessError(f"the fleet failed: {traceback.format_exc(limit=-1).strip()}"),
                )
            if verdict is None:
                return
            self._verdicts[pair.name] = verdict
            if self._resume is not None:
                # A file may have changed meanwhile. Then it is unknown which content was judged.
                self._resume.append(key if key == self._key(pair) else None, verdict)
            self._listener.finished(verdict)
            self._stop_if_bad(verdict)

    def _take_stored(self, pair: Pair) -> bool:
        """Take a pair's verdict from the resume file; return whether the file has one."""
        stored = self._resume.verdict_of(self._key(pair)) if self._resume is not None else None
        if stored is None:
            return False
        self._verdicts[pair.name] = stored
        self._listener.reused(stored)
        self._stop_if_bad(stored)
        return True

    def _key(self, pair: Pair) -> str | None:
        """Return the key of a pair in the resume file; None where there is no such file."""
        if self._resume is None:
            return None
        return pair_key(pair, self._options, self._plan.devices)

    def _stop_if_bad(self, verdict: Verdict) -> None:
        bad = verdict.status not in (Status.PASSED, Status.SKIPPED)
        if self._options.fail_fast and bad:
            self._stop_all(f"not evaluated: {verdict.pair} did not pass and --fail-fast is set")

    def _stop_all(self, why: str) -> None:
        with self._mutex:
            self._why_stopped = self._why_stopped or why
        self._stop.set()

    def _evaluate(self, pair: Pair) -> Verdict | None:
        """Return the verdict of one pair; None where the run was stopped before it."""
        device = self._plan.assign()
        try:
            seed = self._options.seed
            options = dataclasses.replace(
                self._options,
                device=device,
                cache_dir=self._cache,
                size=pair.size or self._options.size,
                seed=secrets.randbits(63) if seed is None else seed,
            )
            self._listener.started(pair.name, device)
            try:
                settings = preflight(pair, options)
            except Refusal as refusal:
                return self._failed(pair, options, refusal)
            log = log_file(self._logs, pair.name)
            request = {
                "pair": to_json(pair),
                "options": to_json(options),
                "settings": settings.to_json(),
                "log": str(log),
            }
            outcome = None
            for alone in (False, True):
                turn = self._plan.turn(device, alone=alone)
                outcome = self._judged(pair, device, request, turn)
                if turn is None or not turn.was_shared or self._stands(options, outcome):
                    break
            if outcome is None:
                return None
            return self._concluded(pair, options, outcome, log)
        finally:
            self._plan.leave(device)

    def _judged(
        self, pair: Pair, device: str, request: Mapping[str, Any], turn: Turn | None
    ) -> Outcome | None:
        """Run one judge and return its outcome; None where the run was stopped before it."""
        build_slot = self._plan.build_slot(device)
        try:
            while not build_slot.try_take():
                if self._stop.is_set():
                    return None
                time.sleep(_POLL_S)
            return JudgeProcess(
                self._judge_command,
                request,
                log=Path(request["log"]),
                cwd=PROJECT_ROOT,
                env=self._environment(),
                deadlines=self._deadlines,
                build_slot=build_slot,
                turn=turn,
                on_phase=lambda phase: self._listener.phase(pair.name, phase),
                stop=self._stop,
                server=self._judges,
            ).run()
        finally:
            build_slot.release()

    def _stands(self, options: Options, outcome: Outcome | None) -> bool:
        """Return whether no other pair on the same device can have caused an outcome."""
        verdict = outcome.verdict if outcome is not None else None
        if verdict is None:
            return True
        if verdict.status in _OTHERS_CAN_CAUSE:
            return False
        asked = options.size is not None or options.quick
        return isinstance(verdict, Refusal) or verdict.size == "full" or asked

    def _environment(self) -> Mapping[str, str]:
        """Return a judge's environment: this one, with our package in reach."""
        path = os.environ.get("PYTHONPATH")
        env = dict(os.environ)
        env.pop(
            "PYTEST_CURRENT_TEST", None
        )  # it changes with each test, and forks need one for all
        env["PYTHONPATH"] = str(PROJECT_ROOT) + (os.pathsep + path if path else "")
        compiler = find_compiler()
        if compiler is not None and shutil.which("c++") is None:
            env.setdefault("CXX", compiler)  # torch tries c++ alone
        # Else torch makes a folder of its own in /tmp.
        env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self._cache / "inductor"))
        home = linked_home(self._cache)
        if home is not None:
            env["CUDA_HOME"] = str(home)
        side_by_side = self._plan.jobs if self._plan.turn(self._plan.devices[0]) is None else 1
        if side_by_side > 1:
            cores = len(os.sched_getaffinity(0))
            env.setdefault("OMP_NUM_THREADS", str(max(1, cores // side_by_side)))
        return env

    def _concluded(
        self, pair: Pair, options: Options, outcome: Outcome, log: Path
    ) -> Verdict | None:
        """Return the judge's verdict with what the fleet knows, or the fleet's own verdict."""
        result = outcome.verdict
        if result is None:
            return None
        if isinstance(result, Refusal):
            append(log, f"{result.status.value}: {result}")
            return dataclasses.replace(
                self._failed(pair, options, result), phases=outcome.phases, log=str(log)
            )
        notes = list(result.notes)
        if self._options.cache_dir is None and self._cache.parent != PROJECT_ROOT:
            notes.append(f"built extensions are kept in {self._cache}: {PROJECT_ROOT} is read-only")
        return dataclasses.replace(
            result,
            notes=tuple(notes),
            replay=replay_command(
                pair,
                dataclasses.replace(options, seed=result.seed, size=result.size or options.size),
            ),
            log=result.log or str(log),
        )

    def _failed(self, pair: Pair, options: Options, refusal: Refusal) -> Verdict:
        return Verdict(
            pair=pair.name,
            status=refusal.status,
            message=str(refusal),
            seed=options.seed or 0,
            device=options.device,
            size=options.size or "",
            replay=replay_command(pair, options),
        )

    def _unreached(self, pair: Pair) -> Verdict:
        return self._failed(
            pair,
            self._options,
            Refusal(Status.SKIPPED, self._why_stopped or "never started"),
        )
