"""Reads a worker's memory without its help, so the worker cannot know what the judge looks at.

A worker that is asked for an output could compute it only then. So the worker says *done* together
with the addresses of all outputs, and the judge reads the ones it chooses.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness import ipc
from harness.domain import HarnessError

_LAST_ADDRESS = 1 << 56


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The results of a call, as the worker describes them.

    Attributes:
        forms: of outputs, gradients of inputs, gradients of state; None for one without memory.
        state: the names of the gradients of state.
        moving: of tensors of the module's state that its calls change.
        moving_at: their addresses.
    """

    forms: tuple[ipc.Form | None, ...] = ()
    state: tuple[str, ...] = ()
    moving: tuple[ipc.Form | None, ...] = ()
    moving_at: tuple[int, ...] = ()

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Layout:
        """Return the layout that an answer describes (see ``replies``)."""
        return cls(
            forms=tuple(answer["forms"]),
            state=tuple(answer["state"]),
            moving=tuple(answer["moving"]),
            moving_at=tuple(answer["moving_at"]),
        )


class PeerMemory:
    """The memory of one worker.

    Args:
        memory_fd: its memory as a file.
        device: of the worker; the judge sees no memory of other GPUs.
        most_bytes: the judge reads no tensor that takes more, from its first element to its last
            or as a copy: a form is only a claim of the worker.

    Attributes:
        blind: why some memory could not be mapped.
        missed: how often a tensor on a GPU lay in no mapped memory.
    """

    def __init__(self, memory_fd: int | None, device: torch.device, most_bytes: int) -> None:
        if memory_fd is None:
            raise HarnessError(
                "this system does not let a process open /proc/self/mem, so the judge cannot look "
                "at timed outputs. Next: a system that does, or --device emulated"
            )
        self._fd = memory_fd
        self._device = device
        self._most_bytes = most_bytes
        self._mapped: dict[int, tuple[bytes, Any]] = {}
        self._bases: list[int] = []
        self._lent: Any = None
        self.blind = ""
        self.missed = 0

    def lend(self, arena: Any) -> None:
        """Note memory of the judge that the worker has mapped: outputs may be views of inputs."""
        self._lent = arena

    def learn(self, allocations: Sequence[Mapping[str, Any]], *, whole: bool = False) -> None:
        """Map the device memory that a worker describes.

        Where the driver refuses to map memory, ``blind`` says why.

        Args:
            allocations: as ``device_arena.allocations`` describes them, handles as bytes.
            whole: there are no others. The worker has freed the others, and the judge must unmap
                them, or they stay taken.

        Raises:
            WireViolation: there is no GPU.
        """
        described = {one["base"] for one in allocations}
        for base in set(self._mapped) - described if whole else ():
            self._unmap(self._mapped.pop(base)[1])
        for one in allocations:
            base, size, handle = one["base"], one["bytes"], one["handle"]
            known = self._mapped.get(base)
            if known is not None and known[0] == handle and known[1].size_bytes == size:
                continue
            if self._device.type != "cuda":
                raise ipc.WireViolation("GPU memory where there is no GPU")
            from harness.ipc import device_arena

            self._forget(base, size)
            if not handle:
                if self._lent is not None and size == self._lent.size_bytes:
                    self._mapped[base] = (handle, self._lent)
                continue
            try:
                arena = device_arena.DeviceArena.open(handle, size, str(self._device))
            except (HarnessError, RuntimeError) as error:
                self.blind = str(error)
            else:
                self._mapped[base] = (handle, arena)
        self._bases = sorted(self._mapped)

    def _forget(self, base: int, size: int) -> None:
        """Unmap memory that a new allocation overlaps."""
        for start, (_, arena) in list(self._mapped.items()):
            if start < base + size and base < start + arena.size_bytes:
                self._unmap(arena)
                del self._mapped[start]

    def close(self) -> None:
        """Unmap all device memory: the driver cannot free memory that the judge maps."""
        for _, arena in self._mapped.values():
            self._unmap(arena)
        self._mapped.clear()
        self._bases = []

    def _unmap(self, arena: Any) -> None:
        if arena is not self._lent:
            arena.close()

    def plan_read(self, form: ipc.Form, numbers: np.ndarray) -> Any:
        """Return what elements() will need to read some elements of such a tensor.

        Args:
            form: of a tensor that is not empty.
            numbers: modulo the tensor's length, they choose the elements.
        """
        chosen = numbers % form.elements
        if form.on_gpu:
            return torch.from_numpy(chosen).to(self._device)
        indices = np.unravel_index(chosen, form.shape or (1,))
        steps = np.asarray(form.strides or (0,), dtype=np.int64) * form.dtype.itemsize
        return [int(offset) for offset in np.stack(indices, axis=1) @ steps]

    def elements(self, address: int, form: ipc.Form, prepared: Any) -> torch.Tensor | None:
        """Return private copies of some elements, on their device.

        Args:
            address: of the tensor.
            form: of the tensor.
            prepared: which elements, from plan_read().

        Returns:
            None where there is no such memory.
        """
        if not self._fits(address, form):
            return None
        if form.on_gpu:
            tensor = self._on_gpu(address, form)
            return None if tensor is None else torch.take(tensor, prepared)
        size = form.dtype.itemsize
        try:
            read = b"".join(os.pread(self._fd, size, address + offset) for offset in prepared)
        except OSError:
            return None
        if len(read) != size * len(prepared):
            return None
        row = dataclasses.replace(form, shape=(len(prepared),), strides=(1,))
        return row.over(torch.frombuffer(bytearray(read), dtype=torch.uint8)).clone()

    def whole(self, address: int, form: ipc.Form) -> torch.Tensor | None:
        """Return a private copy of a tensor, None where there is no such memory."""
        if not self._fits(address, form):
            return None
        if form.on_gpu:
            tensor = self._on_gpu(address, form)
            return None if tensor is None else tensor.clone()
        read = self._bytes(address, form.span_bytes)
        if read is None:
            return None
        return form.over(torch.frombuffer(read, dtype=torch.uint8)).clone()

    def _fits(self, address: int, form: ipc.Form) -> bool:
        copied = form.elements * form.dtype.itemsize
        inside = 0 < address < _LAST_ADDRESS - form.span_bytes
        return inside and max(copied, form.span_bytes) <= self._most_bytes

    def _on_gpu(self, address: int, form: ipc.Form) -> torch.Tensor | None:
        if address % form.dtype.itemsize:
            return None
        at = bisect.bisect_right(self._bases, address) - 1
        if at >= 0:
            offset = address - self._bases[at]
            _, arena = self._mapped[self._bases[at]]
            if offset + form.span_bytes <= arena.size_bytes:
                return form.over(arena.flat()[offset : offset + form.span_bytes])
        self.missed += 1
        return None

    def _bytes(self, address: int, count: int) -> bytearray | None:
        found = bytearray(count)
        view, done = memoryview(found), 0
        while done < count:
            try:
                read = os.preadv(self._fd, [view[done:]], address + done)
            except OSError:
                return None
            if not read:
                return None
            done += read
        return found
