"""Starts the workers of one pair and has them load what they are to run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import resource
import threading
from pathlib import Path
from typing import Any

import torch

from harness.domain import BASELINES, Options, Pair, Status
from harness.judge import trials
from harness.judge.cache import ExtensionCache
from harness.judge.clock import REFERENCE
from harness.judge.policy import Policy
from harness.judge.problem import InvalidReference, Problem
from harness.judge.remote import RemoteWorker, WorkerFailed

_FIRST_TIME_S = 300.0
"""For what an import or a driver takes the first time: our work, not the user's limit."""
_DISMISS_S = 5.0
"""For a request to a worker that was just ended to notice it."""
_LAST = 19
"""Niceness of those that have a core when nobody else wants it."""


class CannotLoad(Exception):
    """A file raised when it was imported, or its constructor did."""


class Crew:
    """The workers of one pair.

    Args:
        pair, options, policy: what is judged and how; options.device is resolved.
        log: file for the workers' output.
        cache: extensions of the solution.
        compiled: folder in which torch.compile keeps what it made.
        tf32: whether TF32 is granted.
        seed: master seed.
        notes: takes what the reader of a verdict should know.

    Attributes:
        workers: all that were started and not removed.
        timeout_s: limit of one request.
    """

    def __init__(
        self,
        pair: Pair,
        options: Options,
        policy: Policy,
        log: Path,
        cache: ExtensionCache,
        compiled: Path,
        *,
        tf32: bool,
        seed: int,
        notes: list[str],
    ) -> None:
        self._pair = pair
        self._options = options
        self._policy = policy
        self._log = log
        self._cache = cache
        self._compiled = compiled
        self._tf32 = tf32
        self._seed = seed
        self._notes = notes
        self._kind = options.device.partition(":")[0]
        # Below the limit itself, so that a hang's whole verdict is there within it.
        self.timeout_s = options.timeout_s * 0.75
        self.workers: list[RemoteWorker] = []
        self._sharing = threading.Lock()
        self._starved: set[str] = set()
        self._called: dict[str, tuple[RemoteWorker, concurrent.futures.Future[str]]] = {}
        self._summoned: dict[str, tuple[RemoteWorker, concurrent.futures.Future[str]]] = {}

    def start(self, role: str) -> RemoteWorker:
        """Return a new worker: ``candidate`` and ``build`` under a user id of their own."""
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cap = int(max(self._policy.memory_floor_bytes, 4 * held))
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        worker = RemoteWorker(
            role=role,
            log=self._log,
            timeout_s=self.timeout_s,
            build_timeout_s=self._policy.build_timeout_s,
            memory_bytes=min(cap, int(total * 0.6)) if self._kind != "cuda" else int(total * 0.6),
            threads=self.threads(),
            device=self._options.device,
            untrusted=role in ("candidate", "build"),
            compiled=self._compiled if role.startswith("torch.compile") else None,
        )
        self.workers.append(worker)
        if role == "build":  # compilers leave the cores to the pair that is measured meanwhile
            os.setpriority(os.PRIO_PROCESS, worker.pid, _LAST)
        for note in worker.notes:
            if note not in self._notes:
                self._notes.append(note)
        return worker

    def threads(self) -> int:
        """Return torch's CPU threads of a worker, 0 for all.

        All but the judge's where the CPU is what is measured, else one: the sizes are small, and
        as many pairs run side by side as there are cores.
        """
        if self._kind == "cpu" and self._options.timed:
            return max(1, len(os.sched_getaffinity(0)) - 1)
        return 0 if self._kind == "cuda" else 1

    def load(
        self,
        worker: RemoteWorker,
        problem: Problem,
        class_name: str,
        path: Path,
        overrides: dict[str, Any],
        built: Path,
        compile_mode: str | None = None,
    ) -> dict[str, Any]:
        """Have a worker import a file and construct its module.

        Args:
            worker: started here.
            problem: gives the constructor's arguments.
            class_name: Model or ModelNew.
            path: the file.
            overrides: module-level constants to replace.
            built: where a build worker puts what it builds.
            compile_mode: mode of torch.compile, None leaves the module as it is.

        Raises:
            CannotLoad: the file or the constructor raised.
            WorkerFailed: anything else.
        """
        private = worker.folder / "build"
        fields = worker.encode(init=problem.init_inputs)
        self._share_draws(worker, problem)
        try:
            return worker.ask(
                "load",
                findings=str(worker.findings_path),
                # The baseline too: what the guarded allocator costs must cancel in the ratio.
                guarded=self._kind != "cuda" and self._guarded(),
                compile=compile_mode,
                **self.load_fields(
                    class_name, path, overrides, built if worker.role == "build" else private
                ),
                **fields,
            )
        except WorkerFailed as failed:
            if failed.error.get("kind") in ("raised", "exit"):
                raise CannotLoad(str(failed)) from None
            raise

    def _share_draws(self, worker: RemoteWorker, problem: Problem) -> None:
        """Give a worker the random numbers that its constructor is going to draw."""
        with self._sharing:  # baselines load side by side
            fd = problem.draws.shared()
        if fd is not None:
            worker.send("draws", (fd,), index=problem.draws.index)
            worker.answer()

    def load_fields(
        self, class_name: str, path: Path, overrides: dict[str, Any], staging: Path
    ) -> dict[str, Any]:
        """Return the part of a load request that is the same in whichever process it runs.

        Args:
            class_name: Model or ModelNew.
            path: the file.
            overrides: module-level constants to replace.
            staging: where extensions that the cache lacks are built.
        """
        return {
            "file": str(path),
            "device": self._options.device,
            "tf32": self._tf32,
            "cache": str(self._cache.folder),
            "staging": str(staging),
            "support": str(self._cache.support),
            "nvcc": [] if self._kind == "cuda" else list(self._options.nvcc),
            "seed": trials.derived(self._seed, "construction") % 2**31,
            "overrides": overrides,
            "class_name": class_name,
        }

    def _guarded(self) -> bool:
        """Return whether the CPU runner's memory checks are to be had for this candidate."""
        why = self._cache.prepare_support(self._log)
        if why:
            note = f"memory is neither guarded nor poisoned: {why}"
            if note not in self._notes:
                self._notes.append(note)
        return not why

    def _baseline_names(self) -> tuple[str, ...]:
        if self._options.baselines is not None:
            return tuple(name for name in self._options.baselines if name != "eager")
        return ("compile",) if self._kind == "cuda" and not self._options.quick else ()

    def _modes(self) -> dict[str, str | None]:
        """Return torch.compile's mode by role, None for the reference as it is."""
        modes: dict[str, str | None] = {REFERENCE: None}
        for name in self._baseline_names():
            mode = BASELINES[name]
            modes[f"torch.compile {mode}" if mode else "torch.compile"] = mode or "default"
        return modes

    def call_in(self) -> None:
        """Start the workers of torch.compile, and have them import it in the background.

        That takes a core for seconds and touches no device: the wait for the device hides it.
        """
        compiling = [role for role, mode in self._modes().items() if mode is not None]
        if not compiling:
            return
        pool = concurrent.futures.ThreadPoolExecutor(len(compiling))
        for role in compiling:
            worker = self.start(role)
            self._called[role] = worker, pool.submit(_said, worker, "import_compiler")
        pool.shutdown(wait=False)

    def summon(self, problem: Problem, *, profiled: bool) -> None:
        """Start the workers that hold the reference, unless they are, and have them load it.

        In the background: a CUDA context and the profiler's start take seconds, which the checked
        calls hide.

        Args:
            problem: gives the constructor's arguments.
            profiled: the candidate was under the profiler, which may cost a launch something ever
                after: then the reference has to have been, too.
        """
        if self._summoned:
            return
        modes = self._modes()

        def load(role: str, worker: RemoteWorker) -> str:
            if role in self._called:
                why = self._called[role][1].result()
                if why:
                    return why
            try:
                self.load(
                    worker,
                    problem,
                    "Model",
                    self._pair.problem,
                    problem.overrides,
                    worker.folder / "build",
                    modes[role],
                )
            except WorkerFailed as error:
                if error.status is Status.OUT_OF_MEMORY:
                    self._starved.add(role)
                return str(error)
            except CannotLoad as error:
                return str(error)
            if profiled and (why := _said(worker, "start_profiler")):
                self._notes.append(f"{role}: its profiler did not start: {why}")
            return ""

        pool = concurrent.futures.ThreadPoolExecutor(len(modes))
        started = {
            role: self._called[role][0] if role in self._called else self.start(role)
            for role in modes
        }
        for role, worker in started.items():
            self._summoned[role] = worker, pool.submit(load, role, worker)
        pool.shutdown(wait=False)

    def baselines(
        self, problem: Problem, *, profiled: bool
    ) -> tuple[dict[str, RemoteWorker], dict[str, str]]:
        """Return loaded workers that hold the reference, and why others could not be loaded.

        Args:
            problem: as for summon.
            profiled: as for summon.

        Raises:
            InvalidReference: the reference itself, in eager PyTorch, cannot be loaded.
            torch.OutOfMemoryError: it does not fit beside the others.
        """
        self.summon(problem, profiled=profiled)
        workers = {role: worker for role, (worker, _) in self._summoned.items()}
        failed = {role: loaded.result() for role, (_, loaded) in self._summoned.items()}
        failed = {role: why for role, why in failed.items() if why}
        if REFERENCE in failed and REFERENCE in self._starved:
            raise torch.OutOfMemoryError(f"in its own worker, the reference {failed[REFERENCE]}")
        if REFERENCE in failed:
            raise InvalidReference(f"in its own worker, the reference {failed[REFERENCE]}")
        for role in failed:
            workers.pop(role).close()
        return workers, failed

    def dismiss(self) -> None:
        """End all workers, and wait for those that were still loading."""
        for worker in self.workers:
            worker.kill()
        loading = [busy for _, busy in (*self._called.values(), *self._summoned.values())]
        concurrent.futures.wait(loading, timeout=_DISMISS_S)
        for worker in self.workers:
            worker.close()

    def pin(self, workers: list[RemoteWorker]) -> None:
        """Give the judge the first core and the workers the others, where there are two."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            self._notes.append("one core: judge and workers share it")
            return
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setaffinity(int(task.name), {cores[0]})
        for worker in workers:
            worker.pin(set(cores[1:]))


def _said(worker: RemoteWorker, do: str) -> str:
    """Ask a worker for something that has no answer; return why it failed, or an empty string."""
    try:
        worker.ask(do, timeout_s=_FIRST_TIME_S)
    except WorkerFailed as failed:
        return str(failed)
    return ""
