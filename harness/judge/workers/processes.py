"""A worker's processes: their memory and CPU time; stopping, resuming and ending them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.judge.workers import prefork
from harness.machine.process_tree import children, descent, every_process, read_proc, stat_of

live: set[int] = set()
"""Process ids of workers that have not been ended. The judge kills all other children."""
_COMPILER = re.compile(
    r"(?:[\w.]+-)*(?:nvcc|cicc|ptxas|fatbinary|nvlink|cudafe\+\+|cc1|cc1plus|cc|c\+\+|gcc|g\+\+|clang|"
    r"clang\+\+|collect2|lto1|lto-wrapper|as|ar|ld|ld\.\w+|lld|gold|mold|ninja|ccache|sccache)"
    r"(?:-[\d.]+)?"
)
"""The programs of a build, with a target in front and a version behind: x86_64-linux-gnu-g++-12."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
births = threading.Lock()
"""Locked from a worker's start until it is in ``live``: it must not look like a leftover."""


def resident_bytes(pid: int) -> int:
    """Return a process's anonymous and shared resident memory, 0 where it is gone.

    File mappings do not count: all processes share these libraries. Shared memory counts, and with
    it the judge's arenas.
    """
    try:
        status = read_proc(f"/proc/{pid}/status")
    except OSError:
        return 0
    found = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE)
    return sum(int(kilobytes) for kilobytes in found) * 1024


def family(pid: int, *, orphans: bool) -> dict[int, float]:
    """Return seconds of CPU by process id for a worker and all its descendants.

    Descent alone counts: a process can leave its session, hide its owner and change its name, but
    it cannot choose its parent. The judge is a subreaper and adopts a process whose parent ends.

    Args:
        pid: the worker.
        orphans: whether the judge's adopted children belong to the worker: it runs a solution.
    """
    children_of = children()
    roots = [pid]
    if orphans:
        # A worker has a session of its own, and no process can join another session. A child in
        # the judge's session was started by the judge, or by the problem's code in it.
        rightful = live | prefork.waiting_pids()
        ours = str(os.getsid(0))
        roots += [
            child
            for child in children_of(os.getpid())
            if child not in rightful and (stat_of(child) or ["", "", "", ours])[3] != ours
        ]
    return {
        member: sum(int(ticks) for ticks in stat[11:15]) / _TICKS_PER_S
        for member in descent(roots, children_of)
        if (stat := stat_of(member))
    }


def is_compiler(pid: int, uid: int | None, folder: Path) -> bool:
    """Return whether a process is one of a compiler's, by the program that it runs.

    A process can choose its name and arguments, but not what its ``exe`` points to. Programs that
    the worker could have written itself are not believed to be compilers.

    Args:
        pid: of the process.
        uid: of the worker, None where it is the judge's.
        folder: of the worker.
    """
    try:
        running = Path(f"/proc/{pid}/exe")
        program, owner = str(running.readlink()), running.stat().st_uid
    except OSError:
        return False
    own = owner == uid or program.startswith(f"{folder}/") or program.endswith(" (deleted)")
    return not own and _COMPILER.fullmatch(program.rpartition("/")[2]) is not None


class Restless(Exception):
    """A worker, or a process that it started, keeps running although it was stopped."""


@dataclass(frozen=True, slots=True)
class Standstill:
    """A worker and its family, stopped.

    Attributes:
        members: process ids.
        spent: CPU time and turns of each thread, by process and thread id.
    """

    members: frozenset[int]
    spent: Mapping[tuple[int, int], str]


def stop(pid: int, *, orphans: bool, limit_s: float) -> Standstill:
    """Stop all threads of a worker and its family, and return when they stand still.

    Args:
        pid: the worker.
        orphans: as for family().
        limit_s: for them to stand still.

    Raises:
        Restless: they do not, or they keep starting new processes.
    """
    stopped: frozenset[int] = frozenset()
    until = time.monotonic() + limit_s
    quiet = 0
    while quiet < 2:
        if time.monotonic() > until:
            raise Restless
        members = frozenset(family(pid, orphans=orphans))
        stand = all(_stands(process, thread) for process, thread in _threads(members))
        quiet = quiet + 1 if stand and members <= stopped else 0
        if not quiet:
            # The next round finds a process that was started just before its parent stopped.
            for member in members:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(member, signal.SIGSTOP)
            stopped |= members
            time.sleep(0.0001)
    return Standstill(stopped, _spent(stopped))


def stood_still(pid: int, since: Standstill, *, orphans: bool) -> bool:
    """Return whether no process of a worker's family has run since it was stopped.

    A process can wake itself, with a timer whose signal is SIGCONT. Its CPU time shows it.
    """
    found = family(pid, orphans=orphans)
    members = frozenset(m for m in found if (stat_of(m) or "X")[0] not in "ZX")
    if not members <= since.members:
        return False
    before = {thread: spent for thread, spent in since.spent.items() if thread[0] in members}
    return _spent(members) == before


def resume(since: Standstill, pid: int) -> None:
    """Resume the processes that stop() stopped, except the worker itself."""
    for member in since.members - {pid}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGCONT)


def _threads(members: Iterable[int]) -> list[tuple[int, int]]:
    found = []
    for member in members:
        with contextlib.suppress(OSError):
            found += [(member, int(task.name)) for task in os.scandir(f"/proc/{member}/task")]
    return found


def _stands(process: int, thread: int) -> bool:
    try:
        text = read_proc(f"/proc/{process}/task/{thread}/stat")
    except OSError:
        return True  # it is gone
    return text.rpartition(")")[2].split()[0] in "TtZX"


def _spent(members: Iterable[int]) -> dict[tuple[int, int], str]:
    """Return CPU time and turns on a core by thread."""
    found = {}
    for process, thread in _threads(members):
        folder = f"/proc/{process}/task/{thread}"
        with contextlib.suppress(OSError):
            fields = read_proc(f"{folder}/stat").rpartition(")")[2].split()
            if fields[0] in "ZX":
                continue
            turns = " ".join(fields[11:13])
            with contextlib.suppress(OSError):  # a kernel without scheduler statistics
                run_ns, _, slices = read_proc(f"{folder}/schedstat").split()
                turns = f"{run_ns} {slices}"
            found[process, thread] = turns
    return found


def kill_leftovers(uid: int | None) -> None:
    """Kill what a worker left behind: processes of its user id, and the judge's adopted children.

    The judge is a subreaper: a process whose parent has ended becomes the judge's child. Where the
    worker had a user id of its own, the judge also finds processes whose parent lives.
    """
    for _ in range(50):
        with births:
            found = _kill_once(uid)
        if not found:
            return
        time.sleep(0.005)


def _kill_once(uid: int | None) -> bool:
    """Kill all leftovers; return whether there were any."""
    me = os.getpid()
    rightful = live | prefork.waiting_pids()
    found = False
    for pid, stat in every_process():
        if pid in rightful:
            continue
        try:
            owner = Path(f"/proc/{pid}").stat().st_uid
        except OSError:
            continue
        state, parent = stat[0], int(stat[1])
        if parent != me and (uid is None or owner != uid):
            continue
        found = found or state != "Z" or parent == me
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        if parent == me:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return found
