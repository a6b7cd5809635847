"""One judge: a process in a session of its own that turns a request into a verdict.

Protocol, one JSON object a line:

========================================  =====================================================
fleet to judge, on stdin                  the request, then ``{"grant": W}`` for each W asked for;
                                          ``bytes``: of the device's memory what others need not
judge to fleet, on stdout
  ``{"event": "phase", "phase": P}``      what it does now; also a sign of life
  ``{"event": "await", "what": "device"}``  built; waits for the device to check on;
                                          ``bytes``: how much of its memory the pair needs
  ``{"event": "await", "what": "clock"}``   checked; waits for the device alone, to measure
  ``{"event": "problem_code"}``           the reference's code runs in the judge from here on;
                                          ``left_s``: the pair's time ends in so many seconds
  ``{"event": "harness_code"}``           and no longer
  ``{"event": "solution_code"}``          a solution runs under the judge's own user id from here on
  ``{"event": "verdict", "verdict": V}``  the end; the judge exits with 0
========================================  =====================================================

Its stderr is appended to the pair's log. A judge that dies, lies or hangs costs its own pair a
HARNESS_ERROR, or an INVALID_REFERENCE while the reference's code was running, and nothing else.
Where a solution runs under the judge's user id it may signal the judge. A judge ignores all signals
that can be ignored; one that is killed or stopped then means CRASHED, blamed on the solution.
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
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.domain import HarnessError, Options, Status, Verdict, verdict_from_json
from harness.fleet.judge_server import FreshJudge, JudgeServer, StartedJudge
from harness.fleet.slots import Slot
from harness.fleet.turns import CHECK, CLOCK, Turn
from harness.machine.environment import oom_kills
from harness.machine.process_tree import descent, scanned_children, stat_of

_POLL_S = 0.05
_LINE_LIMIT_BYTES = 64 * 1024**2
_FAREWELL_S = 10.0
"""How long a judge may take to exit after its verdict: a CUDA context needs a second or two."""
_ENDING_S = 2.0
"""How long a judge whose output has ended may take to exit."""
_STOPPED_S = 5.0
"""How long a judge may stand stopped (SIGSTOP) beside a solution that could have stopped it."""
_ROUNDS = 100
_FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"}
"""Signals that a process brings on itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a judge may take; it keeps tighter limits itself, these catch one that does not.

    Attributes:
        silence_s: between two of its messages.
        problem_code_s: for the reference's code at one stretch.
        total_s: for everything but waiting for a device.
    """

    silence_s: float
    problem_code_s: float
    total_s: float

    @classmethod
    def from_options(cls, options: Options) -> Deadlines:
        """Return the deadlines that follow from the user's limits for a phase and for a pair."""
        timeout_s = options.timeout_s
        return cls(
            silence_s=3 * timeout_s + 720,  # a build may be silent for ten minutes
            problem_code_s=2 * timeout_s + 30,
            # Ten minutes of compilers, and as many for what the timing has begun by then, such as
            # a torch.compile.
            total_s=options.time_limit_s + 3 * timeout_s + 1200,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A judge that came to no verdict."""

    status: Status
    message: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one judge.

    Attributes:
        verdict: its verdict; a failure or, where the run was stopped, None.
        phases: seconds per phase that it announced, in order.
    """

    verdict: Verdict | Failure | None = None
    phases: dict[str, float] = field(default_factory=dict)


class _Ended(Exception):
    """The judge will say nothing more; carries what it came to."""

    def __init__(self, verdict: Verdict | Failure | None) -> None:
        super().__init__()
        self.verdict = verdict


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
        turn: the right to the device it asks for; None where it needs no other.
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
        """Return what became of the judge; its process group is ended and reaped by then.

        Raises:
            HarnessError: the judge could not be started.
        """
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
            self._talk()
        except _Ended as ended:
            self._outcome.verdict = ended.verdict
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

    def _talk(self) -> None:
        """Send the request, then answer what the judge says; always raises _Ended."""
        self._send(self._request)
        pipe = self._process.stdout.fileno()
        pending = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if self._stop.is_set():
                    raise _Ended(None)
                self._grant()
                if selector.select(_POLL_S):
                    chunk = os.read(pipe, 1 << 16)
                    if not chunk:
                        raise _Ended(self._died())
                    pending += chunk
                    *lines, rest = pending.split(b"\n")
                    pending = bytearray(rest)
                    for line in lines:
                        self._hear(bytes(line))
                    if len(pending) > _LINE_LIMIT_BYTES:
                        raise _Ended(self._fault("sent a line without an end"))
                elif self._has_exited():
                    raise _Ended(self._died())
                self._check_stopped()
                self._check_deadlines()

    def _hear(self, line: bytes) -> None:
        """Act on one line."""
        try:
            message = json.loads(line)
            event = message["event"]
        except (ValueError, TypeError, KeyError):
            raise _Ended(self._fault(f"sent {line[:80]!r}, which is no event")) from None
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
            raise _Ended(self._read_verdict(message.get("verdict")))
        else:
            raise _Ended(self._fault(f"sent an unknown event {event!r}"))

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

    def _read_verdict(self, plain: Any) -> Verdict | Failure:
        try:
            if not isinstance(plain, Mapping):
                raise HarnessError("not an object")
            verdict = verdict_from_json(plain)
        except HarnessError as error:
            return self._fault(f"sent an impossible verdict ({error})")
        expected = self._request["pair"]["name"]
        if verdict.pair != expected:
            return self._fault(f"sent the verdict of {verdict.pair!r} for {expected!r}")
        return verdict

    def _check_stopped(self) -> None:
        """End a judge that a solution has stopped: it would never come to a verdict."""
        if not self._beside_solution:
            return
        try:
            stopped = self._process.state().is_stopped
        except ChildProcessError:
            return  # it has ended: the end of its output says so
        if not stopped:
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = self._clock()
        elif self._clock() - self._stopped_since > _STOPPED_S:
            raise _Ended(self._signalled("stopped (SIGSTOP)"))

    def _check_deadlines(self) -> None:
        if self._waiting:
            return
        now = self._clock()
        silent = now - self._heard
        if self._in_problem_code and silent > self._deadlines.problem_code_s:
            raise _Ended(
                Failure(
                    status=Status.INVALID_REFERENCE,
                    message=f"the reference did not return within {silent:.0f} s"
                    f"{self._where()}. Next: a smaller --size, or a longer --timeout",
                )
            )
        if self._in_problem_code and now > self._problem_code_until:
            limit_s = self._request["options"]["time_limit_s"]
            raise _Ended(
                Failure(
                    status=Status.INVALID_REFERENCE,
                    message=f"the time for all phases of a pair ({limit_s:g} s) was over while the "
                    f"reference ran{self._where()}. Next: a smaller --size, or a longer "
                    "--time-limit",
                )
            )
        if silent > self._deadlines.silence_s:
            raise _Ended(self._fault(f"said nothing for {silent:.0f} s"))
        if now - self._began - self._waited_s > self._deadlines.total_s:
            raise _Ended(self._fault(f"came to no verdict within {self._deadlines.total_s:.0f} s"))

    def _where(self) -> str:
        """Have the judge write to the log where it stands; say which line of the problem it is."""
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
        return f": it stands in line {found[1]}, in {found[2]}" if found else ""

    def _died(self) -> Failure:
        """Return what the end of a judge without a verdict means."""
        how = self._how_it_ended()
        if how == "SIGKILL" and oom_kills() > self._oom_kills:
            return Failure(
                status=Status.SKIPPED,
                message="the machine ran out of memory: reference and oracle need more than it "
                "has. Next: a smaller --size, fewer --jobs, or a machine with more memory",
            )
        if self._beside_solution and how.startswith("SIG") and how not in _FAULTS:
            return self._signalled(f"killed ({how})")
        if self._in_problem_code:
            return Failure(
                status=Status.INVALID_REFERENCE,
                message=f"the reference ended the process that ran it ({how})",
            )
        return self._fault(f"ended without a verdict ({how})")

    def _signalled(self, what: str) -> Failure:
        return Failure(
            status=Status.CRASHED,
            message=f"the judge was {what} in phase {self._phase!r}, while the solution ran under "
            "the same user id, and memory was not short: the solution, or another program of this "
            "user, sent the signal. Next: look for os.kill in the solution, or run as root of a "
            "container, where it gets a user id of its own",
        )

    def _how_it_ended(self) -> str:
        """Return ``exit code 1`` or ``SIGSEGV``; waits a moment for a process that is ending."""
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

    def _fault(self, what: str) -> Failure:
        return Failure(
            status=Status.HARNESS_ERROR,
            message=f"the judge {what} in phase {self._phase!r}. This is a fault of the harness: "
            "please report it with the log",
        )

    def _send(self, message: Mapping[str, Any]) -> None:
        """Write one line; a judge that has gone is noticed when its output is read."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _note_phase(self, phase: str | None) -> None:
        """Close the books of the phase that ends: ``check eval 3/12`` counts as ``check``."""
        now = self._clock()
        name = self._phase.split(" ")[0]
        spent = self._outcome.phases.get(name, 0.0) + now - self._phase_began
        self._outcome.phases[name] = spent
        self._phase_began = now
        self._phase = phase or self._phase

    def _has_exited(self) -> bool:
        """Say whether the judge has ended, without reaping it: its group's number stays ours."""
        return self._process.state().has_ended

    def _end(self, *, farewell_s: float) -> None:
        """End what is left of the judge and of everything it started, and reap it.

        Workers and their compilers stand in sessions of their own. They are found as descendants,
        so they go first, while the judge is stopped: orphans come to it, and it starts no more.
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
    """Kill every descendant of a process, also those that appear meanwhile."""
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
    """End judges whose run was abandoned: the interpreter is leaving."""
    for judge in list(_LIVE):
        judge.kill()
