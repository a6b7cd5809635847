"""Finds the solution's line for an address in a built extension, with addr2line."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from harness.worker.cuda_on_cpu.support import RUNTIME


@functools.cache
def resolve(library: str, offset: int) -> tuple[str, int] | None:
    """Return (file, line) of an address in a library; None if unknown.

    With inlined frames, the innermost one outside of our own headers counts.
    """
    tool = shutil.which("addr2line")
    if tool is None or not Path(library).is_file():
        return None
    done = subprocess.run(
        [tool, "-i", "-e", library, hex(offset)], capture_output=True, text=True, check=False
    )
    for text in done.stdout.splitlines():
        file, _, number = text.split(" (")[0].rpartition(":")
        if number.isdigit() and int(number) > 0 and str(RUNTIME) not in file:
            if "/torch/include/" in file or "/include/c++/" in file:
                continue
            return Path(file).name, int(number)
    return None
