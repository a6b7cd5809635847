"""Forks worker processes before the judge holds any secret.

Importing torch takes a second or two of CPU for each process. A judge therefore imports it once
and forks its workers at once, before it reads its request. The copies hold no seed, no input and
no expected output. They wait on their sockets until the judge needs them. When all forked workers
are used, the judge starts a worker as a new program. Both kinds speak the same wire.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_waiting: list[WorkerProcess] = []
_reaping = threading.Lock()


@dataclass(slots=True)
class WorkerProcess:
    """A worker process, its wire, and the pipe that its stdout and stderr go to."""

    pid: int
    sock: socket.socket
    output: BinaryIO
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, -N for signal N, None while it runs."""
        with _reaping:  # a second thread would find no child, and report success
            if self.returncode is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:
                    pid, status = self.pid, 0
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end at most so long; return what poll returns."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.returncode

    def kill(self) -> None:
        """End the process and reap it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.001)


def prefork(count: int) -> None:
    """Fork workers from this process. Call it first: before secrets, threads and CUDA."""
    import torch  # the workers inherit the import

    torch.manual_seed(0)
    for _ in range(count):
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            for older in _waiting:
                older.sock.close()
                older.output.close()
            ours.close()
            os.close(reader)
            _become_worker(theirs, writer)
        theirs.close()
        os.close(writer)
        _waiting.append(WorkerProcess(pid, ours, os.fdopen(reader, "rb", buffering=0)))


def _become_worker(sock: socket.socket, output: int) -> None:
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Beside the standard streams only the wire stays open, and no file of the judge's.
        keep = sock.detach()
        os.closerange(3, keep)
        os.closerange(keep + 1, 4096)
        sys.argv = ["harness.worker", str(keep)]
        runpy.run_module("harness.worker", run_name="__main__", alter_sys=True)
    finally:
        os._exit(70)


def take(environment: Mapping[str, str], package_root: Path) -> WorkerProcess:
    """Return a forked worker that waits, else a new program.

    Args:
        environment: of a new program; a forked worker gets its own through the wire.
        package_root: folder that holds the harness package.
    """
    while _waiting:
        worker = _waiting.pop(0)
        if worker.poll() is None:
            return worker
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.worker", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=package_root,
        start_new_session=True,
    )
    theirs.close()
    assert process.stdout is not None
    output = os.fdopen(os.dup(process.stdout.fileno()), "rb", buffering=0)
    process.stdout.close()
    worker_process = WorkerProcess(process.pid, ours, output)
    process.returncode = 0  # reaped by WorkerProcess, not by subprocess
    return worker_process


def end_waiting() -> None:
    """End the forked workers that still wait."""
    while _waiting:
        worker = _waiting.pop()
        worker.kill()
        worker.sock.close()
        worker.output.close()


def waiting_pids() -> set[int]:
    """Return the process ids of the forked workers that wait."""
    return {w.pid for w in _waiting}
