"""Reads the output of a process, so that a flood neither blocks it nor fills the disk."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_LOG_HEAD_BYTES = 256 << 10
_LOG_TAIL_BYTES = 64 << 10


class Drain(threading.Thread):
    """Reads a pipe to its end, and logs only the head and the tail."""

    def __init__(self, pipe: BinaryIO, log: Path, title: str) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._log = log
        self._title = title
        self._dropped = 0
        self._tail = bytearray()

    def note(self, lines: Iterable[str]) -> None:
        """Append lines of the judge's own to the log, where there is room for them."""
        text = "".join(f"--- {self._title}: {line}\n" for line in lines)
        if text:
            with contextlib.suppress(OSError), self._log.open("ab") as out:
                out.write(text.encode("utf-8", "replace"))

    def run(self) -> None:
        kept = 0
        with self._log.open("ab", buffering=0) as out:
            while chunk := os.read(self._pipe.fileno(), 1 << 16):
                if kept == 0:
                    out.write(f"--- {self._title}\n".encode())
                room = max(_LOG_HEAD_BYTES - kept, 0)
                out.write(chunk[:room])
                kept += len(chunk)
                self._tail += chunk[room:]
                if len(self._tail) > _LOG_TAIL_BYTES:
                    self._dropped += len(self._tail) - _LOG_TAIL_BYTES
                    del self._tail[:-_LOG_TAIL_BYTES]
            if self._dropped:
                out.write(f"\n... {self._dropped} bytes left out ...\n".encode())
            out.write(self._tail)
        self._pipe.close()
