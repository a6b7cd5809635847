"""Arenas in GPU memory, shared between processes by CUDA IPC handle.

Each arena is one cudaMalloc of its own. An IPC handle maps a whole allocation into the peer, so the
allocation may hold only data that the peer may see. The memory of timed outputs is the worker's
(``allocations``): the judge maps it, and copies the elements that it reads.

This module calls libcudart through ctypes. torch has loaded it already, and exposes neither call.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from harness.domain import HarnessError

_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1
_NO_MEMORY = 2
"""cudaErrorMemoryAllocation."""


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_char * _HANDLE_BYTES)]


@functools.cache
def _cudart() -> ctypes.CDLL:
    """Return the CUDA run-time library that torch itself uses in this process."""
    torch.cuda.init()
    with Path("/proc/self/maps").open(encoding="utf-8") as maps:
        loaded = {line.split()[-1] for line in maps if "libcudart" in line}
    folder = Path(torch.__file__).parent.parent / "nvidia"
    candidates = [*sorted(loaded), *map(str, folder.rglob("libcudart.so*"))]
    for path in candidates:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        library.cudaGetErrorString.restype = ctypes.c_char_p
        library.cudaIpcOpenMemHandle.argtypes = [
            ctypes.POINTER(ctypes.c_void_p),
            _Handle,
            ctypes.c_uint,
        ]
        return library
    raise HarnessError(
        "libcudart is not loaded, so this torch cannot share GPU memory. "
        "Next: install a CUDA build of torch"
    )


def _check(code: int, what: str) -> None:
    if code:
        _cudart().cudaGetLastError()  # clears it: else any later call would report it
        text = _cudart().cudaGetErrorString(code)
        raise HarnessError(f"{what}: {text.decode() if text else code}")


@functools.cache
def _driver() -> ctypes.CDLL:
    """Return the driver's library: only it tells the allocation of an address."""
    return ctypes.CDLL("libcuda.so.1")


