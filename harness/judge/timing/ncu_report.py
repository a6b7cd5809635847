"""Reads the report of Nsight Compute: its raw page as CSV, or its own errors.

The report comes from a process that ran the solution. So nothing in it is trusted: it is read as
text and numbers, and figures that cannot be read are left out.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping

from harness.domain import KernelProfile

DURATION = "gpu__time_duration.sum"
DRAM_READ = "dram__bytes_read.sum"
DRAM_WRITE = "dram__bytes_write.sum"
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
REGISTERS = "launch__registers_per_thread"
METRICS = (DURATION, DRAM_READ, DRAM_WRITE, OCCUPANCY, REGISTERS)

_STALL = re.compile(
    r"smsp__average_(?:warps_issue_stalled_(?P<new>\w+)_per_issue_active"
    r"|warp_latency_issue_stalled_(?P<old>\w+))\.ratio"
)
"""The section WarpStateStats has the first form; versions before 2020 had the second."""
_NO_STALLS = ("selected", "not_selected")
"""Warps that issue, and warps that could: neither are held up."""
_MAX_NAME = 300

_TO_BYTES = {
    prefix + unit: 10 ** (3 * power)
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    for unit in ("byte", "b")
}
_TO_MS = {
    prefix + unit: factor
    for prefix, factor in (("n", 1e-6), ("u", 1e-3), ("m", 1.0), ("", 1e3))
    for unit in ("second", "s")
}
_TO_SHARE = {"%": 0.01}
_TO_REGISTERS = {"register/thread": 1, "": 1}


class Unreadable(Exception):
    """The report holds no table of kernels; the message says why."""


def read_report(text: str) -> tuple[KernelProfile, ...]:
    """Return one record per kernel launch, in the order of launches.

    Args:
        text: output of ``ncu --csv --page raw``: its own lines, which start with ``==``, a row of
            names, a row of units, and a row per launch.

    Raises:
        Unreadable: there is no such table, or no row in it.
    """
    lines = [line for line in text.splitlines() if not line.startswith("==")]
    start = next((i for i, line in enumerate(lines) if line.lstrip().startswith('"ID"')), None)
    if start is None:
        raise Unreadable("it holds no table")
    try:
        head, *rows = csv.reader(lines[start:], strict=True)
    except csv.Error as error:
        raise Unreadable(f"its table is broken: {error}") from error
    rows = [row for row in rows if len(row) == len(head)]
    if "Kernel Name" not in head or len(rows) < 2:
        raise Unreadable("its table holds no kernel")
    units = dict(zip(head, rows[0], strict=True))
    return tuple(_kernel(dict(zip(head, row, strict=True)), units) for row in rows[1:])


def complaints(text: str) -> list[str]:
    """Return ncu's own errors and warnings, without the marks around them."""
    found = re.findall(r"^==(?:ERROR|WARNING)==\s*(.+)$", text, re.MULTILINE)
    return [" ".join(line.split())[:_MAX_NAME] for line in found[:20]]


def _kernel(row: Mapping[str, str], units: Mapping[str, str]) -> KernelProfile:
    stalls = _stalls(row)
    stall = max(stalls, key=lambda name: stalls[name], default="")
    return KernelProfile(
        name=row["Kernel Name"][:_MAX_NAME],
        duration_ms=_figure(row, units, DURATION, _TO_MS),
        dram_read_bytes=_whole(_figure(row, units, DRAM_READ, _TO_BYTES)),
        dram_write_bytes=_whole(_figure(row, units, DRAM_WRITE, _TO_BYTES)),
        occupancy=_figure(row, units, OCCUPANCY, _TO_SHARE),
        registers=_whole(_figure(row, units, REGISTERS, _TO_REGISTERS)),
        stall=stall.replace("_", " "),
        stall_cycles=stalls.get(stall),
    )


def _stalls(row: Mapping[str, str]) -> dict[str, float]:
    """Return cycles per issued instruction, by the reason that a warp waited for."""
    found = {}
    for column, text in row.items():
        match = _STALL.fullmatch(column)
        if match is None:
            continue
        name = match["new"] or match["old"]
        value = _number(text)
        if value and name not in _NO_STALLS and not name.endswith("_not_issued"):
            found[name] = value
    return found


def _figure(
    row: Mapping[str, str], units: Mapping[str, str], column: str, factors: Mapping[str, float]
) -> float | None:
    """Return a figure in our unit; None if it, or its unit, is unknown."""
    value = _number(row.get(column, ""))
    factor = factors.get(units.get(column, "").strip().lower())
    return None if value is None or factor is None else value * factor


def _number(text: str) -> float | None:
    """Return a number such as ``1,234.5``; None for ``n/a`` and for numbers that are not finite."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
