"""The judge's end of a worker: starts it, sends it requests, limits it, ends it."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from harness import ipc
from harness.domain import Finding, HarnessError, Refusal, Status
from harness.judge.policy import Policy
from harness.judge.workers import prefork, processes, replies
from harness.judge.workers.budget import Budget, OutOfTime
from harness.judge.workers.drain import Drain
from harness.judge.workers.identity import PACKAGE_ROOT, Confinement, environment_in
from harness.judge.workers.patience import Patience
from harness.machine import folders, left_files
from harness.machine.environment import oom_kills

_MOST_FINDINGS_BYTES = 1 << 20
_START_TIMEOUT_S = 60.0
"""A worker takes less to start and to give up its rights. No code of a user runs meanwhile."""


class WorkerFailed(Refusal):
    """A request to a worker ended without a usable answer.

    Args:
        status: of the verdict, where the candidate's worker failed.
        message: one line.
        error: the worker's own report, {} where there is none.
    """

    def __init__(self, status: Status, message: str, error: Mapping[str, Any] | None = None):
        super().__init__(status, message)
        self.error = dict(error or {})


class KilledBesideSolution(WorkerFailed):
    """A trusted worker was killed while a solution ran under the same user id."""

    def __init__(self, role: str) -> None:
        super().__init__(
            Status.CRASHED,
            f"the {role} worker was killed (SIGKILL) while the solution ran under the same user "
            "id, and memory was not short: the solution, or another program of this user, sent "
            "the signal",
        )


class RemoteWorker:
    """One worker process with its own folder, user id, arenas and limits.

    Args:
        role: ``reference``, ``candidate`` or ``build``: names the log section and the figures.
        log: gets the process's stdout and stderr.
        timeout_s: limit for one request.
        policy: limits of compilers, of a standstill, of the form of an answer.
        memory_bytes: the judge ends a process that uses more resident memory.
        threads: CPU threads of torch in the worker; 0 leaves the default.
        device: ``cuda:N`` gets device arenas, anything else host arenas.
        confinement: of a worker that runs a solution; None is a trusted worker.
        beside_solution: a trusted worker with the same user id as a solution.
        niceness: scheduling priority, set before the worker runs any code of a user.
        compiled: folder of torch.compile's cache; None is the worker's own folder.
        budget: of the pair, where this worker's time counts.
    """

    def __init__(
        self,
        *,
        role: str,
        log: Path,
        timeout_s: float,
        policy: Policy,
        memory_bytes: int,
        threads: int,
        device: str,
        confinement: Confinement | None = None,
        beside_solution: bool = False,
        niceness: int = 0,
        compiled: Path | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.role = role
        self._policy = policy
        # The worker starts on the harness's time, not on the pair's.
        self._budget = Budget(math.inf, policy.build_timeout_s)
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._device = device
        self._inbox: Any = None
        self._outbox: Any = None
        self._sequence = secrets.randbelow(1 << 30)
        self._looked_at = 0.0
        # Shared bytes that belong to the judge and do not count for the worker.
        self._host_arenas: dict[str, int] = {}
        self.peak_bytes = 0
        self._family_at = self._busy_at = time.monotonic()
        self._children_bytes = 0
        self._cpu_spent = 0.0
        self._patience: Patience | None = None
        self._asked = ""
        self._grows = False
        self.launches: int | None = None
        self.launches_without_stream = 0
        self.build_failures: list[str] = []
        self.unsupported: list[str] = []
        self.findings: list[Finding] = []
        self.max_outbox_bytes = 1 << 40
        self.expected_tensors = 0
        self.folder = folders.temporary(f"harness-{role}-")
        self.memory_fd: int | None = None
        self.findings_path = self.folder / "findings.jsonl"
        self.uid = confinement.uid() if confinement else None
        self._untrusted = confinement is not None
        self._beside_solution = beside_solution
        self._ended_by_us = False
        self._oom_kills = oom_kills()
        self._still = processes.Standstill(frozenset(), {})
        if self.uid is not None:
            os.chown(self.folder, self.uid, self.uid)
        environment = environment_in(self.folder, compiled)
        with processes.births:
            self._process = prefork.take(environment, PACKAGE_ROOT)
            processes.live.add(self._process.pid)
        self._channel = ipc.Channel(self._process.sock)
        self._drain = Drain(self._process.output, log, f"{role} worker")
        self._drain.start()
        try:
            self.ask(
                "confine",
                untrusted=self._untrusted,
                uid=self.uid,
                expose=confinement.exposed_with(self.folder) if confinement else [],
                niceness=niceness,
                max_data_bytes=None if device.startswith("cuda") else memory_bytes + (4 << 30),
                environment=environment,
                timeout_s=_START_TIMEOUT_S,
                folder=str(self.folder),
                threads=threads,
            )
        except KilledBesideSolution:
            self.close()
            raise
        except WorkerFailed as error:
            self.close()
            raise HarnessError(f"the {role} worker did not start: {error}") from error
        self._budget = budget or self._budget
        # The worker's memory as a file, opened before any code of a solution ran.
        self.memory_fd = next(iter(self._channel.take_fds()), None)
        self._channel.refuse_fds()

    # --- asking ---------------------------------------------------------------------------------

    def ask(self, do: str, *, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            WorkerFailed: there is no answer, it is forged, or it says that user code failed.
        """
        self.send(do, **fields)
        return self.answer(timeout_s)

    def send(self, do: str, fds: tuple[int, ...] = (), **fields: Any) -> None:
        """Send one request without waiting for its answer."""
        self._sequence += 1 + secrets.randbelow(1 << 16)
        if do != "confine" and self._channel.pending():
            if self._channel.has_ended():
                raise self._dead()
            raise self.tampered("it sent an answer that nothing had asked for")
        self._asked = do
        deadline = time.monotonic() + self._timeout_s
        try:
            self._channel.send({"id": self._sequence, "do": do, **fields}, fds, deadline)
        except ipc.WireClosed:
            raise self._dead() from None
        except ipc.WireTimeout:
            self.kill()
            text = f"did not take a request within {self._timeout_s:.0f} s"
            raise WorkerFailed(Status.TIMED_OUT, text) from None

    def answer(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the answer to the last request; a compiler's time does not count.

        Raises:
            WorkerFailed: as for ``ask``.
            OutOfTime: the pair's time ran out meanwhile; the judge has ended the worker.
        """
        with self._budget.candidate():
            patience = Patience(timeout_s or self._timeout_s, self._budget)
            try:
                return self._answer(patience)
            finally:
                self._patience = None
                patience.close()

    def _answer(self, patience: Patience) -> dict[str, Any]:
        self._patience = patience
        while True:
            try:
                message = self._channel.receive(watch=self._watch_reply)
                event = replies.event(message)
                if not event:
                    if message.get("id") != self._sequence:
                        raise ipc.WireViolation("its answer carries another request's number")
                    answer = replies.read(self._asked, message)
                    break
                patience.hear(event)
                if patience.is_over():
                    raise ipc.WireTimeout
            except ipc.WireClosed:
                raise self._dead() from None
            except ipc.WireTimeout:
                self.kill()
                if self._budget.deadline_s() <= 0 and not patience.compilers_took_too_long():
                    raise OutOfTime from None
                raise WorkerFailed(Status.TIMED_OUT, patience.said()) from None
            except ipc.WireViolation as error:
                raise self.tampered(str(error)) from None
            if patience.claims_to_compile and not patience.has_compiler_time:
                self.kill()
                text = "had another extension to compile when the time for compilers was over"
                raise WorkerFailed(Status.TIMED_OUT, text)
        self._note_facts(answer)
        if "error" in answer:
            raise self._failed(answer["error"])
        if "too_small" in answer:
            return self._grown(answer["too_small"], answer["tensors"])
        return answer

    def _watch_reply(self) -> None:
        self._watch()
        if self._patience is not None and self._patience.is_over():
            raise ipc.WireTimeout

    def values(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of an answer as private copies.

        Raises:
            WorkerFailed: the protocol does not allow their description (TAMPERED).
        """
        try:
            decoder = ipc.Decoder(self._outbox, answer["table"])
            values = {name: decoder.decode(said) for name, said in answer["values"].items()}
            replies.check_values(self._asked, values)
        except ipc.WireViolation as error:
            raise self.tampered(str(error)) from None
        if self._device.startswith("cuda"):
            # The worker writes its next answer to the same memory, and copying gigabytes takes a
            # while. Without this wait the judge once compared inputs instead of outputs.
            torch.cuda.synchronize(self._device)
        return values

    def encode(self, **values: Any) -> dict[str, Any]:
        """Write values into the worker's inbox and return the request fields describing them."""
        encoder = ipc.Encoder(self._inbox)
        described = {name: encoder.encode(value) for name, value in values.items()}
        needed = encoder.needed_bytes
        if needed and (self._inbox is None or needed > self._inbox.size_bytes):
            self._inbox = self._new_arena("in", needed)
            encoder = ipc.Encoder(self._inbox)
            described = {name: encoder.encode(value) for name, value in values.items()}
        encoder.finish()
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return {**described, "table": encoder.table}

    def share(self, which: str, arena: Any) -> None:
        """Let the worker map one of the judge's arenas.

        Args:
            which: its purpose: ``in``, ``out``, ``stage`` or ``mailbox``.
            arena: a HostArena or a DeviceArena, which the judge owns.
        """
        if isinstance(arena, ipc.HostArena):
            self._host_arenas[which] = arena.size_bytes
            self.send("arena", (arena.fd,), which=which, kind="host", bytes=arena.size_bytes)
            self.answer()
        else:
            self.ask(
                "arena",
                which=which,
                kind="cuda",
                bytes=arena.size_bytes,
                handle=arena.handle().hex(),
                device=self._device,
            )

    def _new_arena(self, which: str, size_bytes: int) -> Any:
        size_bytes = int(size_bytes * 1.05) + (1 << 16)
        old = self._inbox if which == "in" else self._outbox
        if self._device.startswith("cuda"):
            from harness.ipc import device_arena

            arena = device_arena.DeviceArena.create(size_bytes, self._device)
            self.share(which, arena)
            if old is not None:
                # Not earlier: freeing memory that a peer still maps is undefined.
                old.close()
            return arena
        host = ipc.HostArena.create(size_bytes)
        if old is not None:
            old.close()
        self.share(which, host)
        return host

    def _grown(self, needed: int, tensors: int) -> dict[str, Any]:
        """Return the answer once more, by way of an arena that can hold it."""
        asked = self._asked
        if self._grows:
            raise self.tampered("its answer grew while it was read")
        if needed > self.max_outbox_bytes:
            most = self._policy.tensors_factor * self.expected_tensors + self._policy.tensors_floor
            many = tensors > most
            raise WorkerFailed(
                Status.WRONG_STRUCTURE if many else Status.WRONG_SHAPE,
                f"its answer takes {needed} bytes in {tensors} tensors, over the cap of "
                f"{self.max_outbox_bytes}",
            )
        self._outbox = self._new_arena("out", needed)
        self._grows = True
        try:
            self.send("again")
            self._asked = asked
            return self.answer()
        finally:
            self._grows = False

    # --- under the clock ------------------------------------------------------------------------

    def look(self, deadline: float, may_answer: Callable[[], bool] = lambda: False) -> None:
        """Check, during a wait for the mailbox, that the worker lives and works.

        Args:
            deadline: time.monotonic() at which the batch must have ended.
            may_answer: returns whether the batch is done, so that an answer may arrive.

        Raises:
            WorkerFailed: it died, answered that it failed, answered out of turn, ran out of
                memory, or the deadline has passed.
        """
        if self._channel.pending() and not may_answer():
            self.answer()
            raise self.tampered("it answered before it was done")
        now = time.monotonic()
        if now > deadline:
            self.kill()
            raise WorkerFailed(Status.TIMED_OUT, "a timed batch did not end in time")
        if now - self._looked_at > 0.05:
            self._looked_at = now
            self._watch()

    def pause(self) -> None:
        """Stop the worker and all its descendants, and wait until they stand still.

        The judge stops trusted workers in the same way. A worker that stands for longer wakes up
        more slowly, and both sides must pay the same.

        Raises:
            WorkerFailed: they do not stand still (TAMPERED).
        """
        try:
            self._still = processes.stop(
                self._process.pid, orphans=self._untrusted, limit_s=self._policy.stand_s
            )
        except processes.Restless:
            raise self.tampered("it keeps running although it was stopped") from None

    def see_it_stood(self) -> None:
        """Check that no process of the worker has run since the judge stopped it.

        Raises:
            WorkerFailed: one has run (TAMPERED).
        """
        stood = processes.stood_still(self._process.pid, self._still, orphans=self._untrusted)
        if not stood:
            raise self.tampered("it ran while it was stopped")

    def resume(self) -> None:
        """Resume the worker."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self._process.pid, signal.SIGCONT)

    def resume_family(self) -> None:
        """Resume the processes that the judge stopped together with the worker."""
        processes.resume(self._still, self._process.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def pin(self, cores: set[int]) -> bool:
        """Keep every thread of the worker on some cores; new threads inherit that.

        The worker does it itself: in a default container the judge may not move another user's
        threads (CAP_SYS_NICE). A worker could undo the judge's setting as well.

        Returns:
            Whether every thread is on these cores now.
        """
        self.ask("pin", cores=sorted(cores))
        found = set()
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                found |= os.sched_getaffinity(int(task.name))
        return found <= cores

    # --- failures -------------------------------------------------------------------------------

    def _note_facts(self, message: Mapping[str, Any]) -> None:
        self.findings += message.get("findings", [])
        self.build_failures = message.get("build_failures", self.build_failures)
        self.unsupported = message.get("unsupported", self.unsupported)
        self.launches = message.get("launches", self.launches)
        without = message.get("launches_without_stream", self.launches_without_stream)
        self.launches_without_stream = without

    def tampered(self, what: str) -> WorkerFailed:
        """End a worker that broke the protocol; return its failure.

        A worker that runs no code of the solution's can only do so by the reference's code.
        """
        self.kill()
        status = Status.TAMPERED if self._untrusted else Status.INVALID_REFERENCE
        return WorkerFailed(status, f"the {self.role} worker broke the protocol: {what}")

    def _failed(self, error: Mapping[str, Any]) -> WorkerFailed:
        status = {
            "build": Status.BUILD_FAILED,
            "unsupported": Status.SKIPPED,
            "load": Status.LOAD_FAILED,
            "oom": Status.OUT_OF_MEMORY,
            "memory": Status.MEMORY_FAULT,
            "exit": Status.CRASHED,
        }.get(error["kind"], Status.CRASHED)
        place = f" at {error['place']}" if error["place"] else ""
        message = error["message"]
        return WorkerFailed(status, message + (place if place not in message else ""), error)

    def _dead(self) -> WorkerFailed:
        ours, code = self._ended_by_us, self._process.wait(5)
        self.kill()
        left = self._read_last_findings()
        if code is None:
            return WorkerFailed(Status.CRASHED, "closed its end of the wire")
        if code < 0:
            by_memory = oom_kills() > self._oom_kills
            if -code == signal.SIGKILL and self._beside_solution and not (ours or by_memory):
                return KilledBesideSolution(self.role)
            return WorkerFailed(Status.CRASHED, f"died with {_signal(-code)}{left}")
        text = f"exited with code {code} in the middle of a request{left}"
        return WorkerFailed(Status.CRASHED, text)

    def _read_last_findings(self) -> str:
        """Take the findings of a fault that ended the process; return what else lies there."""
        try:
            text = left_files.head_of(self.findings_path, _MOST_FINDINGS_BYTES)
            self.findings += replies.last_findings(text.decode("utf-8", "replace"))
        except FileNotFoundError:
            return ""
        except (OSError, ipc.WireViolation) as error:
            return f" (what it left as its findings cannot be read: {error})"
        return ""

    def _watch(self) -> None:
        used = processes.resident_bytes(self._process.pid) - sum(self._host_arenas.values())
        now = time.monotonic()
        if now - self._family_at > 0.5:
            self._family_at = now
            self._watch_family(now)
        used += self._children_bytes
        self.peak_bytes = max(self.peak_bytes, used)
        if used > self._memory_bytes:
            self.kill()
            raise WorkerFailed(
                Status.OUT_OF_MEMORY,
                f"used {used >> 20} MiB of memory, over its cap of {self._memory_bytes >> 20} MiB",
            )

    def _watch_family(self, now: float) -> None:
        """Add up the memory of the worker's children, and end a build in which nothing works."""
        found = processes.family(self._process.pid, orphans=self._untrusted)
        self._children_bytes = sum(
            processes.resident_bytes(p) for p in found if p != self._process.pid
        )
        compilers = [pid for pid in found if processes.is_compiler(pid, self.uid, self.folder)]
        patience = self._patience
        if patience is not None:
            patience.see(compiler=bool(compilers))
        if not compilers or patience is None or not patience.claims_to_compile:
            self._busy_at = now
            return
        spent = sum(found[pid] for pid in compilers)
        if (
            spent > self._cpu_spent + self._policy.build_idle_part * (now - self._busy_at)
            or spent < self._cpu_spent
        ):
            self._cpu_spent, self._busy_at = spent, now
        elif now - self._busy_at > self._timeout_s:
            self.kill()
            raise WorkerFailed(
                Status.TIMED_OUT,
                f"its build used no CPU for {self._timeout_s:.0f} s: it waits for something",
            )

    def kill(self) -> None:
        """End and reap the process, its group, and all processes of its user id."""
        self._ended_by_us = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        processes.live.discard(self._process.pid)
        processes.kill_leftovers(self.uid)

    def close(self) -> None:
        """End the worker and free everything that belongs to it."""
        self.peak_bytes = max(self.peak_bytes, processes.resident_bytes(self._process.pid))
        self.kill()
        arenas = [arena for arena in (self._inbox, self._outbox) if arena is not None]
        self._inbox = self._outbox = None
        self._drain.join(2)
        failures = []
        for close in (self._channel.close, self._close_memory, *(arena.close for arena in arenas)):
            try:
                close()
            except (OSError, HarnessError, RuntimeError) as error:  # the verdict stands without it
                failures.append(str(error))
        left = left_files.remove_tree(self.folder)
        failures += [f"{self.folder} is not removed: {left}"] if left else []
        self._drain.note(failures)

    def _close_memory(self) -> None:
        if self.memory_fd is not None:
            os.close(self.memory_fd)
            self.memory_fd = None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of those that have numbers only
        return f"signal {number}"
