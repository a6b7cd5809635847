"""What the kernel knows of a worker's processes: their memory, their time, and how to end them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path

from harness import nursery

live: set[int] = set()
"""Process ids of workers that have not been ended: the judge's only rightful children."""
_LISTS_CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists()
_STOP_ROUNDS = 100
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
births = threading.Lock()
"""Held from a worker's start until it is in ``live``: nobody takes it for a leftover meanwhile."""


def resident_bytes(pid: int) -> int:
    """Return a process's anonymous and shared resident memory, 0 where it is gone.

    File mappings are left out: they are the libraries of all. Shared memory counts, arenas of
    ours included.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE)
    return sum(int(kilobytes) for kilobytes in found) * 1024


def family(pid: int, *, orphans: bool) -> dict[int, float]:
    """Return seconds of CPU by process id for a worker and all that descends from it.

    By descent alone: a process can leave its session, hide its owner and change its name, but not
    its parents; who loses them is adopted by the judge, a subreaper.

    Args:
        pid: the worker.
        orphans: whether what the judge has adopted belongs to it: it runs a solution's code.
    """
    children = _children if _LISTS_CHILDREN else _parents().get
    todo = [pid]
    if orphans:
        rightful = live | nursery.waiting_pids()
        todo += [child for child in children(os.getpid()) or () if child not in rightful]
    found: dict[int, float] = {}
    while todo:
        member = todo.pop()
        if member in found:
            continue
        stat = _stat(member)
        if stat:
            found[member] = sum(int(ticks) for ticks in stat[11:15]) / _TICKS_PER_S
            todo += children(member) or ()
    return found


def stop(pid: int, *, orphans: bool) -> None:
    """Stop a worker and its family, and return when the worker stands still.

    What is found after the others were stopped may have been started by them before: until there
    is nothing new.
    """
    stopped: set[int] = set()
    for _ in range(_STOP_ROUNDS):
        fresh = (family(pid, orphans=True).keys() if orphans else {pid}) - stopped
        for member in fresh:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member, signal.SIGSTOP)
        if not fresh:
            break
        stopped |= fresh
        for _ in range(1000):
            stat = _stat(pid)
            if not stat or stat[0] in "TtZX":
                break
            time.sleep(0.0001)


def resume(pid: int, *, orphans: bool) -> None:
    """Let go on what stop stopped, but for the worker itself."""
    if orphans:
        for member in family(pid, orphans=True).keys() - {pid}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member, signal.SIGCONT)


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    """Return a process's children; complete where they are stopped."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def _parents() -> dict[int, list[int]]:
    """Return all processes by their parent: where the kernel does not list children."""
    found: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            stat = _stat(int(entry.name))
            if stat:
                found.setdefault(int(stat[1]), []).append(int(entry.name))
    return found


def kill_leftovers(uid: int | None) -> None:
    """Kill what a worker left behind: processes of its user id, and orphans adopted by us.

    The judge is a subreaper, so a grandchild that left its session becomes the judge's child. A
    process that is still a child of a live one is found through its user id, where it has one.
    """
    for _ in range(50):
        with births:
            found = _kill_once(uid)
        if not found:
            return
        time.sleep(0.005)


def _kill_once(uid: int | None) -> bool:
    """Kill what there is of leftovers; return whether there was any."""
    me = os.getpid()
    rightful = live | nursery.waiting_pids()
    found = False
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in rightful:
            continue
        pid = int(entry.name)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            owner = entry.stat().st_uid
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        state, parent = fields[0], int(fields[1])
        if parent != me and (uid is None or owner != uid):
            continue
        found = found or state != "Z" or parent == me
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        if parent == me:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return found
