"""The rights to build and to use a device, shared among threads and among processes.

A pair that is measured needs its device alone. On the CPU, builds have to pause meanwhile. The
right to a device is a lock on a file, so two evaluations in two terminals take turns, as two
threads do.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from pathlib import Path
from typing import Protocol


class Slot(Protocol):
    """A right. Its taker asks again and again until it gets the right, and can stop in between."""

    def try_take(self) -> bool:
        """Try to get the right, without waiting; return whether the taker has it."""

    def release(self) -> None:
        """Give back the right, or the place in the queue; does nothing where there is neither."""


class CountSlot:
    """One of a fixed number of rights within this process."""

    def __init__(self, semaphore: threading.BoundedSemaphore) -> None:
        self._semaphore = semaphore
        self._taken = False

    def try_take(self) -> bool:
        self._taken = self._taken or self._semaphore.acquire(blocking=False)
        return self._taken

    def release(self) -> None:
        if self._taken:
            self._taken = False
            self._semaphore.release()


class FileSlot:
    """The right to a device, shared or exclusive, by a lock on a file.

    A slot that wants the device exclusively first locks the queue file, and keeps it while it
    waits. No new sharer gets past it, so a steady stream of builds cannot starve a measurement.

    Args:
        name: the device: ``cpu`` or the identity of a GPU.
        shared: share the device with other sharers (builds).
        folder: where lock files stand; None is the default of this user.
    """

    def __init__(self, name: str, *, shared: bool, folder: Path | None = None) -> None:
        self._folder = _lock_folder() if folder is None else folder
        self._name = name
        self._kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        self._shared = shared
        self._queue: int | None = None
        self._device: int | None = None

    def try_take(self) -> bool:
        if self._device is not None:
            return True
        if self._queue is None:
            self._queue = self._lock("queue")
        if self._queue is None:
            return False
        self._device = self._lock("device")
        if self._device is not None or self._shared:
            self._leave_queue()
        return self._device is not None

    def release(self) -> None:
        self._leave_queue()
        if self._device is not None:
            os.close(self._device)  # which drops its lock
            self._device = None

    def _leave_queue(self) -> None:
        if self._queue is not None:
            os.close(self._queue)
            self._queue = None

    def _lock(self, what: str) -> int | None:
        """Return an open, locked file; None where another slot has the lock."""
        path = self._folder / f"{self._name}.{what}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, self._kind)
        except OSError:
            os.close(handle)
            return None
        return handle


class AllSlots:
    """Several rights, taken in order."""

    def __init__(self, *slots: Slot) -> None:
        self._slots = slots

    def try_take(self) -> bool:
        return all(slot.try_take() for slot in self._slots)

    def release(self) -> None:
        for slot in reversed(self._slots):
            slot.release()


def _lock_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"kernel-eval-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
