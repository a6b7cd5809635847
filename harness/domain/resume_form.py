"""The form of a resume file, which collects the verdicts of interrupted runs; its reader.

===========  ====================================================================================
first line   ``{"kernel_eval_resume": 1, "measurement_version": M, "environment": {...}}``
other lines  ``{"key": K, "verdict": V}``; with a null key: no later run may reuse this verdict
===========  ====================================================================================

A last line without an end was cut off by a crash: the reader ignores it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.domain.plain import verdict_from_json
from harness.domain.records import Run, Verdict
from harness.domain.statuses import HarnessError, UsageError

RESUME_VERSION = 1
"""Version of the file's form. History: 1 first form."""

RESUME_HEAD = b'{"kernel_eval_resume": '
NEW_RESUME_FILE = "Next: name a new file"


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
    """Return whether a file's content begins like a resume file, cut off or not."""
    return content.startswith(RESUME_HEAD)


def parse(content: bytes) -> Recorded:
    """Return what the content of a resume file says.

    Raises:
        UsageError: the file is no resume file, or has another version.
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
                f"{RESUME_VERSION}. {NEW_RESUME_FILE}"
            )
        header["environment"] = dict(header["environment"])
        header["measurement_version"] = int(header["measurement_version"])
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"is not a resume file. {NEW_RESUME_FILE}") from None
    return header


def run_from_resume(content: bytes, source: str) -> Run:
    """Return a run with the last verdict of each pair in a resume file.

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
