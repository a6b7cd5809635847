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


def family(pid: int, uid: int | None) -> dict[int, float]:
    """Return seconds of CPU by process id for a worker and what it started.

    Args:
        pid: the worker: its session is its own.
        uid: its own user id, None where it shares the judge's.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = Path(f"/proc/{entry.name}/stat").read_text().rpartition(")")[2].split()
                mine = int(fields[3]) == pid or (uid is not None and entry.stat().st_uid == uid)
            except OSError:
                continue
            if mine:
                found[int(entry.name)] = sum(int(f) for f in fields[11:15]) / ticks
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
