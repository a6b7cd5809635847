"""Takes the seed off this process's command line, where every other process can read it."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_SEED = re.compile(rb"\0--se(?:ed?)?[=\0]([0-9]+)(?=\0)")
_ARG_START, _ARG_END = 47, 48  # in /proc/self/stat, see proc(5); counted from 0


def hide_seed() -> None:
    """Overwrite the value of ``--seed``: a solution that knows it knows the inputs to come.

    Does nothing on a system that does not say where the arguments lie.
    """
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        command = Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return
    fields = ["", "", *stat.rpartition(")")[2].split()]
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    if not start or end - start < len(command):
        return
    for found in _SEED.finditer(command):
        ctypes.memset(start + found.start(1), ord("*"), len(found.group(1)))
