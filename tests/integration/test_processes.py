"""What a worker started stands still with it, however it hides."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import ipc
from harness.judge.workers import processes
from harness.machine import process_tree

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
    monkeypatch.setattr(process_tree, "_LISTS_CHILDREN", listed and process_tree._LISTS_CHILDREN)
    worker, child = hidden
    assert {worker, child} <= processes.family(worker, orphans=True).keys()
    still = processes.stop(worker, orphans=True, limit_s=2)
    assert state(worker) == state(child) == "T"
    time.sleep(0.05)
    assert processes.stood_still(worker, still, orphans=True)
    processes.resume(still, worker)
    time.sleep(0.05)
    assert state(child) in "SR"
    assert state(worker) == "T"
    assert not processes.stood_still(worker, still, orphans=True)
    os.kill(worker, signal.SIGCONT)


def test_a_trusted_worker_is_stopped_without_what_the_judge_has_adopted(
    hidden: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    worker, child = hidden
    still = processes.stop(worker, orphans=False, limit_s=2)
    adopted = "orphan" in request.node.callspec.id
    assert state(worker) == "T"
    assert (state(child) in "SR") is adopted
    time.sleep(0.05)
    assert processes.stood_still(worker, still, orphans=False)
    processes.resume(still, worker)
    assert state(worker) == "T"
    os.kill(worker, signal.SIGCONT)


def started(script: str, **how: bool) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, **how)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_only_orphans_are_in_the_family_of_what_the_judge_has_adopted() -> None:
    """Another worker is not, nor what the judge or the problem's code in it has started."""
    sleep = "import time; print(flush=True); time.sleep(60)"
    worker, other, helper = started(sleep), started(sleep, start_new_session=True), started(sleep)
    processes.live.update((worker.pid, other.pid))
    try:
        assert processes.family(worker.pid, orphans=True).keys() == {worker.pid}
        processes.live.discard(other.pid)  # nobody's any more
        assert other.pid in processes.family(worker.pid, orphans=True)
        assert helper.pid not in processes.family(worker.pid, orphans=True)
    finally:
        processes.live.difference_update((worker.pid, other.pid))
        for process in (worker, other, helper):
            ended(process)


def test_busy_threads_stand_still() -> None:
    script = """
import threading
def work():
    while True: sum(range(1000))
for _ in range(3): threading.Thread(target=work, daemon=True).start()
print(flush=True)
work()
"""
    worker = started(script)
    try:
        for _ in range(20):
            still = processes.stop(worker.pid, orphans=True, limit_s=2)
            time.sleep(0.005)
            assert processes.stood_still(worker.pid, still, orphans=True)
            processes.resume(still, worker.pid)
            os.kill(worker.pid, signal.SIGCONT)
            time.sleep(0.002)
            assert not processes.stood_still(worker.pid, still, orphans=True)
    finally:
        ended(worker)


def test_who_wakes_itself_is_seen() -> None:
    """A timer whose signal is SIGCONT ends a stop; what is done then shows."""
    script = """
import signal
signal.signal(signal.SIGCONT, lambda *_: None)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
import ctypes, ctypes.util
librt = ctypes.CDLL(None)
class Sigevent(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int),
                ("pad", ctypes.c_byte * 48)]
class Spec(ctypes.Structure):
    _fields_ = [(n, ctypes.c_long) for n in ("every_s", "every_ns", "first_s", "first_ns")]
timer = ctypes.c_void_p()
event = Sigevent(signo=signal.SIGCONT, notify=0)
assert librt.timer_create(1, ctypes.byref(event), ctypes.byref(timer)) == 0
spec = Spec(0, 20_000_000, 0, 20_000_000)
assert librt.timer_settime(timer, 0, ctypes.byref(spec), None) == 0
print(flush=True)
while True:
    pass
"""
    worker = started(script)
    try:
        try:
            still = processes.stop(worker.pid, orphans=True, limit_s=2)
        except processes.Restless:
            return  # seen at once
        time.sleep(0.1)
        assert not processes.stood_still(worker.pid, still, orphans=True)
    finally:
        ended(worker)


def test_who_never_stands_is_restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_stands", lambda process, thread: False)
    worker = started("import time; print(flush=True); time.sleep(60)")
    try:
        with pytest.raises(processes.Restless):
            processes.stop(worker.pid, orphans=True, limit_s=0.2)
    finally:
        ended(worker)


def test_what_is_gone_has_no_family() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert processes.family(done.pid, orphans=False) == {}


def test_a_name_that_is_no_text_hides_nobody() -> None:
    """A process may call itself any bytes: it is stopped and counted all the same."""
    program = "import sys, time; open('/proc/self/comm', 'wb').write(b'\\xff)\\xfe (')\n"
    program += "print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as named:
        try:
            assert named.stdout is not None
            named.stdout.readline()
            assert processes.resident_bytes(named.pid) > 1 << 20
            still = processes.stop(named.pid, orphans=False, limit_s=2)
            assert still.members == {named.pid}
            assert processes.stood_still(named.pid, still, orphans=False)
        finally:
            named.kill()


def test_a_peer_that_has_gone_is_no_peer_that_speaks_out_of_turn() -> None:
    """Its end can be read like a message: a worker that was killed seemed to break the protocol."""
    ours, theirs = socket.socketpair()
    channel = ipc.Channel(ours)
    assert not channel.pending() and not channel.has_ended()
    theirs.send(b"x")
    assert channel.pending() and not channel.has_ended()
    assert ours.recv(1) == b"x"
    theirs.close()
    assert channel.pending() and channel.has_ended()
    channel.close()
