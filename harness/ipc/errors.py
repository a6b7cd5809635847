"""Errors of the wire."""

from __future__ import annotations


class WireClosed(Exception):
    """The peer closed its end, or died."""


class WireTimeout(Exception):
    """No complete message arrived in time."""


class WireViolation(Exception):
    """The peer sent a message that the protocol does not allow."""


class TooSmall(Exception):
    """The arena is too small for the value; ``needed_bytes`` is the size that it needs."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(f"needs {needed_bytes} bytes")
        self.needed_bytes = needed_bytes
