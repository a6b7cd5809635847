"""Values as JSON descriptions, their tensors as bytes in an arena."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from harness.ipc.arena import Arena, aligned
from harness.ipc.errors import TooSmall, WireViolation
from harness.ipc.tensor_spec import DTYPE_NAMES, DTYPES, TensorSpec, tensor_type

MAX_DEPTH = 32
MAX_TENSORS = 100_000


class Encoder:
    """Writes values into an arena and describes them. Several values may share the arena.

    Args:
        arena: holds the bytes; None only adds them up.
        names: describe a NamedTuple with the names of its fields, else as a tuple.
    """

    def __init__(self, arena: Arena | None, *, names: bool = True) -> None:
        self._arena = arena
        self._names = names
        self._offset = 0
        self._copies: list[tuple[torch.Tensor, TensorSpec]] = []
        self.table: list[dict[str, Any]] = []

    def encode(self, value: Any, depth: int = 0) -> dict[str, Any]:
        """Return the description of value, and queue its tensors for finish()."""
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
            items = [self.encode(v, depth + 1) for v in value]
            if self._names and hasattr(value, "_fields"):
                return {"n": [kind.__name__, list(value._fields), items]}
            return {"u": items}
        # OrderedDict and other subclasses: what they hold counts.
        if isinstance(value, dict) and all(type(k) in (str, int, bool, type(None)) for k in value):
            return {"d": [[k, self.encode(v, depth + 1)] for k, v in value.items()]}
        if isinstance(value, torch.dtype):
            name = DTYPE_NAMES.get(value)
            return {"dtype": name} if name else {"x": str(value)}
        if isinstance(value, tensor_type):
            return self._tensor(value)
        return {"x": f"{kind.__module__}.{kind.__qualname__}"}

    def _tensor(self, tensor: torch.Tensor) -> dict[str, Any]:
        tensor = tensor.detach().resolve_conj().resolve_neg()
        spec = TensorSpec.of(tensor)
        if spec is None or tensor.device.type == "meta":
            where = f" on {tensor.device.type}" if tensor.device.type == "meta" else ""
            return {"x": f"{tensor.layout} tensor of {tensor.dtype}{where}"}
        self._copies.append((tensor, self._add(spec, spec.dense_bytes)))
        return {"t": len(self.table) - 1}

    def _add(self, spec: TensorSpec, nbytes: int) -> TensorSpec:
        """Give a tensor the next bytes of the arena; return its description with their offset."""
        placed = dataclasses.replace(spec, offset=self._offset, on_gpu=False)
        self.table.append(placed.to_json())
        self._offset += aligned(nbytes)
        return placed

    @property
    def needed_bytes(self) -> int:
        """Return the arena size that everything encoded so far needs."""
        return self._offset

    def finish(self) -> None:
        """Copy every queued tensor into the arena.

        Raises:
            TooSmall: the arena does not hold them; nothing was written.
        """
        if not self._offset:  # no tensor has elements
            self._copies.clear()
            return
        if self._arena is None or self._offset > self._arena.size_bytes:
            raise TooSmall(self._offset)
        flat = self._arena.flat()
        for tensor, spec in self._copies:
            if spec.elements:
                target = spec.dense(flat[spec.offset : spec.offset + spec.dense_bytes])
                target.copy_(tensor)  # also between devices: a host tensor of a GPU pair
        self._copies.clear()


class Decoder:
    """Reads values that an Encoder described. It checks the whole description.

    Args:
        arena: holds the bytes; None if no tensor has elements.
        table: the Encoder's table, as it arrived.
        private: copy the bytes before looking at them, so that the peer cannot change them later. A
            worker may read the judge's bytes in place, and make its types of named tuples.
    """

    def __init__(self, arena: Arena | None, table: Any, *, private: bool = True) -> None:
        self._arena = arena
        self._private = private
        if not isinstance(table, list) or len(table) > MAX_TENSORS:
            raise WireViolation("a table of tensors that is no list, or too long")
        self._table = table
        self._copied_bytes = 0

    def decode(self, description: Any, depth: int = 0) -> Any:
        """Return the described value, its tensors as private copies.

        Raises:
            WireViolation: no Encoder writes such a description.
        """
        if depth > MAX_DEPTH or not isinstance(description, dict) or len(description) != 1:
            raise WireViolation("a malformed description of a value")
        ((key, body),) = description.items()
        if key == "v" and _is_scalar(body):
            return body
        if key == "f" and body in ("nan", "inf", "-inf"):
            return float(body)
        if key in ("l", "u") and isinstance(body, list):
            items = [self.decode(v, depth + 1) for v in body]
            return items if key == "l" else tuple(items)
        if key == "n" and not self._private:
            name, fields, described = body
            named = _named_tuple(str(name), tuple(str(f) for f in fields))
            return named(*(self.decode(v, depth + 1) for v in described))
        if key == "d" and isinstance(body, list):
            pairs = [(p[0], p[1]) for p in body if isinstance(p, list) and len(p) == 2]
            keys_fit = all(_is_scalar(k) and not isinstance(k, float) for k, _ in pairs)
            if len(pairs) == len(body) and keys_fit:
                return {k: self.decode(v, depth + 1) for k, v in pairs}
        if key == "dtype" and isinstance(body, str) and body in DTYPES:
            return DTYPES[body]
        if key == "x" and isinstance(body, str):
            return Untransferable(body[:200].encode("utf-8", "replace").decode("utf-8"))
        if key == "t" and type(body) is int and 0 <= body < len(self._table):
            return self._tensor(self._table[body])
        raise WireViolation(f"a malformed description of a value of kind {key!r}")

    def _tensor(self, entry: Any) -> torch.Tensor:
        spec = TensorSpec.parse(entry)
        spec.check_inside(self._arena, spec.dense_bytes)
        if self._arena is None or not spec.elements:
            return torch.empty(spec.shape, dtype=spec.dtype)
        # An Encoder gives each tensor bytes of its own. Copies of the same bytes have no end.
        self._copied_bytes += spec.dense_bytes
        if self._private and self._copied_bytes > self._arena.size_bytes:
            raise WireViolation("tensors that share their bytes")
        raw = self._arena.flat()[spec.offset : spec.offset + spec.dense_bytes]
        if self._private:
            raw = raw.clone()
        if spec.dtype is torch.bool:
            # Bytes other than 0 and 1 in a bool tensor are undefined behaviour in its readers.
            raw = raw.ne(0)
        return restride(spec.dense(raw), spec.strides)


def _is_scalar(value: Any) -> bool:
    """Return whether a value is one that an Encoder writes as it is."""
    if type(value) is int:
        return -1 << 63 < value < 1 << 63
    return value is None or isinstance(value, (bool, float, str))


class Placer(Encoder):
    """Describes values whose tensors stay in the arena, where both processes use them.

    Args:
        arena: holds the tensors; None only adds up the bytes.
        offset: of the first tensor.

    Attributes:
        places: one tensor over the arena per tensor of the values, in their order.
    """

    def __init__(self, arena: Arena | None, offset: int = 0) -> None:
        super().__init__(arena)
        self._offset = offset
        self.places: list[torch.Tensor] = []

    def _tensor(self, tensor: torch.Tensor) -> dict[str, Any]:
        spec = TensorSpec.of(tensor)
        assert spec is not None, "the judge stages tensors that travel"
        # The judge writes resolved values there, so neither flag holds.
        plain = dataclasses.replace(spec, conjugate=False, negative=False)
        placed = self._add(plain, plain.span_bytes)
        if self._arena is not None:
            self.places.append(_in_place(self._arena, placed))
        return {"t": len(self.table) - 1}


class Placed(Decoder):
    """Reads the values of a Placer: tensors over the arena itself, with their strides."""

    def __init__(self, arena: Arena, table: Any) -> None:
        super().__init__(arena, table, private=False)

    def _tensor(self, entry: Any) -> torch.Tensor:
        assert self._arena is not None
        return _in_place(self._arena, TensorSpec.parse(entry))


def _in_place(arena: Arena, spec: TensorSpec) -> torch.Tensor:
    spec.check_inside(arena, spec.span_bytes)
    if not spec.elements:
        return torch.empty_strided(
            spec.shape, spec.strides, dtype=spec.dtype, device=arena.flat().device
        )
    return spec.over(arena.piece(spec.offset, spec.span_bytes))


@functools.cache
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    """Return a type like the problem's NamedTuple, which the solution's process does not have."""
    return collections.namedtuple(name, fields)  # noqa: PYI024 - made at run time


class Untransferable:
    """Stands for a value that cannot travel; keeps the name of its type."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def restride(tensor: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """Return tensor with the given strides if they describe a dense or expanded layout.

    Args:
        tensor: contiguous, any shape.
        strides: one per dimension, elements. For layouts with gaps or partial overlap the tensor
            stays contiguous: the reader does not allocate the gaps that a peer claims.
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
