"""The cores on which judge and workers run while a GPU pair is timed.

A call of a launch-bound pair takes only the host's time. On one host the same call took 13.5 us in
one process and 20.5 us in another, for seconds (four H200, 64 cores, 2026-11-21): a process may
be far from its GPU, or on the other thread of the judge's core. So the main threads of all workers
share one core, one at a time, and the judge has another, both near the GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_CPUS = Path("/sys/devices/system/cpu")
_PCI = Path("/sys/bus/pci/devices")
_locks: list[int] = []
"""Descriptors of the locks that this process holds on cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorePair:
    """The core of the judge and the one that its workers share, by number."""

    judge: int
    workers: int


def pairs_of_cores(
    near: set[int], allowed: set[int], siblings: Mapping[int, frozenset[int]]
) -> list[CorePair]:
    """Return all pairs of cores, the best first.

    Args:
        near: CPUs at the GPU's side of the machine; empty if unknown.
        allowed: CPUs that this process may use.
        siblings: the CPUs that are threads of the same core, by CPU.
    """
    usable = (near & allowed) or allowed
    # One thread of each core. The last ones first: interrupts and other programs like the first.
    one = sorted({min(siblings.get(cpu, frozenset({cpu})) & usable) for cpu in usable})[::-1]
    return [CorePair(judge=j, workers=w) for j, w in zip(one[::2], one[1::2], strict=False)]


def claim_cores(device: torch.device, folder: Path | None = None) -> CorePair | None:
    """Return two cores for a pair on a CUDA device that no other judge of this user has.

    This process keeps them until it ends: otherwise judges with a GPU each would choose the same.

    Args:
        device: decides which cores are near.
        folder: of the locks, one per core; None is the user's own.
    """
    allowed = os.sched_getaffinity(0)
    siblings = {
        cpu: frozenset(_numbers(_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") | {cpu})
        for cpu in allowed
    }
    properties: Any = torch.cuda.get_device_properties(device)
    names = ("pci_domain_id", "pci_bus_id", "pci_device_id")
    domain, bus, slot = (getattr(properties, name, 0) for name in names)
    near = _numbers(_PCI / f"{domain:04x}:{bus:02x}:{slot:02x}.0" / "local_cpulist")
    folder = folder or Path(tempfile.gettempdir()) / f"kernel-eval-{os.getuid()}"
    best = pairs_of_cores(near, allowed, siblings)
    further = [s for s in pairs_of_cores(set(), allowed, siblings) if s not in best]
    return next((s for s in [*best, *further] if _claimed(s, folder)), None)


def _claimed(wanted: CorePair, folder: Path) -> bool:
    """Return whether both cores are ours now."""
    held: list[int] = []
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for core in (wanted.judge, wanted.workers):
            held.append(
                os.open(folder / f"core-{core}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            )
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        for descriptor in held:
            os.close(descriptor)
        return False
    _locks.extend(held)
    return True


def pin_judge_and_workers(
    device: torch.device, workers: list[int], ask: Callable[[set[int]], bool] = lambda cores: False
) -> str:
    """Give the judge a core and all workers another.

    Args:
        device: decides which cores are near.
        workers: process ids.
        ask: lets the workers move themselves to some cores, and returns whether all did. In a
            default container a judge may not move another user's process (CAP_SYS_NICE).

    Returns:
        A note for the verdict.
    """
    taken = claim_cores(device)
    if taken is None:
        return "the system chooses the cores of judge and workers: no two cores are free"
    if pin_all(workers, taken.workers) or ask({taken.workers}):
        if pin(0, taken.judge):
            return f"judge on core {taken.judge}, workers on core {taken.workers}"
    else:
        ask(os.sched_getaffinity(0))  # none rather than some
    return "the system chooses the cores of judge and workers: cannot pin them"


def pin(pid: int, core: int) -> bool:
    """Pin a process's main thread to a core; return whether that worked.

    Its other threads stay free. A thread that it starts later shares the core.
    """
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, {core})
        return True
    return False


def pin_all(pids: Iterable[int], core: int) -> bool:
    """Pin all processes to a core or none: half of them pinned would be worse."""
    before: dict[int, set[int]] = {}
    try:
        for pid in pids:
            before[pid] = os.sched_getaffinity(pid)
            os.sched_setaffinity(pid, {core})
    except OSError:
        for pid, cores in before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(pid, cores)
        return False
    return True


@contextlib.contextmanager
def affinity_restored() -> Iterator[None]:
    """Restore, at the end, the cores on which the threads of this process may run.

    Meanwhile torch uses one thread. Helper threads would share the one core with the thread that
    spins while it waits for them: 8 ms for each operation on more than 32768 elements.
    """
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has just ended
                if len(os.sched_getaffinity(int(task.name))) == 1:
                    os.sched_setaffinity(int(task.name), before)


def _numbers(path: Path) -> set[int]:
    """Return the CPUs of a list like ``0-3,8``; none if there is no such file."""
    try:
        text = path.read_text()
    except OSError:
        return set()
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found
