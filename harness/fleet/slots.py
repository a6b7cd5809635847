"""Who may build and who may have a device, among threads and among processes.

Measuring needs a device alone, and on the CPU it needs builds to pause. The right to a device is
a lock on a file, so that two evaluations started in two terminals respect each other as two
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
    """A right that is asked for until it is had, so that its taker can also watch for the end."""

    def try_take(self) -> bool:
        """Return whether the right is had now; never waits."""

    def release(self) -> None:
        """Give the right back, or the place in the queue; harmless where neither is had."""


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

    Whoever wants it exclusively first takes the queue file and keeps it while waiting: no new
    sharer gets past it, so a steady stream of builds cannot starve a measurement.

    Args:
        name: the device: ``cpu`` or the identity of a GPU.
        shared: share it with other sharers (builds) instead of having it alone.
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
        """Return an open, locked file, or None where somebody else has it."""
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
