"""Which cores judge and workers run on while a GPU pair is timed.

A call of a launch-bound pair is all host time. One host with four GPUs gave 13.5 or 20.5 us for
the same call, by where the scheduler had put a process (four H200, 64 cores, 2026-11-21): a
process far from its GPU, or beside the judge that spins on the other thread of its core, is a
third slower, and reference and candidate are two processes. So the main threads of all workers
share one core, one at a time, and the judge has another, both near the GPU.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_CPUS = Path("/sys/devices/system/cpu")
_PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """The core of the judge and the one that its workers share, by number."""

    judge: int
    workers: int


def seats(
    index: int, near: set[int], allowed: set[int], siblings: dict[int, frozenset[int]]
) -> Seats | None:
    """Return two cores for the pair on one GPU; None where there are not two.

    Args:
        index: of the GPU: pairs on several GPUs get cores of their own while there are any.
        near: CPUs at the GPU's side of the machine; empty where that is not known.
        allowed: CPUs that this process may use.
        siblings: the CPUs that are threads of the same core, by CPU.
    """
    usable = (near & allowed) or allowed
    if len({siblings.get(cpu, frozenset({cpu})) for cpu in usable}) < 2:
        usable = allowed
    # One thread of each core. The last ones first: interrupts and other programs like the first.
    cores = sorted({min(siblings.get(cpu, frozenset({cpu})) & usable) for cpu in usable})[::-1]
    if len(cores) < 2:
        return None
    at = 2 * index % (len(cores) - len(cores) % 2)
    return Seats(judge=cores[at], workers=cores[at + 1])


def seats_for(device: torch.device) -> Seats | None:
    """Return the cores for a pair on a CUDA device, by what the system says of it."""
    allowed = os.sched_getaffinity(0)
    siblings = {
        cpu: frozenset(_numbers(_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") | {cpu})
        for cpu in allowed
    }
    properties: Any = torch.cuda.get_device_properties(device)
    names = ("pci_domain_id", "pci_bus_id", "pci_device_id")
    domain, bus, slot = (getattr(properties, name, 0) for name in names)
    near = _numbers(_PCI / f"{domain:04x}:{bus:02x}:{slot:02x}.0" / "local_cpulist")
    return seats(device.index or 0, near, allowed, siblings)


def sit(pid: int, core: int) -> bool:
    """Keep a process's main thread on a core; return whether that could be done.

    Its other threads stay free: what was started before, a pool of the solution's or autograd's,
    keeps its own.
    """
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, {core})
        return True
    return False


def _numbers(path: Path) -> set[int]:
    """Return the CPUs of a list like ``0-3,8``; none where there is no such file."""
    try:
        text = path.read_text()
    except OSError:
        return set()
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found
