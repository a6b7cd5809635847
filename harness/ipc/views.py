"""Tensors where they lie: an address and a form, to read memory without its owner's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.ipc.errors import WireViolation
from harness.ipc.values import DTYPE_NAMES, DTYPES

_MOST_DIMENSIONS = 32
_MOST_BYTES = 1 << 46


@dataclass(frozen=True, slots=True)
class Form:
    """All of a tensor but its memory.

    Attributes:
        dtype: element type.
        shape, strides: in elements.
        on_gpu: where its memory is.
        conjugate, negative: its elements are those in memory, conjugated or negated.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    on_gpu: bool
    conjugate: bool
    negative: bool

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def span_bytes(self) -> int:
        """Return the bytes from its first element to its last."""
        if not self.elements:
            return 0
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize

    def over(self, memory: torch.Tensor) -> torch.Tensor:
        """Return the tensor over flat bytes that begin at its address."""
        tensor = memory.view(self.dtype).as_strided(self.shape, self.strides)
        if self.conjugate:
            tensor = tensor.conj()
        return torch._neg_view(tensor) if self.negative else tensor


def address(value: Any) -> int:
    """Return where a tensor's first element lies; 0 for what is no tensor with strides."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return 0
    return value.data_ptr()


def described(tensor: torch.Tensor | None) -> dict[str, Any] | None:
    """Return a tensor's form as JSON; None for what has no address."""
    if tensor is None or tensor.layout is not torch.strided or tensor.dtype not in DTYPE_NAMES:
        return None
    return {
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
        "on_gpu": tensor.is_cuda,
        "conjugate": tensor.is_conj(),
        "negative": tensor.is_neg(),
    }


def form(said: Any) -> Form | None:
    """Return the form that a worker describes.

    Raises:
        WireViolation: that is no form of a tensor.
    """
    if said is None:
        return None
    try:
        shape, strides = tuple(said["shape"]), tuple(said["strides"])
        numbers = [*shape, *strides]
        if (
            any(type(n) is not int or not 0 <= n < _MOST_BYTES for n in numbers)
            or len(shape) != len(strides)
            or len(shape) > _MOST_DIMENSIONS
        ):
            raise WireViolation("a tensor with malformed sizes")
        flags = [said[name] is True for name in ("on_gpu", "conjugate", "negative")]
        found = Form(DTYPES[said["dtype"]], shape, strides, *flags)
        floating = found.dtype.is_floating_point or found.dtype.is_complex
        if (found.conjugate and not found.dtype.is_complex) or (found.negative and not floating):
            raise WireViolation(f"conjugated or negated elements of {found.dtype}")
    except (KeyError, TypeError) as error:
        raise WireViolation(f"a malformed description of a tensor: {error!r}") from None
    if found.span_bytes > _MOST_BYTES or found.elements > _MOST_BYTES:
        raise WireViolation("a tensor larger than any memory")
    return found
