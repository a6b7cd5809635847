"""Writes and reads the JSON document of a run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

from harness.domain import (
    SCHEMA_VERSION,
    HarnessError,
    Run,
    UsageError,
    run_from_json,
    to_json,
)
from harness.domain.resume_form import is_resume, run_from_resume


def render_run(run: Run) -> str:
    """Return a run as the text of its document."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "measurement_version": run.measurement_version,
        "environment": dict(run.environment),
        "exit_code": run.exit_code,
        "error": run.error,
        "gate": to_json(run.gate) if run.gate else None,
        "verdicts": [to_json(verdict) for verdict in run.verdicts],
        "log_tails": to_json(dict(run.log_tails)),
    }
    return json.dumps(document, indent=2, allow_nan=False, default=str) + "\n"


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
