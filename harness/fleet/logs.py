"""One log file per pair and run: compiler output and the workers' stderr."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from datetime import datetime
from pathlib import Path

from harness.machine.environment import PROJECT_ROOT
from harness.machine.folders import results_folder

_KEPT_RUNS = 30
_KEPT_S = 24 * 3600.0


def new_log_folder(chosen: Path | None = None) -> Path:
    """Return a new, empty folder for the logs of one run.

    Args:
        chosen: where the folder is made; None is ``results/logs`` of the checkout, or of the
            user's own folder where that cannot be written.
    """
    parent = chosen or results_folder(PROJECT_ROOT) / "logs"
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=stamp, dir=parent))
    if chosen is None:
        _prune(parent)
    return folder


def log_file(folder: Path, pair: str) -> Path:
    """Return the log file of a pair, created empty."""
    path = folder / (re.sub(r"[^\w.+-]+", "-", pair) + ".log")
    path.touch()
    return path


def append(log: Path, text: str) -> None:
    """Add a line of the fleet to a log; a full disk must not cost a verdict."""
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as stream:
        stream.write(f"[fleet] {text}\n")


def _prune(parent: Path) -> None:
    """Remove runs that are neither recent nor among the last ones."""
    runs = sorted((path for path in parent.iterdir() if path.is_dir()), key=os.path.basename)
    for run in runs[:-_KEPT_RUNS]:
        with contextlib.suppress(OSError):
            if time.time() - run.stat().st_mtime > _KEPT_S:
                shutil.rmtree(run, ignore_errors=True)