def allocation(address: int) -> tuple[int, int] | None:
    """Return base and size of the device allocation around an address; None if there is none."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    if _driver().cuMemGetAddressRange_v2(
        ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address)
    ):
        return None
    return base.value, size.value


def allocations(addresses: Iterable[int], borrowed: DeviceArena | None) -> list[dict[str, Any]]:
    """Describe the device allocations around some addresses, and all of torch's allocator.

    Args:
        addresses: in any order. Those outside of device memory are left out.
        borrowed: the judge's own memory, which may be among them.

    Returns:
        ``base``, ``bytes`` and the IPC ``handle`` of each (hexadecimal; empty for the borrowed
        one). Allocations that cannot be shared are left out.
    """
    found: list[dict[str, Any]] = []
    end = 0
    for address in sorted({*addresses, *_segments()}):
        if address < max(end, 1):
            continue
        range_ = allocation(address)
        if range_ is None:
            continue
        base, size = range_
        end = base + size
        if borrowed is not None and borrowed.pointer == base:
            found.append({"base": base, "bytes": borrowed.size_bytes, "handle": ""})
            continue
        raw = _Handle()
        if _cudart().cudaIpcGetMemHandle(ctypes.byref(raw), ctypes.c_void_p(base)):
            _cudart().cudaGetLastError()
            continue
        handle = ctypes.string_at(ctypes.byref(raw), _HANDLE_BYTES).hex()
        found.append({"base": base, "bytes": size, "handle": handle})
    return found


def _segments() -> list[int]:
    """Return the addresses of torch's memory: later outputs can lie in any of it.

    A snapshot of a thousand blocks takes milliseconds. So a new one is taken only after torch has
    allocated or freed device memory.
    """
    global _seen
    stats = torch.cuda.memory_stats()
    turns = (stats.get("num_device_alloc"), stats.get("num_device_free"))
    if None in turns or _seen[0] != turns:
        device = torch.cuda.current_device()
        snapshot = torch.cuda.memory_snapshot()
        _seen = (turns, [s["address"] for s in snapshot if s["device"] == device])
    return _seen[1]


_seen: tuple[tuple[Any, Any], list[int]] = ((None, None), [])


class _Exposed:
    """Device memory as numba and torch exchange it: zero copies, no ownership."""

    def __init__(self, pointer: int, size_bytes: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 2,
        }


class DeviceArena:
    """One device allocation that two processes address as flat bytes.

    Attributes:
        size_bytes: usable bytes.
        pointer: their address in this process.
    """

    def __init__(self, pointer: int, size_bytes: int, device: str, *, owned: bool) -> None:
        self.size_bytes = size_bytes
        self.pointer = pointer
        self._owned = owned
        self._flat: torch.Tensor | None = torch.as_tensor(
            _Exposed(pointer, size_bytes), device=device
        )

    @classmethod
    def create(cls, size_bytes: int, device: str) -> DeviceArena:
        """Allocate an arena of zeros.

        Raises:
            torch.OutOfMemoryError: the device has no memory for it.
        """
        size_bytes = -(-size_bytes // (1 << 21)) * (1 << 21)
        pointer = ctypes.c_void_p()
        with torch.cuda.device(device):
            code = _cudart().cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
            if code:
                # The memory that torch's allocator caches may be enough.
                _cudart().cudaGetLastError()
                torch.cuda.empty_cache()
                code = _cudart().cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
            if code == _NO_MEMORY:
                raise torch.OutOfMemoryError(f"no GPU memory for an arena of {size_bytes} bytes")
            _check(code, f"an arena of {size_bytes} bytes")
        assert pointer.value is not None
        arena = cls(pointer.value, size_bytes, device, owned=True)
        # It may hold data that this process has freed. A worker must not see that.
        arena.flat().zero_()
        torch.cuda.synchronize(device)
        return arena

    @classmethod
    def open(cls, handle: bytes, size_bytes: int, device: str) -> DeviceArena:
        """Map an arena of another process.

        Raises:
            HarnessError: the driver refuses the handle.
        """
        if len(handle) != _HANDLE_BYTES:
            raise HarnessError(f"an IPC handle has {_HANDLE_BYTES} bytes, not {len(handle)}")
        raw = _Handle()
        ctypes.memmove(ctypes.byref(raw), handle, _HANDLE_BYTES)
        pointer = ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.cuda.init()
            torch.zeros(1, device=device)
            _check(
                _cudart().cudaIpcOpenMemHandle(ctypes.byref(pointer), raw, _LAZY_PEER_ACCESS),
                "cudaIpcOpenMemHandle",
            )
        assert pointer.value is not None
        mapped = allocation(pointer.value)
        if mapped is None or mapped[0] != pointer.value or size_bytes > mapped[1]:
            _cudart().cudaIpcCloseMemHandle(pointer)
            raise HarnessError(f"the allocation of the handle does not have {size_bytes} bytes")
        return cls(pointer.value, size_bytes, device, owned=False)

    def handle(self) -> bytes:
        """Return the IPC handle for the peer."""
        raw = _Handle()
        _check(
            _cudart().cudaIpcGetMemHandle(ctypes.byref(raw), ctypes.c_void_p(self.pointer)),
            "cudaIpcGetMemHandle",
        )
        return ctypes.string_at(ctypes.byref(raw), _HANDLE_BYTES)

    def flat(self) -> torch.Tensor:
        """Return all bytes as a uint8 tensor that shares the arena's memory."""
        if self._flat is None:
            raise HarnessError("the arena is closed")
        return self._flat

    def piece(self, offset: int, nbytes: int) -> torch.Tensor:
        """Return some bytes as a uint8 tensor with a storage of its own over them."""
        return torch.as_tensor(_Exposed(self.pointer + offset, nbytes), device=self.flat().device)

    def close(self) -> None:
        """Free or unmap the memory."""
        if self._flat is None:
            return
        device = self._flat.device
        self._flat = None
        torch.cuda.synchronize(device)
        pointer = ctypes.c_void_p(self.pointer)
        if self._owned:
            _check(_cudart().cudaFree(pointer), "cudaFree")
        else:
            _check(_cudart().cudaIpcCloseMemHandle(pointer), "cudaIpcCloseMemHandle")
