"""Finds the GPUs of this machine. A process of its own asks the driver.

``cuInit`` in the caller's process would break CUDA in its later forks, and a broken driver can hang
or crash there. So this file, run as a program, asks the driver and prints JSON. It does not import
torch, which would take seconds.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_PROBE_TIMEOUT_S = 60.0
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device. ``index`` is its number among the visible ones, as in CUDA and torch."""

    index: int
    name: str
    uuid: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The driver's answer.

    Attributes:
        devices: the visible devices.
        cuda: CUDA version that the driver supports, e.g. ``13.0``; empty without a driver.
        problem: why there are no devices; empty if there are some.
    """

    devices: tuple[Gpu, ...] = ()
    cuda: str = ""
    problem: str = ""


@lru_cache(maxsize=1)
def find_gpus() -> Gpus:
    """Return the visible GPUs. The driver is asked once per process."""
    command = [sys.executable, "-I", str(Path(__file__).resolve())]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Gpus(problem=f"the CUDA driver did not answer within {_PROBE_TIMEOUT_S:.0f} s")
    try:
        plain = json.loads(done.stdout)
        return Gpus(
            devices=tuple(
                Gpu(**{**gpu, "capability": tuple(gpu["capability"])}) for gpu in plain["devices"]
            ),
            cuda=plain["cuda"],
            problem=plain["problem"],
        )
    except (ValueError, KeyError, TypeError):
        return Gpus(problem=f"the query of the CUDA driver failed with exit code {done.returncode}")


def _ask_driver() -> dict[str, Any]:
    """Return the driver's answer as plain JSON."""
    answer: dict[str, Any] = {"devices": [], "cuda": "", "problem": ""}
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        answer["problem"] = "no NVIDIA driver (libcuda.so.1 is not installed)"
        return answer
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    answer["cuda"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
    code = cuda.cuInit(0)
    if code:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        said = name.value.decode() if name.value else f"error {code}"
        answer["problem"] = f"the NVIDIA driver finds no usable GPU ({said})"
        return answer
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    answer["devices"] = [_describe(cuda, index) for index in range(count.value)]
    if not count.value:
        answer["problem"] = "the NVIDIA driver shows no GPU. Next: check CUDA_VISIBLE_DEVICES"
    return answer


def _describe(cuda: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory = ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    identity = (ctypes.c_ubyte * 16)()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetUuid(identity, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return {
        "index": index,
        "name": name.value.decode(),
        "uuid": str(uuid.UUID(bytes=bytes(identity))),
        "capability": [major.value, minor.value],
        "memory_bytes": memory.value,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_ask_driver()))
