"""The figures of Nsight Compute as rows, for all reports."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.domain import KernelProfile
from harness.report.text import milliseconds, one_line, percent

HEAD = ("kernel", "ms", "GB read", "GB written", "occupancy", "registers", "top stall")
_SHOWN = 16
_NAME = 60


def kernel_rows(kernels: Sequence[KernelProfile]) -> list[tuple[str, ...]]:
    """Return a row per launch; of many launches only the first, and the number of the rest."""
    rows: list[tuple[str, ...]] = [
        (
            short_name(kernel.name),
            milliseconds(kernel.duration_ms),
            _gigabytes(kernel.dram_read_bytes),
            _gigabytes(kernel.dram_write_bytes),
            percent(kernel.occupancy),
            "-" if kernel.registers is None else str(kernel.registers),
            one_line(kernel.stall) or "-",
        )
        for kernel in kernels[:_SHOWN]
    ]
    if len(kernels) > _SHOWN:
        rows.append((f"{len(kernels) - _SHOWN} more launches", *["" for _ in HEAD[1:]]))
    return rows


def kernel_lines(kernels: Sequence[KernelProfile]) -> list[str]:
    """Return the rows for a terminal, in columns, with the names last."""
    table = [(*row[1:], row[0]) for row in (HEAD, *kernel_rows(kernels))]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD) - 1)]
    return [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in table
    ]


def short_name(name: str) -> str:
    """Return a kernel's name without return type and parameters, cut to a column's width."""
    name = re.sub(r"^void ", "", one_line(name)).replace("(anonymous namespace)::", "")
    name = name.partition("(")[0] or name
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."


def _gigabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e9:.3g}"
