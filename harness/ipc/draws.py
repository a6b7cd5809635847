"""Draws the large random tensors of a module once for all processes of a pair.

torch's CPU generator works on one core, so it takes seconds to fill a Linear layer of gigabytes.
The judge, the oracle and every worker construct the same module under the same seed, so they draw
the same numbers. The judge therefore keeps each large draw. A later constructor gets a copy instead
of the same draw (same generator state, same operation, same tensor). The result, and the state of
the generator afterwards, are bit for bit those of a draw.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from harness.domain import HarnessError

_LEAST_ELEMENTS = 1 << 20
"""Smaller draws take milliseconds: as many took 5 ms on one core."""
_OPERATIONS = ("uniform_", "normal_")
"""The operations with which torch.nn.init and torch's own modules draw."""
_PIECE_BYTES = 1 << 30
"""The kernel copies less than 2 GiB in one call."""


class Draws:
    """Large draws of one constructor, in a file in memory.

    Args:
        fd: the file with another process's draws.
        index: the ``index`` of that process.
        keep: keep new draws until they are shared.

    Attributes:
        index: by draw, offset and bytes of its values. The state of the generator follows them.
    """

    def __init__(
        self,
        fd: int | None = None,
        index: Mapping[str, tuple[int, int]] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._fd = fd
        self.index: dict[str, tuple[int, int]] = dict(index or {})
        self._end = 0
        self._complete = not keep
        self._sealed = fd is not None  # the process that made the file has sealed it

    def close(self) -> None:
        """Let go of the memory. It is freed when no other process holds it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self.index.clear()
        self._complete = True

    def shared(self) -> int | None:
        """Return a descriptor for a worker, which cannot write to it; None without draws.

        Later draws are not kept.
        """
        if not self.index or self._fd is None:
            return None
        if not self._sealed:
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
            self._complete = self._sealed = True
        return self._fd

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Copy known draws instead of making them, and keep new ones."""
        if self._complete and not self.index:
            yield
            return
        before = {name: torch.Tensor.__dict__.get(name) for name in _OPERATIONS}
        for name in _OPERATIONS:
            setattr(torch.Tensor, name, self._instead_of(name, getattr(torch.Tensor, name)))
        try:
            yield
        finally:
            for name, function in before.items():
                if function is None:
                    delattr(torch.Tensor, name)  # torch.Tensor inherits its own again
                else:
                    setattr(torch.Tensor, name, function)

    def _instead_of(self, name: str, drawn: Callable[..., torch.Tensor]) -> Any:
        thread = threading.get_ident()

        @functools.wraps(drawn)
        def draw(tensor: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
            if not _is_large(tensor, named) or threading.get_ident() != thread:
                return drawn(tensor, *args, **named)
            before = torch.default_generator.get_state()
            what = (name, args, sorted(named.items()), str(tensor.dtype), tuple(tensor.shape))
            key = f"{hashlib.sha256(_memory(before)).hexdigest()} {what}"
            known = self.index.get(key)
            if known is not None:
                self._copy(tensor, *known)
            else:
                drawn(tensor, *args, **named)
                # Under a TorchFunctionMode, torch calls this function a second time from inside.
                if not self._complete and key not in self.index:
                    self._keep(key, tensor)
            return tensor

        return draw

    def _copy(self, tensor: torch.Tensor, at: int, nbytes: int) -> None:
        after = torch.default_generator.get_state()
        self._transfer(os.preadv, _memory(tensor), at)
        self._transfer(os.preadv, _memory(after), at + nbytes)
        torch.default_generator.set_state(after)
        torch.autograd.graph.increment_version(tensor)

    def _keep(self, key: str, tensor: torch.Tensor) -> None:
        if self._fd is None:
            self._fd = os.memfd_create("draws", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        after = torch.default_generator.get_state()
        values, state = _memory(tensor), _memory(after)
        try:
            self._transfer(os.pwritev, values, self._end)
            self._transfer(os.pwritev, state, self._end + len(values))
        except OSError:  # no memory for it: later constructors draw it again
            os.ftruncate(self._fd, self._end)
            self._complete = True
            return
        self.index[key] = self._end, len(values)
        self._end += len(values) + len(state)

    def _transfer(self, move: Callable[..., int], memory: memoryview, at: int) -> None:
        assert self._fd is not None
        done = 0
        while done < len(memory):
            moved = move(self._fd, [memory[done : done + _PIECE_BYTES]], at + done)
            if not moved:
                raise HarnessError("the file with the constructor's random numbers is too short")
            done += moved


def _is_large(tensor: Any, named: Mapping[str, Any]) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.numel() >= _LEAST_ELEMENTS
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and named.get("generator") is None
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )


def _memory(tensor: torch.Tensor) -> memoryview:
    """Return a view of a contiguous tensor's bytes; the tensor must outlive it."""
    nbytes = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")
