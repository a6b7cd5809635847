"""The table at the end of a run, and the line under it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate, tabulate_formats

from harness.domain import Status, Verdict
from harness.report.text import clean, figure, milliseconds, seconds, speedup

FORMATS: tuple[str, ...] = tuple(tabulate_formats)
"""Every format that ``--format`` takes."""

_BARS_PART_COLUMNS = {"github", "pipe", "orgtbl", "jira", "presto", "psql", "pretty", "textile"}


def render_table(verdicts: Sequence[Verdict], fmt: str = "simple") -> str:
    """Return the table: one row per verdict, times and speedups of those that passed only.

    Args:
        verdicts: in the order of the rows.
        fmt: a tabulate format.
    """
    diff = "max abs diff" if fmt in _BARS_PART_COLUMNS else "max |diff|"
    headers = ("pair", "status", diff, "precision", "reference ms", "solution ms", "speedup")
    rows = [_row(verdict) for verdict in verdicts]
    table: str = tabulate(
        rows,
        headers=headers,
        tablefmt=fmt,
        disable_numparse=True,
        colalign=("left", "left", "right", "left", "right", "right", "left"),
    )
    return table


def summarize(verdicts: Sequence[Verdict], wall_s: float) -> str:
    """Return one line such as ``5 passed, 1 WRONG_VALUES, in 41.3 s on cpu``."""
    counts = Counter(verdict.status for verdict in verdicts)
    parts = [
        f"{count} {status.value.lower() if status in _QUIET else status.value}"
        for status, count in sorted(counts.items(), key=lambda item: item[0] is not Status.PASSED)
    ]
    ran = [verdict for verdict in verdicts if verdict.status is not Status.SKIPPED]
    devices = sorted({verdict.device for verdict in ran if verdict.device})
    where = f" on {', '.join(devices)}" if devices else ""
    if set(counts) <= {Status.SKIPPED}:
        parts.append("nothing was evaluated")
    return f"{', '.join(parts)}, in {seconds(wall_s)}{where}"


_QUIET = (Status.PASSED, Status.SKIPPED)


def _row(verdict: Verdict) -> tuple[str, ...]:
    head = (clean(verdict.pair), verdict.status.value)
    compared = (figure(verdict.max_abs_diff), verdict.precision or "-")
    if verdict.status is not Status.PASSED:
        return (*head, *compared, "-", "-", "-")
    speed = verdict.speed
    return (
        *head,
        *compared,
        milliseconds(speed.reference_ms),
        milliseconds(speed.candidate_ms),
        speedup(speed),
    )
