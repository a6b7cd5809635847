"""One judge: a process in a session of its own that turns a request into a verdict.

Protocol, one JSON object a line:

========================================  =====================================================
fleet to judge, on stdin                  the request, with a folder for what is ``temporary``: the
                                          fleet removes it, however the judge ends. Then
                                          ``{"grant": W}`` for each W asked for;
                                          ``bytes``: the device's memory that others do not need
judge to fleet, on stdout
  ``{"event": "phase", "phase": P}``      the judge enters a phase; also a sign of life
  ``{"event": "await", "what": "device"}``  the judge has built, and waits for the device;
                                          ``bytes``: how much of its memory the pair needs
  ``{"event": "await", "what": "clock"}``   it has checked, and waits for the device alone
  ``{"event": "problem_code"}``           the reference's code runs in the judge from here on;
                                          ``left_s``: the pair's time ends in so many seconds
  ``{"event": "harness_code"}``           the reference's code has returned
  ``{"event": "solution_code"}``          a solution runs under the judge's own user id from here on
  ``{"event": "verdict", "verdict": V}``  the end; the judge exits with 0
========================================  =====================================================

The judge's stderr goes to the pair's log. A judge that dies, lies or hangs costs its own pair a
HARNESS_ERROR, or an INVALID_REFERENCE while the reference's code was running. Other pairs go on.
A solution that runs under the judge's user id can send the judge signals. The judge ignores all
signals that a process can ignore. If it is then killed or stopped, the pair is CRASHED and the
solution is to blame.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import re
import selectors
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.domain import HarnessError, Options, Refusal, Status, Verdict, verdict_from_json
from harness.fleet.judge_server import FreshJudge, JudgeServer, StartedJudge
from harness.fleet.slots import Slot
from harness.fleet.turns import CHECK, CLOCK, Turn
from harness.machine import left_files
from harness.machine.environment import oom_kills
from harness.machine.process_tree import descent, scanned_children, stat_of

_POLL_S = 0.05
_LINE_LIMIT_BYTES = 64 * 1024**2
_FAREWELL_S = 10.0
"""How long a judge may take to exit after its verdict: a CUDA context needs a second or two."""
_ENDING_S = 2.0
"""How long a judge may take to exit after the end of its output."""
_ROUNDS = 100
_FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"}
"""Signals that a process brings on itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a judge may take. The judge keeps tighter limits itself; these catch its faults.

    Attributes:
        silence_s: between two of its messages.
        problem_code_s: for the reference's code without a break.
        total_s: for everything except waiting for a device.
        stopped_s: stopped by SIGSTOP, while a solution runs that could have sent the signal.
    """

    silence_s: float
    problem_code_s: float
    total_s: float
    stopped_s: float = 5.0

    @classmethod
    def from_options(cls, options: Options) -> Deadlines:
        """Return the deadlines that follow from the user's limits per phase and per pair."""
        timeout_s = options.timeout_s
        return cls(
            silence_s=3 * timeout_s + 720,  # a build may be silent for ten minutes
            problem_code_s=2 * timeout_s + 30,
            # Ten minutes for compilers, and ten for what the timing has begun by then, such as a
            # torch.compile.
            total_s=options.time_limit_s + 3 * timeout_s + 1200,
        )


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How one judge ended.

    Attributes:
        verdict: its verdict, or the fleet's refusal; None where the run was stopped.
        phases: seconds per phase that the judge announced, in order.
    """

    verdict: Verdict | Refusal | None = None
    phases: dict[str, float] = field(default_factory=dict)


_LIVE: set[JudgeProcess] = set()


class JudgeProcess:
    """Runs one judge to its end.

    Args:
        command: what starts a judge.
        request: the first line it is given.
        log: file that its stderr is appended to.
        cwd: folder it starts in.
        env: its environment.
        deadlines: when to give up.
        build_slot: the right to build, already taken; released when the judge asks for a device.
        turn: the right to the device; None where the right to build is enough.
        on_phase: called with each phase.
        stop: set when the run is to end.
        clock: seconds that only grow.
        server: forks the judge; None starts a program.
    """

    def __init__(
        self,
        command: Sequence[str],
        request: Mapping[str, Any],
        *,
        log: Path,
        cwd: Path,
        env: Mapping[str, str],
        deadlines: Deadlines,
        build_slot: Slot,
        turn: Turn | None,
        on_phase: Callable[[str], None],
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        server: JudgeServer | None = None,
    ) -> None:
        self._command = command
        self._request = request
        self._log = log
        self._cwd = cwd
        self._env = env
        self._deadlines = deadlines
        self._build_slot = build_slot
        self._turn = turn
        self._on_phase = on_phase
        self._stop = stop
        self._clock = clock
        self._server = server
        self._outcome = Outcome()
        self._phase = "start"
        self._phase_began = self._heard = self._began = clock()
        self._waited_s = 0.0
        self._waiting = ""
        self._in_problem_code = False
        self._beside_solution = False
        self._stopped_since: float | None = None
        self._problem_code_until = math.inf
        self._oom_kills = oom_kills()

    def run(self) -> Outcome:
        """Return how the judge ended. Its process group is ended and reaped by then.

        Raises:
            HarnessError: the judge could not be started.
        """
        folder = Path(tempfile.mkdtemp(prefix="kernel-eval-judge-"))
        try:
            folder.chmod(0o711)  # a worker enters its own folder in it under another user id
            self._request = {**self._request, "temporary": str(folder)}
            return self._run()
        finally:
            left = left_files.remove_tree(folder)
            if left:
                with contextlib.suppress(OSError), self._log.open("a") as log:
                    log.write(f"--- fleet: {folder} is not removed: {left}\n")

    def _run(self) -> Outcome:
        with self._log.open("ab") as log:
            try:
                start = FreshJudge if self._server is None else self._server.start
                self._process: StartedJudge = start(
                    self._command, log=log, cwd=self._cwd, env=self._env
                )
            except OSError as error:
                raise HarnessError(f"the judge cannot be started: {error}") from error
        _LIVE.add(self)
        try:
            self._outcome.verdict = self._talk()
        except Refusal as refusal:
            self._outcome.verdict = refusal
        finally:
            complete = isinstance(self._outcome.verdict, Verdict)
            self._end(farewell_s=_FAREWELL_S if complete else 0.0)
            if self._turn is not None:
                self._turn.release()
            self._note_phase(None)
            _LIVE.discard(self)
        return self._outcome

    def kill(self) -> None:
        """Kill the judge's process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _talk(self) -> Verdict | None:
        """Send the request and answer the judge's messages until its verdict.

        Returns:
            None where the run was stopped.

        Raises:
            Refusal: the judge ended without a verdict, or had to be given up.
        """
        self._send(self._request)
        pipe = self._process.stdout.fileno()
        pending = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if self._stop.is_set():
                    return None
                self._grant()
                if selector.select(_POLL_S):
                    chunk = os.read(pipe, 1 << 16)
                    if not chunk:
                        raise self._died()
                    pending += chunk
                    *lines, rest = pending.split(b"\n")
                    pending = bytearray(rest)
                    for line in lines:
                        if (verdict := self._hear(bytes(line))) is not None:
                            return verdict
                    if len(pending) > _LINE_LIMIT_BYTES:
                        raise self._fault("sent a line without an end")
                elif self._has_exited():
                    raise self._died()
                self._check_stopped()
                self._check_deadlines()

    def _hear(self, line: bytes) -> Verdict | None:
        """Act on one line; return the verdict that it holds."""
        try:
            message = json.loads(line)
            event = message["event"]
        except (ValueError, TypeError, KeyError):
            raise self._fault(f"sent {line[:80]!r}, which is no event") from None
        self._heard = self._clock()
        if event == "phase" and isinstance(message.get("phase"), str):
            self._note_phase(message["phase"])
            self._on_phase(self._phase)
        elif event == "await" and message.get("what") in (CHECK, CLOCK):
            self._waiting = message["what"]
            if self._turn is not None:
                self._build_slot.release()  # the next pair may build while this one waits
                self._turn.ask(self._waiting, message.get("bytes"))
            self._grant()
            if self._waiting:
                self._on_phase(f"wait for the {self._waiting}")
        elif event in ("problem_code", "harness_code"):
            self._in_problem_code = event == "problem_code"
            left_s = message.get("left_s")
            self._problem_code_until = math.inf if left_s is None else self._heard + float(left_s)
        elif event == "solution_code":
            self._beside_solution = True
        elif event == "verdict":
            return self._read_verdict(message.get("verdict"))
        else:
            raise self._fault(f"sent an unknown event {event!r}")
        return None

    def _grant(self) -> None:
        if not self._waiting:
            return
        if self._turn is None or self._turn.try_take():
            now = self._clock()
            self._waited_s += now - self._heard
            self._heard = now
            granted, self._waiting = self._waiting, ""
            room = self._turn.room_bytes if self._turn is not None else None
            self._send({"grant": granted, "bytes": room})

    def _read_verdict(self, plain: Any) -> Verdict:
        try:
            if not isinstance(plain, Mapping):
                raise HarnessError("not an object")
            verdict = verdict_from_json(plain)
        except HarnessError as error:
            raise self._fault(f"sent an impossible verdict ({error})") from None
        expected = self._request["pair"]["name"]
        if verdict.pair != expected:
            raise self._fault(f"sent the verdict of {verdict.pair!r} for {expected!r}")
        return verdict

    def _check_stopped(self) -> None:
        """End a judge that a solution has stopped: it would never reach a verdict."""
        if not self._beside_solution:
            return
        try:
            stopped = self._process.state().is_stopped
        except ChildProcessError:
            return  # it has ended, and the end of its output says so
        if not stopped:
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = self._clock()
        elif self._clock() - self._stopped_since > self._deadlines.stopped_s:
            raise self._signalled("stopped (SIGSTOP)")

    def _check_deadlines(self) -> None:
        if self._waiting:
            return
        now = self._clock()
        silent = now - self._heard
        if self._in_problem_code and silent > self._deadlines.problem_code_s:
            raise Refusal(
                Status.INVALID_REFERENCE,
                f"the reference did not return within {silent:.0f} s"
                f"{self._where()}. Next: a smaller --size, or a longer --timeout",
            )
        if self._in_problem_code and now > self._problem_code_until:
            limit_s = self._request["options"]["time_limit_s"]
            raise Refusal(
                Status.INVALID_REFERENCE,
                f"the time for all phases of a pair ({limit_s:g} s) was over while the "
                f"reference ran{self._where()}. Next: a smaller --size, or a longer "
                "--time-limit",
            )
        if silent > self._deadlines.silence_s:
            raise self._fault(f"said nothing for {silent:.0f} s")
        if now - self._began - self._waited_s > self._deadlines.total_s:
            raise self._fault(f"reached no verdict within {self._deadlines.total_s:.0f} s")

    def _where(self) -> str:
        """Make the judge log its stack; return which line of the problem runs, for a message."""
        before = self._log.stat().st_size
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self._process.pid, signal.SIGUSR1)
        until, said = self._clock() + _ENDING_S, ""
        while "most recent call first" not in said and self._clock() < until:
            time.sleep(_POLL_S)
            with self._log.open("rb") as log:
                log.seek(before)
                said = log.read(_LINE_LIMIT_BYTES).decode("utf-8", "replace")
        problem = re.escape(str(self._request["pair"]["problem"]))
        found = re.search(rf'File "{problem}", line (\d+) in (\S+)', said)
        return f" (line {found[1]}, in {found[2]})" if found else ""

    def _died(self) -> Refusal:
        """Return what it means that a judge ended without a verdict."""
        how = self._how_it_ended()
        if how == "SIGKILL" and oom_kills() > self._oom_kills:
            return Refusal(
                Status.SKIPPED,
                "the machine ran out of memory: reference and oracle need more than it "
                "has. Next: a smaller --size, fewer --jobs, or a machine with more memory",
            )
        if self._beside_solution and how.startswith("SIG") and how not in _FAULTS:
            return self._signalled(f"killed ({how})")
        if self._in_problem_code:
            return Refusal(
                Status.INVALID_REFERENCE,
                f"the reference ended the process that ran it ({how})",
            )
        return self._fault(f"ended without a verdict ({how})")

    def _signalled(self, what: str) -> Refusal:
        return Refusal(
            Status.CRASHED,
            f"the judge was {what} in phase {self._phase!r}, while the solution ran under "
            "the same user id, and memory was not short: the solution, or another program of this "
            "user, sent the signal. Next: look for os.kill in the solution, or run as root of a "
            "container, where it gets a user id of its own",
        )

    def _how_it_ended(self) -> str:
        """Return ``exit code 1`` or ``SIGSEGV``; wait a moment for a process that is ending."""
        limit = time.monotonic() + _ENDING_S
        while not self._has_exited() and time.monotonic() < limit:
            time.sleep(_POLL_S)
        state = self._process.state()
        if not state.has_ended:
            return "it closed its output"
        if state.code == os.CLD_EXITED:
            return f"exit code {state.status}"
        try:
            return signal.Signals(state.status).name
        except ValueError:
            return f"signal {state.status}"

    def _fault(self, what: str) -> Refusal:
        return Refusal(
            Status.HARNESS_ERROR,
            f"the judge {what} in phase {self._phase!r}. This is a fault of the harness: "
            "please report it with the log",
        )

    def _send(self, message: Mapping[str, Any]) -> None:
        """Write one line. The end of the output will show that a judge is gone."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _note_phase(self, phase: str | None) -> None:
        """Add up the time of the phase that ends: ``check eval 3/12`` counts as ``check``."""
        now = self._clock()
        name = self._phase.split(" ")[0]
        spent = self._outcome.phases.get(name, 0.0) + now - self._phase_began
        self._outcome.phases[name] = spent
        self._phase_began = now
        self._phase = phase or self._phase

    def _has_exited(self) -> bool:
        """Return whether the judge has ended; without reaping it, which would free its number."""
        return self._process.state().has_ended

    def _end(self, *, farewell_s: float) -> None:
        """End the judge and everything that it started, and reap it.

        Workers and their compilers have sessions of their own, so the fleet finds them as
        descendants. It ends them first, while the judge is stopped: the judge adopts orphans, and
        a stopped judge starts no new process.
        """
        self._wait_for_exit(farewell_s)
        if not self._has_exited():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._process.pid, signal.SIGSTOP)
            _kill_descendants(self._process.pid)
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.reap()

    def _wait_for_exit(self, limit_s: float) -> None:
        limit = time.monotonic() + limit_s
        while not self._has_exited() and time.monotonic() < limit:
            time.sleep(0.01)


def _kill_descendants(ancestor: int) -> None:
    """Kill every descendant of a process, and those that appear meanwhile."""
    for _ in range(_ROUNDS):
        found = _descendants(ancestor)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _descendants(ancestor: int) -> list[int]:
    """Return the living descendants of a process."""
    children_of = scanned_children()
    found = descent(children_of(ancestor), children_of)
    return [pid for pid in found if (stat_of(pid) or "Z")[0] != "Z"]


@atexit.register
def _kill_survivors() -> None:
    """End the judges of an abandoned run when the interpreter exits."""
    for judge in list(_LIVE):
        judge.kill()
