"""Values as JSON descriptions, their tensors as bytes in an arena."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from harness.ipc.arena import ALIGN, Arena, aligned
from harness.ipc.errors import TooSmall, WireViolation

MAX_DEPTH = 32
MAX_TENSORS = 100_000

# Taken once, so that a candidate which patches torch later does not reach the wire.
_tensor_type = torch.Tensor

DTYPES: dict[str, torch.dtype] = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.complex128,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
DTYPE_NAMES = {d: n for n, d in DTYPES.items()}


class Encoder:
    """Writes values into an arena and describes them.

    Several values may share one arena: offsets go on counting until reset().
    """

    def __init__(self, arena: Arena | None) -> None:
        self._arena = arena
        self._offset = 0
        self._copies: list[tuple[torch.Tensor, int, int]] = []
        self.table: list[dict[str, Any]] = []

    def encode(self, value: Any, depth: int = 0) -> dict[str, Any]:
        """Return the description of value; its tensors are queued for finish()."""
        if depth > MAX_DEPTH:
            return {"x": "nesting beyond 32 levels"}
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return {"v": value}
        if kind is int:
            return {"v": value} if abs(value) < 1 << 63 else {"x": "int beyond 64 bits"}
        if kind is float:
            return {"v": value} if math.isfinite(value) else {"f": repr(value)}
        if kind is list:
            return {"l": [self.encode(v, depth + 1) for v in value]}
        if kind is tuple or kind is torch.Size:
            return {"u": [self.encode(v, depth + 1) for v in value]}
        if isinstance(value, tuple) and (
            hasattr(value, "_fields") or kind.__module__ == "torch.return_types"
        ):
            return {"u": [self.encode(v, depth + 1) for v in value]}
        if kind is dict and all(type(k) in (str, int, bool, type(None)) for k in value):
            return {"d": [[k, self.encode(v, depth + 1)] for k, v in value.items()]}
        if isinstance(value, torch.dtype):
            name = DTYPE_NAMES.get(value)
            return {"dtype": name} if name else {"x": str(value)}
        if isinstance(value, _tensor_type):
            return self._tensor(value)
        return {"x": f"{kind.__module__}.{kind.__qualname__}"}

    def _tensor(self, tensor: torch.Tensor) -> dict[str, Any]:
        tensor = tensor.detach()
        name = DTYPE_NAMES.get(tensor.dtype)
        if name is None or tensor.layout is not torch.strided or tensor.device.type == "meta":
            where = f" on {tensor.device.type}" if tensor.device.type == "meta" else ""
            return {"x": f"{tensor.layout} tensor of {tensor.dtype}{where}"}
        if tensor.is_conj():
            tensor = tensor.resolve_conj()
        if tensor.is_neg():
            tensor = tensor.resolve_neg()
        nbytes = tensor.numel() * tensor.element_size()
        self.table.append(
            {
                "dtype": name,
                "shape": list(tensor.shape),
                "strides": list(tensor.stride()),
                "offset": self._offset,
                "nbytes": nbytes,
            }
        )
        self._copies.append((tensor, self._offset, nbytes))
        self._offset += aligned(nbytes)
        return {"t": len(self.table) - 1}

    @property
    def needed_bytes(self) -> int:
        """Return the arena size that everything encoded so far needs."""
        return self._offset

    def finish(self) -> None:
        """Copy every queued tensor into the arena.

        Raises:
            TooSmall: the arena does not hold them; nothing was written.
        """
        if not self._offset:  # nothing, or nothing that has elements
            self._copies.clear()
            return
        if self._arena is None or self._offset > self._arena.size_bytes:
            raise TooSmall(self._offset)
        flat = self._arena.flat()
        for tensor, offset, nbytes in self._copies:
            if nbytes:
                target = flat[offset : offset + nbytes].view(tensor.dtype).view(tensor.shape)
                target.copy_(tensor)  # also between devices: a host tensor of a GPU pair
        self._copies.clear()


class Decoder:
    """Reads values that an Encoder described, trusting none of the description.

    Args:
        arena: where the bytes lie; None only where no tensor has any.
        table: the Encoder's table, as it arrived.
        private: copy the bytes out before they are looked at, so that a peer cannot change them
            afterwards. A worker may read in place what the judge wrote.
    """

    def __init__(self, arena: Arena | None, table: Any, *, private: bool = True) -> None:
        self._arena = arena
        self._private = private
        if not isinstance(table, list) or len(table) > MAX_TENSORS:
            raise WireViolation("tensor table is not a list of sensible length")
        self._table = table

    def decode(self, description: Any, depth: int = 0) -> Any:
        """Return the described value, its tensors as private copies.

        Raises:
            WireViolation: the description is not one that an Encoder writes.
        """
        if depth > MAX_DEPTH or not isinstance(description, dict) or len(description) != 1:
            raise WireViolation("malformed value description")
        ((key, body),) = description.items()
        if key == "v" and (body is None or isinstance(body, (bool, int, float, str))):
            return body
        if key == "f" and body in ("nan", "inf", "-inf"):
            return float(body)
        if key in ("l", "u") and isinstance(body, list):
            items = [self.decode(v, depth + 1) for v in body]
            return items if key == "l" else tuple(items)
        if key == "d" and isinstance(body, list):
            pairs = [(p[0], p[1]) for p in body if isinstance(p, list) and len(p) == 2]
            if len(pairs) == len(body) and all(
                k is None or isinstance(k, (str, int)) for k, _ in pairs
            ):
                return {k: self.decode(v, depth + 1) for k, v in pairs}
        if key == "dtype" and body in DTYPES:
            return DTYPES[body]
        if key == "x" and isinstance(body, str):
            return Untransferable(body[:200])
        if key == "t" and type(body) is int and 0 <= body < len(self._table):
            return self._tensor(self._table[body])
        raise WireViolation(f"malformed value description {key!r}")

    def _tensor(self, entry: Any) -> torch.Tensor:
        shape, strides, offset, nbytes, dtype = checked_entry(entry)
        count = math.prod(shape)
        if count * dtype.itemsize != nbytes:
            raise WireViolation("tensor bytes do not fit its shape")
        if self._arena is None or offset + nbytes > self._arena.size_bytes:
            if nbytes:
                raise WireViolation("tensor lies outside the arena")
            return torch.empty(shape, dtype=dtype)
        raw = self._arena.flat()[offset : offset + nbytes]
        if self._private:
            raw = raw.clone()
        if dtype is torch.bool:
            # Bytes other than 0 and 1 in a bool tensor are undefined behaviour in its readers.
            tensor = raw.ne(0).view(shape)
        else:
            tensor = raw.view(dtype).view(shape) if nbytes else torch.empty(shape, dtype=dtype)
        return restride(tensor, strides)


class Untransferable:
    """Stands for a value that cannot travel; equal to nothing, keeps the type's name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def checked_entry(entry: Any) -> tuple[list[int], list[int], int, int, torch.dtype]:
    """Return shape, strides, offset, bytes and dtype of a described tensor.

    Raises:
        WireViolation: the description is not one that an Encoder writes.
    """
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
        raise WireViolation("tensor of unknown dtype")
    shape, strides = entry.get("shape"), entry.get("strides")
    offset, nbytes = entry.get("offset"), entry.get("nbytes")
    if not (isinstance(shape, list) and isinstance(strides, list) and len(shape) <= 64):
        raise WireViolation("tensor without shape or strides")
    numbers = [*shape, *strides, offset, nbytes]
    if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 1 << 56 for n in numbers):
        raise WireViolation("tensor with impossible numbers")
    assert isinstance(offset, int) and isinstance(nbytes, int)
    if offset % ALIGN:
        raise WireViolation("tensor at an unaligned offset")
    return shape, strides, offset, nbytes, DTYPES[entry["dtype"]]


def restride(tensor: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """Return tensor with the given strides where these describe a dense or expanded layout.

    Args:
        tensor: contiguous, any shape.
        strides: one per dimension, elements. Layouts with gaps or partial overlap stay contiguous:
            what a peer claims about gaps must not make the reader allocate them.
    """
    if list(tensor.stride()) == list(strides) or tensor.numel() == 0:
        return tensor
    expanded = [d for d in range(tensor.dim()) if strides[d] == 0 and tensor.shape[d] > 1]
    base = tensor
    for d in expanded:
        base = base.narrow(d, 0, 1)
    order = sorted((d for d in range(base.dim()) if base.shape[d] > 1), key=lambda d: strides[d])
    step = 1
    for d in order:
        if strides[d] != step:
            return tensor
        step *= base.shape[d]
    if expanded and not torch.equal(base.expand_as(tensor), tensor):
        return tensor
    dense = torch.empty_strided(base.shape, list(strides), dtype=base.dtype, device=base.device)
    dense.copy_(base)
    return dense.expand_as(tensor) if expanded else dense
