"""Writes and reads the JSON document of a run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.domain import (
    MEASUREMENT_VERSION,
    SCHEMA_VERSION,
    GateDecision,
    HarnessError,
    Run,
    UsageError,
    Verdict,
    run_from_json,
    to_json,
)
from harness.domain.resume_form import is_resume, run_from_resume


def render_document(
    verdicts: Sequence[Verdict],
    environment: Mapping[str, Any],
    *,
    exit_code: int,
    error: str | None = None,
    gate: GateDecision | None = None,
    measurement_version: int = MEASUREMENT_VERSION,
    log_tails: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the document as text.

    Args:
        verdicts: exactly one per pair.
        environment: of the machine.
        exit_code: of the command line for this run.
        error: the message about bad usage, if that ended the run.
        gate: the comparison with stored results, if the user asked for it.
        measurement_version: of the measured times.
        log_tails: last lines of the logs, by pair.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "measurement_version": measurement_version,
        "environment": dict(environment),
        "exit_code": exit_code,
        "error": error,
        "gate": to_json(gate) if gate else None,
        "verdicts": [to_json(verdict) for verdict in verdicts],
        "log_tails": to_json(dict(log_tails or {})),
    }
    return json.dumps(document, indent=2, allow_nan=False, default=str) + "\n"


def render_run(run: Run) -> str:
    """Return a run as the text of its document."""
    return render_document(
        run.verdicts,
        run.environment,
        exit_code=run.exit_code,
        error=run.error,
        gate=run.gate,
        measurement_version=run.measurement_version,
        log_tails=run.log_tails,
    )


def read_run(path: Path) -> Run:
    """Return the run in a document or a resume file.

    Raises:
        UsageError: the file cannot be read, is damaged, or has another form.
    """
    try:
        content = path.read_bytes()
        if is_resume(content):
            return run_from_resume(content, str(path))
        plain = json.loads(content.decode("utf-8"))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise UsageError(f"{path}: is damaged: {error}. Next: run again with --json") from error
    try:
        return run_from_json(plain, str(path))
    except HarnessError as error:
        raise UsageError(f"{path}: {error}") from error


def write_document(text: str, target: str) -> None:
    """Write a document to a file, or to stdout if the target is ``-``.

    The document is written beside the target and then renamed. So a reader sees the old file or the
    new one, never a part.

    Raises:
        OSError: the target cannot be written.
    """
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(target)
    if path.exists() and not path.is_file():  # a pipe or /dev/null cannot be replaced
        path.write_text(text, encoding="utf-8")
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.resolve().parent)
    beside = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        beside.replace(path.resolve())
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
