"""A file in which the verdicts of interrupted runs add up: one JSON object a line.

===========  ====================================================================================
first line   ``{"kernel_eval_resume": 1, "measurement_version": M, "environment": {...}}``
other lines  ``{"key": K, "verdict": V}``; a null key: this verdict is never taken instead of a run
===========  ====================================================================================

A line is written as soon as its pair has a verdict, and is on the disk before the next step. A line
without its end was cut off by a crash: it is ignored, and cut away before the next line is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.domain import (
    MEASUREMENT_VERSION,
    HarnessError,
    Run,
    Status,
    UsageError,
    Verdict,
    to_json,
    verdict_from_json,
)

RESUME_VERSION = 1
"""Version of the file's form. History: 1 first form."""

_HEAD = b'{"kernel_eval_resume": '
_NEW_FILE = "Next: name a new file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a resume file holds.

    Attributes:
        environment: of the run that began the file.
        measurement_version: of the clock that took the times.
        entries: key and verdict of each line, in order.
        whole_bytes: length of the file up to the end of its last whole line.
        ignored: numbers of the lines that hold no verdict, from 1.
    """

    environment: Mapping[str, Any]
    measurement_version: int
    entries: tuple[tuple[str | None, Verdict], ...]
    whole_bytes: int
    ignored: tuple[int, ...]


def is_resume(content: bytes) -> bool:
    """Return whether a file's content begins as a resume file does, cut off or not."""
    return content.startswith(_HEAD)


def parse(content: bytes) -> Recorded:
    """Return what the content of a resume file says.

    Raises:
        UsageError: it is no resume file, or one of another version.
    """
    whole, end, _ = content.rpartition(b"\n")
    lines = (whole + end).splitlines() if end else []
    header = _header(lines[0] if lines else b"")
    entries: list[tuple[str | None, Verdict]] = []
    ignored = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            plain = json.loads(line)
            if is_resume(line):  # two files were put together
                continue
            key, verdict = plain["key"], verdict_from_json(plain["verdict"])
            if key is not None and not isinstance(key, str):
                raise TypeError(f"the key is {key!r}")
        except (ValueError, TypeError, KeyError, HarnessError):
            ignored.append(number)
            continue
        entries.append((key, verdict))
    return Recorded(
        environment=header["environment"],
        measurement_version=header["measurement_version"],
        entries=tuple(entries),
        whole_bytes=len(whole + end),
        ignored=tuple(ignored),
    )


def _header(line: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(line)
        version = header["kernel_eval_resume"]
        if version != RESUME_VERSION:
            raise UsageError(
                f"is a resume file of version {version!r}, and this harness reads version "
                f"{RESUME_VERSION}. {_NEW_FILE}"
            )
        header["environment"] = dict(header["environment"])
        header["measurement_version"] = int(header["measurement_version"])
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"is not a resume file. {_NEW_FILE}") from None
    return header


def run_from_resume(content: bytes, source: str) -> Run:
    """Return the run that a resume file amounts to: the last verdict of each pair.

    Raises:
        UsageError: it is no resume file.
    """
    recorded = parse(content)
    last = {verdict.pair: verdict for _, verdict in recorded.entries}
    return Run(
        verdicts=tuple(last.values()),
        environment=recorded.environment,
        measurement_version=recorded.measurement_version,
        source=source,
    )


class ResumeFile:
    """A resume file that one run reads and adds to; used by several threads.

    Attributes:
        path: the file.
        reused: names of the pairs whose verdicts were taken from it.
        ignored: numbers of its lines that hold no verdict.
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
        """Return the verdict that stands under a key, and count its pair as reused."""
        found = self._verdicts.get(key) if key else None
        if found is not None:
            self.reused.append(found.pair)
        return found

    def append(self, key: str | None, verdict: Verdict) -> None:
        """Write a verdict to the disk; one that cannot be written is tried again with the next.

        Args:
            key: of what was evaluated; None where the verdict must not be taken again.
            verdict: what came of it.
        """
        line = {"key": key if reusable(verdict) else None, "verdict": to_json(verdict)}
        with self._mutex:
            self._unsaved.append(_line(line))
            self._save()

    def problem(self) -> str:
        """Try once more to write what is not on the disk; return why it is not, or nothing."""
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
    """Return whether a verdict may stand for a later evaluation of the same pair.

    A fault of the harness may be gone the next time, and so may the want of memory, of a compiler
    or of a device for which a pair was skipped.
    """
    return verdict.status not in (Status.HARNESS_ERROR, Status.SKIPPED)


@contextlib.contextmanager
def open_resume(path: Path, environment: Mapping[str, Any]) -> Iterator[ResumeFile]:
    """Open a resume file for one run, which has it alone until then; begin it where it is new.

    Args:
        path: the file.
        environment: of this run; written where the file is new.

    Raises:
        UsageError: it cannot be written, another run writes to it, or it is no resume file.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except IsADirectoryError:
        raise UsageError(f"--resume {path}: is a folder. {_NEW_FILE}") from None
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
            raise UsageError(f"is no plain file. {_NEW_FILE}")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = _read(handle)
        if b"\n" not in content and (is_resume(content) or _HEAD.startswith(content)):
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
            f"{MEASUREMENT_VERSION}: they are not compared. {_NEW_FILE}"
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
