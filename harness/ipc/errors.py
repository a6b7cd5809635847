"""What can go wrong on the wire."""

from __future__ import annotations


class WireClosed(Exception):
    """The peer closed its end: it died or left."""


class WireTimeout(Exception):
    """No complete message arrived in time."""


class WireViolation(Exception):
    """The peer sent what the protocol does not allow."""


class TooSmall(Exception):
    """The arena cannot take the value; carries the bytes that would be needed."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(f"needs {needed_bytes} bytes")
        self.needed_bytes = needed_bytes
