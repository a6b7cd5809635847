"""What a worker started stands still with it, however it hides."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.judge import processes

# A child in a session of its own that no other user may look at, and that has lost its parent.
HIDES = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
if os.fork() == 0:
    os.setsid()
    libc.prctl(4, 0, 0, 0, 0)
    if {orphan} and os.fork():
        os._exit(0)
    print(os.getpid(), flush=True)
    while True:
        time.sleep(0.001)
if {orphan}:
    os.wait()
time.sleep(60)
"""
SUBREAPER = 36


@pytest.fixture(params=[False, True], ids=["child", "orphan"])
def hidden(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    worker = subprocess.Popen(
        [sys.executable, "-c", HIDES.format(orphan=request.param)], stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    child = int(worker.stdout.readline())
    processes.live.add(worker.pid)
    yield worker.pid, child
    processes.live.discard(worker.pid)
    for pid in (child, worker.pid):
        os.kill(pid, signal.SIGKILL)
    worker.communicate()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    ctypes.CDLL(None).prctl(SUBREAPER, 0, 0, 0, 0)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("listed", [True, False])
def test_hidden_process_stands_still_with_its_worker(
    hidden: tuple[int, int], listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_LISTS_CHILDREN", listed and processes._LISTS_CHILDREN)
    worker, child = hidden
    assert {worker, child} <= processes.family(worker, orphans=True).keys()
    processes.stop(worker, orphans=True)
    time.sleep(0.05)
    assert state(worker) == state(child) == "T"
    processes.resume(worker, orphans=True)
    time.sleep(0.05)
    assert state(child) in "SR"
    assert state(worker) == "T"
    os.kill(worker, signal.SIGCONT)


def test_a_trusted_worker_is_stopped_alone(hidden: tuple[int, int]) -> None:
    worker, child = hidden
    processes.stop(worker, orphans=False)
    assert state(worker) == "T"
    assert state(child) in "SR"
    os.kill(worker, signal.SIGCONT)


def test_another_worker_is_not_in_the_family(hidden: tuple[int, int]) -> None:
    worker, _ = hidden
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    processes.live.add(other.pid)
    try:
        assert other.pid not in processes.family(worker, orphans=True)
        processes.live.discard(other.pid)
        assert other.pid in processes.family(worker, orphans=True)
    finally:
        processes.live.discard(other.pid)
        other.kill()
        other.wait()


def test_what_is_gone_has_no_family() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert processes.family(done.pid, orphans=False) == {}
