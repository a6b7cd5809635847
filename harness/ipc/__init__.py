"""The wire between the judge and a worker: length-prefixed JSON, and raw tensor bytes beside it.

Nothing that arrives is ever unpickled or executed. A message is one JSON object of limited size.
Tensor bytes lie in an *arena*, memory that the judge allocates and shares: a sealed memfd for CPU
tensors (a peer cannot shrink it under the reader), a CUDA allocation of its own for GPU tensors.
A message describes each tensor by a ``TensorSpec``: dtype, shape, strides and offset. The judge
checks a description against the arena before it reads a byte, and copies the bytes before it looks
at them.

Values travel as objects with one key, so that no user value can be taken for a description:
``{"v": scalar}``, ``{"f": "nan"}``, ``{"l": [...]}``, ``{"u": [...]}`` (tuple),
``{"d": [[key, value], ...]}``, ``{"t": index}`` (tensor), ``{"dtype": name}``,
``{"x": type name}`` for anything that cannot travel.
"""

from __future__ import annotations

from harness.ipc.arena import Arena, HostArena, aligned
from harness.ipc.channel import Channel
from harness.ipc.errors import TooSmall, WireClosed, WireTimeout, WireViolation
from harness.ipc.tensor_spec import DTYPES, TensorSpec, address, described, form
from harness.ipc.values import (
    Decoder,
    Encoder,
    Placed,
    Placer,
    Untransferable,
)

Form = TensorSpec
"""The name of a TensorSpec at an address, in the judge."""

__all__ = [
    "DTYPES",
    "Arena",
    "Channel",
    "Decoder",
    "Encoder",
    "Form",
    "HostArena",
    "Placed",
    "Placer",
    "TensorSpec",
    "TooSmall",
    "Untransferable",
    "WireClosed",
    "WireTimeout",
    "WireViolation",
    "address",
    "aligned",
    "described",
    "form",
]
