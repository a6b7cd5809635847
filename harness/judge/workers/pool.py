"""Starts the workers of one pair and makes them load the user's modules."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import resource
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from harness.domain import BASELINES, REFERENCE, Options, Pair, Refusal, Status
from harness.judge.policy import Policy
from harness.judge.reference.problem import InvalidReference, Problem
from harness.judge.reference.seeds import derived
from harness.judge.workers import identity
from harness.judge.workers.budget import Budget
from harness.judge.workers.cache import ExtensionCache
from harness.judge.workers.remote import KilledBesideSolution, RemoteWorker, WorkerFailed
from harness.usercode import numeric_flags

_FIRST_TIME_S = 300.0
"""Limit for the first use of a compiler or of the profiler, which is no work of the user's."""
_CLOSE_S = 5.0
"""A request to a worker that has just been ended notices it within so many seconds."""
_LAST = 19
"""Niceness of compilers: they get a core that no other process wants."""
_COMPILED = "torch.compile"


class CannotLoad(Refusal):
    """The import of a file raised, or its module's constructor did."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.LOAD_FAILED, message)


class WorkerPool:
    """The workers of one pair.

    Args:
        pair, options, policy: what is judged and how; options.device is resolved.
        log: file for the workers' output.
        cache: extensions of the solution.
        compiled: folder of torch.compile's cache.
        numerics: the numeric flags of the candidate and of all baselines but ``eager defaults``:
            see harness.usercode.numeric_flags.
        seed: master seed.
        budget: the pair's time.
        notes: gets notes for the reader of the verdict.
        emit: tells the fleet of an event.

    Attributes:
        workers: all that were started and not removed.
        timeout_s: limit of one request.
        confinement: of the workers that run the solution.
        failed_builds: message and log of builds that failed in the build worker, by key: no other
            worker of this pair tries them again.
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
        numerics: str,
        seed: int,
        budget: Budget,
        notes: list[str],
        emit: Callable[[str], None],
    ) -> None:
        self._pair = pair
        self._options = options
        self._policy = policy
        self._log = log
        self._cache = cache
        self._compiled = compiled
        self._numerics = numerics
        self.numeric_flags: dict[str, Mapping[str, Any]] = {}
        self._seed = seed
        self._budget = budget
        self._notes = notes
        self._emit = emit
        self._kind = options.device.partition(":")[0]
        self.timeout_s = options.timeout_s * policy.request_part
        self.workers: list[RemoteWorker] = []
        self.confinement = identity.confinement(pair.solution, cache.read_by_workers)
        self.failed_builds: dict[str, tuple[str, str]] = {}
        self._sharing = threading.Lock()
        self._starved: set[str] = set()
        self._compilers: dict[str, tuple[RemoteWorker, concurrent.futures.Future[str]]] = {}
        self._loading: dict[str, tuple[RemoteWorker, concurrent.futures.Future[str]]] = {}

    def start(self, role: str) -> RemoteWorker:
        """Return a new worker: ``candidate`` and ``build`` under a user id of their own."""
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cap = int(max(self._policy.memory_floor_bytes, self._policy.memory_factor * held))
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        share = int(total * self._policy.memory_share)
        untrusted = role in ("candidate", "build")
        if untrusted and not self.confinement.own_user:
            self._emit("solution_code")
        worker = RemoteWorker(
            role=role,
            log=self._log,
            timeout_s=self.timeout_s,
            policy=self._policy,
            memory_bytes=share if self._kind == "cuda" else min(cap, share),
            threads=self.threads(),
            device=self._options.device,
            confinement=self.confinement if untrusted else None,
            beside_solution=not (untrusted or self.confinement.own_user),
            # Compilers leave the cores to a pair that is measured meanwhile.
            niceness=_LAST if role == "build" else 0,
            compiled=self._compiled if role.startswith(_COMPILED) else None,
            budget=self._budget if untrusted else None,
        )
        self.workers.append(worker)
        if untrusted and self.confinement.note and self.confinement.note not in self._notes:
            self._notes.append(self.confinement.note)
        return worker

    def threads(self) -> int:
        """Return how many CPU threads torch gets in a worker, 0 for all.

        Where the CPU is measured, all cores except the judge's. Elsewhere off the GPU one: sizes
        are small, and as many pairs run side by side as there are cores.
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
    ) -> dict[str, Any]:
        """Make a worker import a file and construct its module.

        Args:
            worker: started here.
            problem: gives the constructor's arguments.
            class_name: Model or ModelNew.
            path: the file.
            overrides: module-level constants to replace.
            built: where a build worker puts extensions.

        Raises:
            CannotLoad: the file or the constructor raised.
            WorkerFailed: the worker failed in another way.
        """
        private = worker.folder / "build"
        fields = worker.encode(init=problem.init_inputs)
        fields |= self.load_fields(
            class_name, path, overrides, built if worker.role == "build" else private
        )
        # A build worker runs beside other pairs, which may use all of the device's memory.
        fields["to_device"] = worker.role != "build"
        if worker.role == BASELINES["defaults"]:
            fields["numerics"] = numeric_flags.DEFAULTS
        compile_mode = None
        if worker.role.startswith(_COMPILED):
            compile_mode = worker.role.removeprefix(_COMPILED).strip() or "default"
        self._share_draws(worker, problem)
        try:
            loaded = worker.ask(
                "load",
                findings=str(worker.findings_path),
                # The baseline, too: the cost of the guarded allocator must cancel in the ratio.
                guarded=self._kind != "cuda" and self._guarded(),
                compile=compile_mode,
                **fields,
            )
            self.numeric_flags[worker.role] = loaded["numeric_flags"]
            return loaded
        except WorkerFailed as failed:
            if failed.error.get("kind") in ("raised", "exit"):
                raise CannotLoad(str(failed)) from None
            raise

    def _share_draws(self, worker: RemoteWorker, problem: Problem) -> None:
        """Give a worker the random numbers that its constructor will draw."""
        with self._sharing:  # baselines load side by side
            fd = problem.draws.shared()
        if fd is not None:
            worker.send("draws", (fd,), index=problem.draws.index)
            worker.answer()

    def load_fields(
        self, class_name: str, path: Path, overrides: dict[str, Any], build_folder: Path
    ) -> dict[str, Any]:
        """Return the part of a load request that is the same for every process.

        Args:
            class_name: Model or ModelNew.
            path: the file.
            overrides: module-level constants to replace.
            build_folder: where extensions that the cache lacks are built.
        """
        return {
            "file": str(path),
            "device": self._options.device,
            "numerics": self._numerics,
            "to_device": True,
            "cache": str(self._cache.folder),
            "build_folder": str(build_folder),
            "support": str(self._cache.support),
            "nvcc": [] if self._kind == "cuda" else list(self._options.nvcc),
            "fast_headers": self._options.fast_headers,
            "failed": self.failed_builds,
            "seed": derived(self._seed, "construction") % 2**31,
            "overrides": overrides,
            "class_name": class_name,
        }

    def _guarded(self) -> bool:
        """Return whether the CPU runner can check the candidate's memory here."""
        with self._budget.compiling():
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

    def _roles(self) -> list[str]:
        """Return the roles that hold the reference."""
        return [REFERENCE, *(BASELINES[name] for name in self._baseline_names())]

    def start_compilers(self) -> None:
        """Start the workers of torch.compile; they import it in the background.

        The import takes a core for seconds and touches no device. The wait for the device hides it.
        """
        compiling = [role for role in self._roles() if role.startswith(_COMPILED)]
        if not compiling:
            return
        pool = concurrent.futures.ThreadPoolExecutor(len(compiling))
        for role in compiling:
            worker = self.start(role)
            self._compilers[role] = worker, pool.submit(_said, worker, "import_compiler")
        pool.shutdown(wait=False)

    def start_baselines(self, problem: Problem, *, profiled: bool) -> None:
        """Start the workers that hold the reference, once; they load it in the background.

        A CUDA context and the start of the profiler take seconds. The checked calls hide them.

        Args:
            problem: gives the constructor's arguments.
            profiled: the candidate runs under the profiler. That may slow its launches for good,
                so the reference must start the profiler, too.
        """
        if self._loading:
            return
        roles = self._roles()

        def load(role: str, worker: RemoteWorker) -> str:
            if role in self._compilers:
                why = self._compilers[role][1].result()
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
                )
            except KilledBesideSolution:
                raise
            except WorkerFailed as error:
                if error.status is Status.OUT_OF_MEMORY:
                    self._starved.add(role)
                return str(error)
            except CannotLoad as error:
                return str(error)
            if profiled and (why := _said(worker, "start_profiler")):
                self._notes.append(f"{role}: its profiler did not start: {why}")
            return ""

        pool = concurrent.futures.ThreadPoolExecutor(len(roles))
        started = {
            role: self._compilers[role][0] if role in self._compilers else self.start(role)
            for role in roles
        }
        for role, worker in started.items():
            self._loading[role] = worker, pool.submit(load, role, worker)
        pool.shutdown(wait=False)

    def baselines(
        self, problem: Problem, *, profiled: bool
    ) -> tuple[dict[str, RemoteWorker], dict[str, str]]:
        """Return loaded workers that hold the reference, and why others could not load it.

        Args:
            problem: as for start_baselines.
            profiled: as for start_baselines.

        Raises:
            InvalidReference: the reference in eager PyTorch cannot be loaded.
            KilledBesideSolution: a worker was killed, and the solution could have killed it.
            torch.OutOfMemoryError: the reference does not fit beside the others.
        """
        self.start_baselines(problem, profiled=profiled)
        workers = {role: worker for role, (worker, _) in self._loading.items()}
        failed = {role: loaded.result() for role, (_, loaded) in self._loading.items()}
        failed = {role: why for role, why in failed.items() if why}
        if REFERENCE in failed and REFERENCE in self._starved:
            raise torch.OutOfMemoryError(f"in its own worker, the reference {failed[REFERENCE]}")
        if REFERENCE in failed:
            raise InvalidReference(f"in its own worker, the reference {failed[REFERENCE]}")
        for role in failed:
            workers.pop(role).close()
        return workers, failed

    def close(self) -> None:
        """End all workers, and wait for requests that still run."""
        for worker in self.workers:
            worker.kill()
        loading = [busy for _, busy in (*self._compilers.values(), *self._loading.values())]
        concurrent.futures.wait(loading, timeout=_CLOSE_S)
        for worker in self.workers:
            worker.close()

    def pin(self, workers: list[RemoteWorker]) -> None:
        """Give the judge the first core and the workers the others, if there are two or more."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            self._notes.append("one core: judge and workers share it")
            return
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setaffinity(int(task.name), {cores[0]})
        free = [worker.role for worker in workers if not worker.pin(set(cores[1:]))]
        if free:
            self._notes.append(f"workers that may use the judge's core: {', '.join(free)}")


def _said(worker: RemoteWorker, do: str) -> str:
    """Send a request without a result; return why it failed, or an empty string."""
    try:
        worker.ask(do, timeout_s=_FIRST_TIME_S)
    except KilledBesideSolution:
        raise
    except WorkerFailed as failed:
        return str(failed)
    return ""
