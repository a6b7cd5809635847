"""Decides from ``--device`` and ``--jobs`` where pairs run, and how many run at once."""

from __future__ import annotations

import difflib
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from harness.domain import Options, UsageError
from harness.fleet.slots import AllSlots, CountSlot, FileSlot, Slot
from harness.fleet.turns import SharedDevice, SoleTurn, Turn
from harness.machine.environment import torch_build
from harness.machine.gpus import Gpu, Gpus, find_gpus

_BYTES_PER_JOB = 3 * 1024**3
"""Memory that one job may need: a judge, two workers and a compiler that reads torch's headers
(1.4 GiB of g++ at its peak; torch 2.13, g++ 12, 2026-11-21)."""
_CHECK_SIDE_BY_SIDE = 4
"""So many pairs check on one GPU at once. Loading a pair keeps about four cores busy."""
_CORES_PER_CHECK = 4


@dataclass(slots=True, kw_only=True)
class Plan:
    """How one run uses the machine.

    Attributes:
        devices: devices that pairs are spread over: ``cuda:0`` ..., ``emulated`` or ``cpu``.
        jobs: builds, or whole pairs where no device is shared, side by side.
        alive: judges that may exist at once: those that build, and those that have a device.
    """

    devices: tuple[str, ...]
    jobs: int
    alive: int
    _builds: threading.BoundedSemaphore
    _timed_cpu: bool
    _shared: dict[str, SharedDevice]
    _lock_folder: Path | None = None
    _load: dict[str, int] = field(default_factory=dict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def assign(self) -> str:
        """Return the device with the fewest pairs on it, and count one more."""
        with self._mutex:
            device = min(self.devices, key=lambda name: self._load.get(name, 0))
            self._load[device] = self._load.get(device, 0) + 1
        return device

    def leave(self, device: str) -> None:
        """Count one pair less on a device."""
        with self._mutex:
            self._load[device] -= 1

    def build_slot(self, device: str) -> Slot:
        """Return the right to build: one of ``jobs``, and on the CPU not while one measures."""
        slot = CountSlot(self._builds)
        if self._timed_cpu:
            return AllSlots(slot, FileSlot("cpu", shared=True, folder=self._lock_folder))
        return slot

    def turn(self, device: str, *, alone: bool = False) -> Turn | None:
        """Return the right to a device; None where the right to build covers it.

        Args:
            device: one of ``devices``.
            alone: have the device alone for the checks, too.
        """
        if device in self._shared:
            return self._shared[device].turn(alone=alone)
        if self._timed_cpu:
            return SoleTurn(FileSlot("cpu", shared=False, folder=self._lock_folder))
        return None


def make_plan(options: Options, pairs: int, *, lock_folder: Path | None = None) -> Plan:
    """Return how a run uses this machine.

    Args:
        options: device and jobs are read.
        pairs: how many pairs will be run.
        lock_folder: where the locks on devices stand; None is the default.

    Raises:
        UsageError: no such device, or it is not there.
    """
    shared: dict[str, SharedDevice] = {}
    side_by_side = 1
    devices: tuple[str, ...]
    if options.device in ("cpu", "emulated"):
        devices = (options.device,)
    else:
        chosen = _choose_gpus(options.device)
        devices = tuple(f"cuda:{gpu.index}" for gpu in chosen) or ("emulated",)
        cores = len(os.sched_getaffinity(0)) // max(len(chosen), 1)
        side_by_side = max(1, min(_CHECK_SIDE_BY_SIDE, cores // _CORES_PER_CHECK))
        shared = {
            f"cuda:{gpu.index}": SharedDevice(
                FileSlot(gpu.uuid, shared=False, folder=lock_folder),
                side_by_side=side_by_side,
                memory_bytes=gpu.memory_bytes,
            )
            for gpu in chosen
        }
    timed_cpu = options.device == "cpu" and options.timed
    jobs = options.jobs or default_jobs(on_gpu=devices[0].startswith("cuda"))
    alive = min(jobs + side_by_side * (len(shared) + timed_cpu), max(pairs, 1))
    return Plan(
        devices=devices,
        jobs=jobs,
        alive=alive,
        _builds=threading.BoundedSemaphore(jobs),
        _timed_cpu=timed_cpu,
        _shared=shared,
        _lock_folder=lock_folder,
    )


def default_jobs(*, on_gpu: bool) -> int:
    """Return how many builds, or pairs, this machine carries side by side.

    Beside a GPU half of the cores are left to the pair that is being measured.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores // 2 if on_gpu else cores, available_bytes() // _BYTES_PER_JOB))


def available_bytes() -> int:
    """Return how much memory new processes can use without swapping."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return _BYTES_PER_JOB
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else _BYTES_PER_JOB


def _choose_gpus(device: str) -> tuple[Gpu, ...]:
    """Return the GPUs that ``auto``, ``cuda`` or ``cuda:N`` mean; none for auto without any.

    Raises:
        UsageError: the device is misspelt, or was asked for by name and is not there.
    """
    wanted = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
    if not wanted:
        names = ("auto", "cuda", "cuda:0", "emulated", "cpu")
        close = difflib.get_close_matches(device, names, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(
            f"unknown device {device!r}; {hint}Valid: auto, cuda, cuda:N, emulated, cpu"
        )
    gpus = _usable_gpus()
    if device == "auto":
        return gpus.devices
    if not gpus.devices:
        raise UsageError(
            f"--device {device}: {gpus.problem}. "
            "Next: --device emulated runs the CUDA source on the CPU; --doctor says more"
        )
    if wanted.group(1) is None:
        return gpus.devices
    index = int(wanted.group(1))
    if index >= len(gpus.devices):
        raise UsageError(
            f"--device {device}: this machine has cuda:0 to cuda:{len(gpus.devices) - 1}"
        )
    return (gpus.devices[index],)


def _usable_gpus() -> Gpus:
    """Return the GPUs that the installed torch can use."""
    build = torch_build()
    if build is not None and build.cuda is None:
        return Gpus(problem=f"torch {build.version} is built without CUDA")
    return find_gpus()
