"""One end of a stream socket: length-prefixed JSON messages and file descriptors."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.ipc.errors import WireClosed, WireTimeout, WireViolation

MAX_MESSAGE_BYTES = 16 << 20
_MOST_CONTAINERS, _MOST_COMMAS = 500_000, 2_000_000
"""In one message. A description of 100,000 tensors has four containers each. An empty object takes
three bytes of JSON and 64 of memory: the judge's memory is bounded by these numbers."""
_MOST_FDS = 16
"""Sent with one message."""
_HEADER = struct.Struct("<I")

# Taken once: a candidate that patches json later does not change the wire.
_dumps = json.dumps
_loads = json.loads


class Channel:
    """One end of a stream socket that carries JSON messages and file descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._takes_fds = True

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end and every descriptor that was received but not taken."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._sock.close()

    def refuse_fds(self) -> None:
        """Take no more descriptors: the kernel closes those that come, and they are a violation."""
        self._takes_fds = False

    def send(
        self, message: dict[str, Any], fds: Sequence[int] = (), deadline: float | None = None
    ) -> None:
        """Send one message, with file descriptors attached to its first byte.

        Args:
            message: what is sent.
            fds: stay the caller's.
            deadline: time.monotonic() after which to give up a peer that does not read; None waits
                for ever.

        Raises:
            WireClosed: the peer is gone.
            WireTimeout: it does not read.
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
                wait = None if deadline is None else deadline - time.monotonic()
                if wait is not None and wait <= 0:
                    raise WireTimeout("the peer does not read")
                if not select.select([], [self._sock], [], wait)[1]:
                    continue
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
            watch: called every 50 ms of the wait; its exception ends the wait.

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
        """Return whether bytes have arrived that no request asked for."""
        return bool(self._buffer) or bool(select.select([self._sock], [], [], 0)[0])

    def has_ended(self) -> bool:
        """Return whether the peer has closed its end and no message is left."""
        if self._buffer:
            return False
        try:
            return not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def take_fds(self) -> list[int]:
        """Return the file descriptors received so far; the caller owns them."""
        fds, self._fds = self._fds, []
        return fds

    def _fill(self) -> None:
        try:
            room = socket.CMSG_SPACE(_MOST_FDS * 4) if self._takes_fds else 0
            data, ancillary, flags, _ = self._sock.recvmsg(1 << 20, room)
        except BlockingIOError:
            return
        except ConnectionResetError as error:
            raise WireClosed("peer is gone") from error
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > _MOST_FDS:
            raise WireViolation("sent descriptors that nothing asked for")
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
        if (
            body.count(b"{") + body.count(b"[") > _MOST_CONTAINERS
            or body.count(b",") > _MOST_COMMAS
        ):
            raise WireViolation("sent a message of too many parts")
        try:
            message = _loads(body)
        except (ValueError, RecursionError) as error:
            raise WireViolation("sent bytes that are not JSON") from error
        if not isinstance(message, dict):
            raise WireViolation("sent JSON that is not an object")
        return message
