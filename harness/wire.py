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

import array
import fcntl
import json
import math
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from harness.domain import HarnessError

MAX_MESSAGE_BYTES = 16 << 20
MAX_DEPTH = 32
MAX_TENSORS = 100_000
_HEADER = struct.Struct("<I")
_ALIGN = 512

# Taken once, so that a candidate which patches these modules later does not reach the wire.
_dumps = json.dumps
_loads = json.loads
_tensor_type = torch.Tensor


class WireClosed(Exception):
    """The peer closed its end: it died or left."""


class WireTimeout(Exception):
    """No complete message arrived in time."""


class WireViolation(Exception):
    """The peer sent what the protocol does not allow."""


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
_DTYPE_NAMES = {d: n for n, d in DTYPES.items()}


class Channel:
    """One end of a stream socket that carries JSON messages and file descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._buffer = bytearray()
        self._fds: list[int] = []

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end and every descriptor that was received but not taken."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._sock.close()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message, with file descriptors attached to its first byte.

        Raises:
            WireClosed: the peer is gone.
        """
        body = _dumps(message).encode()
        if len(body) > MAX_MESSAGE_BYTES:
            raise WireViolation(f"message of {len(body)} bytes exceeds {MAX_MESSAGE_BYTES}")
        data = memoryview(_HEADER.pack(len(body)) + body)
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]
        try:
            while data:
                select.select([], [self._sock], [])
                try:
                    sent = self._sock.sendmsg([data], ancillary)
                except BlockingIOError:
                    continue
                ancillary = []
                data = data[sent:]
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WireClosed("peer is gone") from error

    def receive(
        self, deadline: float | None = None, watch: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Return the next message.

        Args:
            deadline: time.monotonic() after which to give up; None waits for ever.
            watch: called every 50 ms while waiting; what it raises ends the wait.

        Raises:
            WireClosed, WireTimeout, WireViolation.
        """
        while True:
            message = self._take()
            if message is not None:
                return message
            wait = None if deadline is None else deadline - time.monotonic()
            if wait is not None and wait <= 0:
                raise WireTimeout("no answer in time")
            if watch is not None:
                watch()
                wait = 0.05 if wait is None else min(wait, 0.05)
            ready, _, _ = select.select([self._sock], [], [], wait)
            if ready:
                self._fill()

    def pending(self) -> bool:
        """Return whether bytes wait that no request asked for."""
        return bool(self._buffer) or bool(select.select([self._sock], [], [], 0)[0])

    def take_fds(self) -> list[int]:
        """Return the file descriptors received so far; the caller owns them."""
        fds, self._fds = self._fds, []
        return fds

    def _fill(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(1 << 20, socket.CMSG_SPACE(16 * 4))
        except BlockingIOError:
            return
        except ConnectionResetError as error:
            raise WireClosed("peer is gone") from error
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
        if not data:
            raise WireClosed("peer closed its end")
        self._buffer += data

    def _take(self) -> dict[str, Any] | None:
        if len(self._buffer) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._buffer)
        if size > MAX_MESSAGE_BYTES:
            raise WireViolation(f"announced a message of {size} bytes")
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        try:
            message = _loads(body)
        except (ValueError, RecursionError) as error:
            raise WireViolation("sent bytes that are not JSON") from error
        if not isinstance(message, dict):
            raise WireViolation("sent JSON that is not an object")
        return message


class Arena(Protocol):
    """Shared bytes that both ends can address as one flat uint8 tensor."""

    size_bytes: int

    def flat(self) -> torch.Tensor:
        """Return all bytes as a uint8 tensor that shares the arena's memory."""

    def piece(self, offset: int, nbytes: int) -> torch.Tensor:
        """Return some bytes as a uint8 tensor with a storage of its own over them."""


class HostArena:
    """A sealed memfd, mapped shared."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self._map = mmap.mmap(fd, max(size_bytes, mmap.PAGESIZE))
        self._flat = torch.frombuffer(self._map, dtype=torch.uint8)

    @classmethod
    def create(cls, size_bytes: int) -> HostArena:
        """Create an arena of at least size_bytes that no peer can resize.

        Raises:
            HarnessError: the machine has no memory for it.
        """
        size_bytes = max(-(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.PAGESIZE)
        fd = os.memfd_create("arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(
                fd,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
            )
            return cls(fd, size_bytes)
        except OSError as error:
            os.close(fd)
            raise HarnessError(f"no shared memory of {size_bytes} bytes: {error}") from error

    def flat(self) -> torch.Tensor:
        """Return all bytes as a uint8 tensor that shares the arena's memory."""
        return self._flat

    def piece(self, offset: int, nbytes: int) -> torch.Tensor:
        """Return some bytes as a uint8 tensor with a storage of its own over them."""
        return torch.frombuffer(self._map, dtype=torch.uint8, offset=offset, count=nbytes)

    def close(self) -> None:
        """Close the descriptor; the mapping goes when the last tensor over it goes."""
        os.close(self.fd)


def aligned(nbytes: int) -> int:
    """Return nbytes rounded up to the alignment of tensors in an arena."""
    return -(-nbytes // _ALIGN) * _ALIGN


class TooSmall(Exception):
    """The arena cannot take the value; carries the bytes that would be needed."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(f"needs {needed_bytes} bytes")
        self.needed_bytes = needed_bytes


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
            name = _DTYPE_NAMES.get(value)
            return {"dtype": name} if name else {"x": str(value)}
        if isinstance(value, _tensor_type):
            return self._tensor(value)
        return {"x": f"{kind.__module__}.{kind.__qualname__}"}

    def _tensor(self, tensor: torch.Tensor) -> dict[str, Any]:
        tensor = tensor.detach()
        name = _DTYPE_NAMES.get(tensor.dtype)
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
        if not self._copies:
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
        shape, strides, offset, nbytes, dtype = _checked_entry(entry)
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


def _checked_entry(entry: Any) -> tuple[list[int], list[int], int, int, torch.dtype]:
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
    if offset % _ALIGN:
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
            "dtype": _DTYPE_NAMES[tensor.dtype],
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
    shape, strides, offset, nbytes, dtype = _checked_entry(entry)
    if nbytes != _span(shape, strides) * dtype.itemsize or offset + nbytes > arena.size_bytes:
        raise WireViolation("a placed tensor does not fit its place")
    if not nbytes:
        return torch.empty(shape, dtype=dtype, device=arena.flat().device)
    return arena.piece(offset, nbytes).view(dtype).as_strided(shape, strides)
