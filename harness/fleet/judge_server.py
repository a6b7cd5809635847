"""Where a judge's process comes from: a fork of one server, or a program of its own.

A judge spends its first two seconds importing torch. Where a run has several pairs, the fleet
starts one server (``harness/judge/server.py``) that has imported it, and judges are forks of that.
To the fleet both kinds of processes are alike: a process id, two pipes, a state that can be read
without reaping. Where no server can be had, a judge is started as a program.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

JUDGE_COMMAND = (sys.executable, "-m", "harness.judge")

_START_S = 120.0
"""How long importing torch may take from a slow disk on a busy machine."""
_ANSWER_S = 30.0
"""How long the server may take to fork, or to say how a judge is: it does nothing else."""
_END_S = 5.0
_POLL_S = 0.01
_MESSAGE_BYTES = 4096
_FLAGS = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """How a process is, as of waitid.

    Attributes:
        code: CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_STOPPED; 0 while it runs.
        status: its exit code, or the signal that ended or stopped it.
    """

    code: int = 0
    status: int = 0

    @property
    def has_ended(self) -> bool:
        """Say whether it will run no more."""
        return self.code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)

    @property
    def is_stopped(self) -> bool:
        """Say whether it stands still until it is continued."""
        return self.code == os.CLD_STOPPED


_LOST = ProcessState(code=os.CLD_KILLED, status=signal.SIGKILL)
"""A judge whose server has gone: the kernel has ended it."""


class StartedJudge(Protocol):
    """A judge's process, whoever its parent is."""

    @property
    def pid(self) -> int:
        """Its number, and that of its session and process group."""

    @property
    def stdin(self) -> BinaryIO:
        """The pipe that it reads."""

    @property
    def stdout(self) -> BinaryIO:
        """The pipe that it writes."""

    def state(self) -> ProcessState:
        """Return how it is, without reaping it: its group's number stays ours."""

    def reap(self) -> None:
        """Wait for its end and free its number."""


class FreshJudge:
    """A judge that was started as a program."""

    def __init__(
        self, command: Sequence[str], *, log: BinaryIO, cwd: Path, env: Mapping[str, str]
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.pid = self._process.pid
        self.stdin: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self.stdout: BinaryIO = self._process.stdout  # type: ignore[assignment]

    def state(self) -> ProcessState:
        """Return how it is, without reaping it."""
        return state_of(self.pid)

    def reap(self) -> None:
        """Wait for its end and free its number."""
        self._process.wait()


def state_of(pid: int) -> ProcessState:
    """Return how a child of this process is, without reaping it."""
    found = os.waitid(os.P_PID, pid, _FLAGS)
    return ProcessState() if found is None else _state(found.si_code, found.si_status)


def _state(code: int, status: int) -> ProcessState:
    return ProcessState(code=code, status=status)


class _ForkedJudge:
    """A judge that a server has forked."""

    def __init__(self, server: JudgeServer, channel: socket.socket, log: BinaryIO) -> None:
        ours_in, ours_out = -1, -1
        theirs: list[int] = []
        try:
            reader, ours_in = os.pipe()
            theirs.append(reader)
            ours_out, writer = os.pipe()
            theirs.append(writer)
            self.pid: int = server.ask(channel, [reader, writer, log.fileno()], do="fork")["pid"]
        except BaseException:
            for fd in (ours_in, ours_out):
                if fd >= 0:
                    os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self.stdin: BinaryIO = os.fdopen(ours_in, "wb")
        self.stdout: BinaryIO = os.fdopen(ours_out, "rb", buffering=0)
        self._server = server
        self._channel = channel

    def state(self) -> ProcessState:
        """Return how it is, without reaping it."""
        try:
            answer = self._server.ask(self._channel, do="state", pid=self.pid)
        except OSError:
            return _LOST
        return _state(answer["code"], answer["status"])

    def reap(self) -> None:
        """Wait for its end and free its number."""
        while not self.state().has_ended:
            time.sleep(_POLL_S)
        with contextlib.suppress(OSError):  # without a server nobody waits for it but init
            self._server.ask(self._channel, do="reap", pid=self.pid)


class JudgeServer:
    """Starts judges as forks of one process; use it as a context manager, from any thread.

    The server itself starts with the first judge, and has its environment. A judge that is to have
    another one, or another program, is started as a program; so are all judges after a server has
    failed.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._made_for: tuple[Path, dict[str, str]] | None = None
        self._failed = False

    def __enter__(self) -> JudgeServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(
        self, command: Sequence[str], *, log: BinaryIO, cwd: Path, env: Mapping[str, str]
    ) -> StartedJudge:
        """Return a judge: a fork of the server where that is the same, else a program.

        Raises:
            OSError: neither can be started.
        """
        if tuple(command) == JUDGE_COMMAND:
            channel = self._serving(log, cwd, env)
            if channel is not None:
                with contextlib.suppress(OSError):  # the server has gone; the judge comes anyway
                    return _ForkedJudge(self, channel, log)
        return FreshJudge(command, log=log, cwd=cwd, env=env)

    def ask(self, channel: socket.socket, fds: Sequence[int] = (), **request: Any) -> Any:
        """Return the server's answer to a request.

        Raises:
            OSError: there is no such server any more.
        """
        with self._mutex:
            if channel is not self._channel:
                raise ConnectionResetError("the judge server has ended")
            try:
                return _asked(channel, request, fds)
            except (OSError, ValueError):
                # What it would still say belongs to an older question.
                self._end(kill=True)
                self._failed = True
                raise ConnectionResetError("the judge server does not answer") from None

    def close(self) -> None:
        """End the server and, with it, judges that still run."""
        with self._mutex:
            self._end(kill=False)

    def _serving(self, log: BinaryIO, cwd: Path, env: Mapping[str, str]) -> socket.socket | None:
        """Return the socket of a server for this folder and environment, or None."""
        wanted = (cwd, dict(env))
        with self._mutex:
            if self._channel is None and not self._failed:
                self._begin(log, *wanted)
                self._made_for = wanted
            return self._channel if self._made_for == wanted else None

    def _begin(self, log: BinaryIO, cwd: Path, env: Mapping[str, str]) -> None:
        """Start the server; what it says on its stderr goes to the log of its first pair."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.judge.server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        self._channel = ours
        ours.settimeout(_START_S)
        try:
            if not ours.recv(_MESSAGE_BYTES):
                raise ConnectionResetError("it has ended")
        except OSError:
            self._end(kill=True)
            self._failed = True
        else:
            ours.settimeout(_ANSWER_S)

    def _end(self, *, kill: bool) -> None:
        process, channel = self._process, self._channel
        self._process = self._channel = None
        if channel is not None:
            channel.close()
        if process is None:
            return
        if kill:
            process.kill()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _asked(channel: socket.socket, request: Mapping[str, Any], fds: Sequence[int]) -> Any:
    text = json.dumps(request).encode()
    if fds:
        socket.send_fds(channel, [text], fds)
    else:
        channel.send(text)
    answer = channel.recv(_MESSAGE_BYTES)
    if not answer:
        raise ConnectionResetError("it has ended")
    return json.loads(answer)
