"""Writes a resume file, one line a verdict; ``harness.domain.resume_form`` reads the form.

The fleet writes a line as soon as its pair has a verdict, and syncs it to the disk. A last line
without an end was cut off by a crash: the reader ignores it, and the next write removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.domain import (
    MEASUREMENT_VERSION,
    Status,
    UsageError,
    Verdict,
    to_json,
)
from harness.domain.resume_form import (
    NEW_RESUME_FILE,
    RESUME_HEAD,
    RESUME_VERSION,
    Recorded,
    is_resume,
    parse,
)


class ResumeFile:
    """A resume file that one run reads and appends to; several threads may use it.

    Attributes:
        path: the file.
        reused: names of the pairs whose verdicts the run took from the file.
        ignored: numbers of the lines that hold no verdict.
    """

    def __init__(self, path: Path, handle: int, recorded: Recorded, cut: int | None) -> None:
        self.path = path
        self.reused: list[str] = []
        self.ignored = recorded.ignored
        self._handle = handle
        self._cut = cut
        self._verdicts = {
            key: verdict for key, verdict in recorded.entries if key and reusable(verdict)
        }
        self._unsaved: list[bytes] = []
        self._mutex = threading.Lock()
        self._why = ""

    def verdict_of(self, key: str | None) -> Verdict | None:
        """Return the verdict with a key, and count its pair as reused."""
        found = self._verdicts.get(key) if key else None
        if found is not None:
            self.reused.append(found.pair)
        return found

    def append(self, key: str | None, verdict: Verdict) -> None:
        """Write a verdict to the disk. If that fails, the next call tries again.

        Args:
            key: of the pair; None where no later run may reuse the verdict.
            verdict: of the pair.
        """
        line = {"key": key if reusable(verdict) else None, "verdict": to_json(verdict)}
        with self._mutex:
            self._unsaved.append(_line(line))
            self._save()

    def problem(self) -> str:
        """Try once more to write the rest; return why that fails, or an empty string."""
        with self._mutex:
            self._save()
            if not self._unsaved:
                return ""
            return (
                f"--resume {self.path}: {len(self._unsaved)} verdicts could not be written "
                f"({self._why}); they are in this run's table and --json. "
                "Next: make room, and run again: those pairs will be evaluated again"
            )

    def _save(self) -> None:
        while self._unsaved:
            try:
                if self._cut is not None:
                    os.ftruncate(self._handle, self._cut)
                    self._cut = None
                size = os.fstat(self._handle).st_size
                try:
                    _write(self._handle, self._unsaved[0])
                except OSError:
                    self._cut = size
                    raise
            except OSError as error:
                self._why = error.strerror or repr(error)
                return
            del self._unsaved[0]


def reusable(verdict: Verdict) -> bool:
    """Return whether a later run may take a verdict instead of an evaluation of the same pair.

    A fault of the harness may be gone by then. A pair that was skipped for lack of memory, of a
    compiler or of a device may have it by then.
    """
    return verdict.status not in (Status.HARNESS_ERROR, Status.SKIPPED)


@contextlib.contextmanager
def open_resume(path: Path, environment: Mapping[str, Any]) -> Iterator[ResumeFile]:
    """Open a resume file, locked for one run; begin a new file where there is none.

    Args:
        path: the file.
        environment: of this run; goes into a new file.

    Raises:
        UsageError: it cannot be written, another run writes to it, or it is no resume file.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except IsADirectoryError:
        raise UsageError(f"--resume {path}: is a folder. {NEW_RESUME_FILE}") from None
    except FileNotFoundError:
        folder = path.absolute().parent
        raise UsageError(f"--resume {path}: no such folder as {folder}") from None
    except OSError as error:
        raise UsageError(f"--resume {path}: cannot be written: {error.strerror}") from error
    try:
        yield _opened(path, handle, environment)
    finally:
        os.close(handle)  # which drops its lock


def _opened(path: Path, handle: int, environment: Mapping[str, Any]) -> ResumeFile:
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UsageError(f"is no plain file. {NEW_RESUME_FILE}")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = _read(handle)
        if b"\n" not in content and (is_resume(content) or RESUME_HEAD.startswith(content)):
            header = {
                "kernel_eval_resume": RESUME_VERSION,
                "measurement_version": MEASUREMENT_VERSION,
                "environment": dict(environment),
            }
            os.ftruncate(handle, 0)  # nothing, or the beginning of a header that was cut off
            content = _line(header)
            _write(handle, content)
        recorded = parse(content)
    except UsageError as error:
        raise UsageError(f"--resume {path}: {error}") from None
    except BlockingIOError:
        raise UsageError(
            f"--resume {path}: another run is writing to it. "
            "Next: wait until that run has ended, or name another file"
        ) from None
    except OSError as error:
        raise UsageError(f"--resume {path}: cannot be written: {error.strerror}") from error
    if recorded.measurement_version != MEASUREMENT_VERSION:
        raise UsageError(
            f"--resume {path}: holds times of measurement version "
            f"{recorded.measurement_version}, and this harness takes version "
            f"{MEASUREMENT_VERSION}: they are not compared. {NEW_RESUME_FILE}"
        )
    cut = recorded.whole_bytes if recorded.whole_bytes < len(content) else None
    return ResumeFile(path, handle, recorded, cut)


def _line(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, allow_nan=False, default=str).encode() + b"\n"


def _read(handle: int) -> bytes:
    parts = []
    while part := os.read(handle, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _write(handle: int, content: bytes) -> None:
    """Write all of it, and wait until it is on the disk."""
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]
    os.fsync(handle)
