"""Watches the GPU through NVML while blocks run; never changes a setting of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch

from harness.machine.process_tree import stat_of

_THROTTLED = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Reasons to discard a block. The software power cap is none: heavy matrix products run under it
all the time, reference and candidate alike. Source: nvml.h, nvmlClocksEventReasons."""
_POWER_CAP = 0x04


class GpuWatch:
    """One GPU's clocks, temperature, power and other users, sampled after every block.

    Args:
        device: a CUDA device; on any other nothing is seen.

    Attributes:
        blind: why something could not be watched; empty if all could.
        card: a hash that names this GPU among its kind; empty if torch does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.blind = ""
        self.card = ""
        self._nvml: Any = None
        self._handle: Any = None
        self._seen: dict[str, list[float]] = {}
        self._reasons = 0
        self._other_processes = 0
        if device.type != "cuda":
            return
        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        if not uuid:
            self.blind = (
                "clocks and throttling were not watched: torch does not say which GPU it is"
            )
            return
        self.card = hashlib.sha256(uuid.removeprefix("GPU-").encode()).hexdigest()[:12]
        try:
            import pynvml
        except ImportError:
            self.blind = "clocks and throttling were not watched: nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(
                uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
            )
            self._nvml = pynvml
        except (pynvml.NVMLError, AttributeError, OSError) as error:
            self.blind = f"clocks and throttling were not watched: {error}"

    def condition(self) -> str:
        """Sample the GPU; return a reason to discard the block that just ended, or nothing."""
        if self._nvml is None:
            return ""
        nvml, handle = self._nvml, self._handle
        self._sample("sm_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, 1))
        self._sample("memory_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, 2))
        self._sample("temperature_c", lambda: nvml.nvmlDeviceGetTemperature(handle, 0))
        self._sample("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
        reasons = 0
        try:
            reasons = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            self._other_processes = max(self._other_processes, self.other_processes())
        except nvml.NVMLError as error:
            self.blind = self.blind or f"throttling was not watched: {error}"
        self._reasons |= reasons
        return next((name for bit, name in _THROTTLED.items() if reasons & bit), "")

    @property
    def was_shared(self) -> bool:
        """Return whether a process that does not belong to this run was seen on the GPU."""
        return self._other_processes > 0

    def other_processes(self) -> int:
        """Return how many processes of other runs use the GPU; 0 if that is unknown."""
        if self._nvml is None:
            return 0
        users = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return sum(not _ours(u.pid) for u in users)

    def _sample(self, name: str, read: Any) -> None:
        try:
            self._seen.setdefault(name, []).append(float(read()))
        except self._nvml.NVMLError as error:
            self.blind = self.blind or f"{name} was not watched: {error}"

    def record(self) -> Mapping[str, Any]:
        """Return the lowest and the highest value of everything that was sampled."""
        found: dict[str, Any] = {k: [min(v), max(v)] for k, v in self._seen.items() if v}
        if self._nvml is not None:
            found["throttle_reasons"] = [n for bit, n in _THROTTLED.items() if self._reasons & bit]
            found["power_capped"] = bool(self._reasons & _POWER_CAP)
            found["other_processes"] = self._other_processes
        if self.blind:
            found["blind"] = self.blind
        return found


def _ours(pid: int) -> bool:
    """Return whether a process on the GPU belongs to this run: the judge's parent started it."""
    for _ in range(16):
        if pid in (os.getpid(), os.getppid()):
            return True
        stat = stat_of(pid)
        pid = int(stat[1]) if stat else 0
        if pid <= 1:
            return False
    return False
