"""Values whose tensors stay in an arena, for both ends to use in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.ipc.arena import Arena, aligned
from harness.ipc.errors import WireViolation
from harness.ipc.values import DTYPE_NAMES, Decoder, Encoder, checked_entry


class Placer(Encoder):
    """Describes values whose tensors stay in the arena for both ends to use in place.

    Args:
        arena: holds them; None only adds up the bytes.
        offset: where the first one goes.

    Attributes:
        places: one tensor over the arena per tensor of the values, in their order.
    """

    def __init__(self, arena: Arena | None, offset: int = 0) -> None:
        super().__init__(arena)
        self._offset = offset
        self.places: list[torch.Tensor] = []

    def _tensor(self, tensor: torch.Tensor) -> dict[str, Any]:
        nbytes = _span(tensor.shape, tensor.stride()) * tensor.element_size()
        entry = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "strides": list(tensor.stride()),
            "offset": self._offset,
            "nbytes": nbytes,
        }
        self.table.append(entry)
        self._offset += aligned(nbytes)
        if self._arena is not None:
            self.places.append(_placed(self._arena, entry))
        return {"t": len(self.table) - 1}


class Placed(Decoder):
    """Reads what a Placer described: tensors over the arena itself, strides and all."""

    def __init__(self, arena: Arena, table: Any) -> None:
        super().__init__(arena, table, private=False)

    def _tensor(self, entry: Any) -> torch.Tensor:
        assert self._arena is not None
        return _placed(self._arena, entry)


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements a storage needs for a layout."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _placed(arena: Arena, entry: dict[str, Any]) -> torch.Tensor:
    shape, strides, offset, nbytes, dtype = checked_entry(entry)
    if nbytes != _span(shape, strides) * dtype.itemsize or offset + nbytes > arena.size_bytes:
        raise WireViolation("a placed tensor does not fit its place")
    if not nbytes:
        return torch.empty(shape, dtype=dtype, device=arena.flat().device)
    return arena.piece(offset, nbytes).view(dtype).as_strided(shape, strides)
