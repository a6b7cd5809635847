"""The processes of this machine and their descent, as the kernel tells of them in /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Children = Callable[[int], Iterable[int]]

_LISTS_CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists()


def read_proc(path: str) -> str:
    """Return the text of one of the kernel's files; names of processes may be any bytes.

    The judge reads hundreds of these for each timed batch. pathlib takes several times as long.

    Raises:
        OSError: there is no such file, or its process is gone.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "replace")


def stat_of(pid: int) -> list[str]:
    """Return the fields of a process's ``stat`` from its state on; none where it is gone."""
    try:
        return read_proc(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return []


def every_process() -> Iterator[tuple[int, list[str]]]:
    """Yield id and ``stat`` of every process."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (stat := stat_of(int(entry.name))):
            yield int(entry.name), stat


def children() -> Children:
    """Return a function that gives a process's children; complete for a stopped process."""
    return _listed if _LISTS_CHILDREN else scanned_children()


def scanned_children() -> Children:
    """Return the same function from one scan of all processes, which may run meanwhile."""
    found: dict[int, list[int]] = {}
    for pid, stat in every_process():
        found.setdefault(int(stat[1]), []).append(pid)
    return lambda pid: found.get(pid, ())


def descent(roots: Iterable[int], children: Children) -> list[int]:
    """Return processes and all that descend from them."""
    found: dict[int, None] = {}
    todo = list(roots)
    while todo:
        member = todo.pop()
        if member not in found:
            found[member] = None
            todo += children(member)
    return list(found)


def _listed(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, read_proc(f"{task.path}/children").split())
    return found
