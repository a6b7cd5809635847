"""The judge's end of the wire: bounded memory, bounded waits, no descriptors that nobody wants."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import ipc

Ends = tuple[ipc.Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    channel = ipc.Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def send(theirs: socket.socket, data: bytes) -> None:
    threading.Thread(target=theirs.sendall, args=(data,), daemon=True).start()


def test_descriptors_are_taken_only_while_they_are_wanted(ends: Ends) -> None:
    channel, theirs = ends
    socket.send_fds(theirs, [frame(b"{}")], [0])
    assert channel.receive(time.monotonic() + 5) == {}
    for fd in channel.take_fds():
        os.close(fd)
    channel.refuse_fds()
    before = open_descriptors()
    socket.send_fds(theirs, [frame(b"{}")], [0] * 200)
    with pytest.raises(ipc.WireViolation, match="descriptors"):
        channel.receive(time.monotonic() + 5)
    assert open_descriptors() == before


def test_more_descriptors_than_a_message_has_are_refused_and_closed(ends: Ends) -> None:
    channel, theirs = ends
    before = open_descriptors()
    socket.send_fds(theirs, [frame(b"{}")], [0] * 200)
    with pytest.raises(ipc.WireViolation, match="descriptors"):
        channel.receive(time.monotonic() + 5)
    channel.close()
    assert open_descriptors() <= before


def test_a_peer_that_does_not_read_is_given_up(ends: Ends) -> None:
    channel, _ = ends
    began = time.monotonic()
    with pytest.raises(ipc.WireTimeout):
        channel.send({"text": "x" * (4 << 20)}, deadline=began + 0.2)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[' + b"{}," * (5 << 20) + b"{}]}",
        b'{"a":[' + b"[]," * (5 << 20) + b"[]]}",
        b'{"a":[' + b"1," * (7 << 20) + b"1]}",
        b"[" * (15 << 20),
        b'{"a":' * (2 << 20),
    ],
    ids=["objects", "lists", "numbers", "nested lists", "nested objects"],
)
def test_a_message_that_grows_when_it_is_read_is_refused(body: bytes, ends: Ends) -> None:
    channel, theirs = ends
    send(theirs, frame(body))
    tracemalloc.start()
    try:
        with pytest.raises(ipc.WireViolation, match="too many parts"):
            channel.receive(time.monotonic() + 30)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_hundred_thousand_tensors_are_described_in_one_message(ends: Ends) -> None:
    channel, theirs = ends
    one = {"dtype": "float32", "shape": [4], "strides": [1], "offset": 0}
    message = {"values": {"output": {"l": [{"t": 0}] * 100_000}}, "table": [one] * 100_000}
    send(theirs, frame(json.dumps(message).encode()))
    assert len(channel.receive(time.monotonic() + 30)["table"]) == 100_000


def test_tensors_cannot_share_their_bytes() -> None:
    """A hundred thousand copies of one tensor would fill the judge's memory."""
    arena = ipc.HostArena.create(1 << 12)
    one = {"dtype": "uint8", "shape": [3000], "strides": [1], "offset": 0}
    decoder = ipc.Decoder(arena, [one] * 9)
    assert decoder.decode({"t": 0}).numel() == 3000
    with pytest.raises(ipc.WireViolation, match="share"):
        decoder.decode({"l": [{"t": 0}] * 100_000})
    arena.close()


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63), 10**4000])
def test_numbers_beyond_64_bits_are_refused(value: int) -> None:
    for said in ({"v": value}, {"d": [[value, {"v": 1}]]}):
        with pytest.raises(ipc.WireViolation):
            ipc.Decoder(None, []).decode(said)
