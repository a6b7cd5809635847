"""The wire between the judge and a worker: length-prefixed JSON, and raw tensor bytes beside it.

Nothing that arrives is ever unpickled or executed. A message is one JSON object of limited size.
Tensor bytes lie in an *arena*, memory that the judge allocates and shares: a sealed memfd for CPU
tensors (a peer cannot shrink it under the reader), a CUDA allocation of its own for GPU tensors.
A message describes tensors in the arena by dtype, shape, strides and offset; every description
that comes from a worker is checked against the arena before a byte is read, and the bytes are
copied out before they are looked at.

Values are encoded as one-key objects, so that no user value can be taken for a description:
``{"v": scalar}``, ``{"f": "nan"}``, ``{"l": [...]}``, ``{"u": [...]}`` (tuple),
``{"d": [[key, value], ...]}``, ``{"t": index}`` (tensor), ``{"dtype": name}``,
``{"x": type name}`` for anything that cannot travel.
"""

from __future__ import annotations

from harness.ipc.arena import Arena, HostArena, aligned
from harness.ipc.channel import MAX_MESSAGE_BYTES, Channel
from harness.ipc.errors import TooSmall, WireClosed, WireTimeout, WireViolation
from harness.ipc.places import Placed, Placer
from harness.ipc.values import (
    DTYPES,
    MAX_DEPTH,
    MAX_TENSORS,
    Decoder,
    Encoder,
    Untransferable,
    restride,
)
from harness.ipc.views import Form, address, described, form

__all__ = [
    "DTYPES",
    "MAX_DEPTH",
    "MAX_MESSAGE_BYTES",
    "MAX_TENSORS",
    "Arena",
    "Channel",
    "Decoder",
    "Encoder",
    "Form",
    "HostArena",
    "Placed",
    "Placer",
    "TooSmall",
    "Untransferable",
    "WireClosed",
    "WireTimeout",
    "WireViolation",
    "address",
    "aligned",
    "described",
    "form",
    "restride",
]
