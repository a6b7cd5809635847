"""The description of a tensor whose bytes another process reads, and its check."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from harness.ipc.arena import ALIGN, Arena
from harness.ipc.errors import WireViolation

_MOST_DIMENSIONS = 64
_MOST_BYTES = 1 << 46
"""No machine has as much memory."""
_MOST_NUMBER = 1 << 56
"""Of a size or a stride. Dimensions with one element or none can have strides beyond any memory."""

# Taken once: a candidate that patches torch later does not change the wire.
tensor_type = torch.Tensor

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor without its memory.

    Attributes:
        dtype: element type.
        shape, strides: per dimension, in elements.
        offset: where the tensor begins in an arena, bytes. 0 for a tensor at an address.
        on_gpu: whether its memory is that of a GPU.
        conjugate, negative: whether its elements are those in memory, conjugated or negated.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    on_gpu: bool = False
    conjugate: bool = False
    negative: bool = False

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec | None:
        """Return the description of a tensor; None if its layout or element type cannot travel."""
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPE_NAMES:
            return None
        return cls(
            dtype=tensor.dtype,
            shape=tuple(tensor.shape),
            strides=tensor.stride(),
            on_gpu=tensor.is_cuda,
            conjugate=tensor.is_conj(),
            negative=tensor.is_neg(),
        )

    @classmethod
    def parse(cls, said: Any) -> TensorSpec:
        """Return the tensor that the other process describes.

        Raises:
            WireViolation: no tensor can have this description.
        """
        if not isinstance(said, dict):
            raise WireViolation("a description of a tensor that is not an object")
        name, shape, strides = said.get("dtype"), said.get("shape"), said.get("strides")
        offset = said.get("offset", 0)
        if not isinstance(name, str) or name not in DTYPES:
            raise WireViolation("a tensor of unknown dtype")
        if not (isinstance(shape, list) and isinstance(strides, list)):
            raise WireViolation("a tensor without shape or strides")
        numbers = [*shape, *strides, offset]
        if any(type(n) is not int or not 0 <= n < _MOST_NUMBER for n in numbers):
            raise WireViolation("a tensor with impossible sizes, strides or offset")
        if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS or offset % ALIGN:
            raise WireViolation("a tensor with malformed sizes, strides or offset")
        spec = cls(
            dtype=DTYPES[name],
            shape=tuple(shape),
            strides=tuple(strides),
            offset=offset,
            on_gpu=said.get("on_gpu") is True,
            conjugate=said.get("conjugate") is True,
            negative=said.get("negative") is True,
        )
        largest = max(spec.elements, spec.span_bytes)
        # torch refuses an empty tensor, too, if the product of its other sizes is too large.
        if largest > _MOST_BYTES or math.prod(max(n, 1) for n in shape) > _MOST_NUMBER:
            raise WireViolation("a tensor larger than any memory")
        floating = spec.dtype.is_floating_point or spec.dtype.is_complex
        if (spec.conjugate and not spec.dtype.is_complex) or (spec.negative and not floating):
            raise WireViolation(f"conjugated or negated elements of {spec.dtype}")
        return spec

    def to_json(self) -> dict[str, Any]:
        """Return the description as parse() reads it."""
        said: dict[str, Any] = {
            "dtype": DTYPE_NAMES[self.dtype],
            "shape": list(self.shape),
            "strides": list(self.strides),
            "offset": self.offset,
        }
        flags = {"on_gpu": self.on_gpu, "conjugate": self.conjugate, "negative": self.negative}
        return said | {flag: True for flag, holds in flags.items() if holds}

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Return the bytes of its elements without gaps."""
        return self.elements * self.dtype.itemsize

    @property
    def span_bytes(self) -> int:
        """Return the bytes from its first element to its last, as its strides spread them."""
        if not self.elements:
            return 0
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize

    def check_inside(self, arena: Arena | None, nbytes: int) -> None:
        """Check that the ``nbytes`` from the tensor's offset on lie in the arena.

        Raises:
            WireViolation: they do not.
        """
        if nbytes and (arena is None or self.offset + nbytes > arena.size_bytes):
            raise WireViolation("a tensor outside the arena")

    def dense(self, memory: torch.Tensor) -> torch.Tensor:
        """Return the tensor over flat bytes without gaps; the strides do not matter."""
        return memory.view(self.dtype).view(self.shape)

    def over(self, memory: torch.Tensor) -> torch.Tensor:
        """Return the tensor over flat bytes that begin at its first element."""
        tensor = memory.view(self.dtype).as_strided(self.shape, self.strides)
        if self.conjugate:
            tensor = tensor.conj()
        return torch._neg_view(tensor) if self.negative else tensor


def address(value: Any) -> int:
    """Return the address of a tensor's first element; 0 for a value that is no strided tensor."""
    if not isinstance(value, tensor_type) or value.layout is not torch.strided:
        return 0
    return value.data_ptr()


def described(tensor: torch.Tensor | None) -> dict[str, Any] | None:
    """Return the JSON description of a tensor at an address; None if it has none."""
    spec = None if tensor is None else TensorSpec.of(tensor)
    return None if spec is None else spec.to_json()


def form(said: Any) -> TensorSpec | None:
    """Return the tensor at an address that a worker describes; None for a tensor without one.

    Raises:
        WireViolation: no tensor can have this description.
    """
    return None if said is None else TensorSpec.parse(said)
