"""Draws the table at the end of a run, and the summary below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate, tabulate_formats

from harness.domain import GateClass, GateDecision, PairDecision, Status, Verdict
from harness.report.text import (
    baseline_label,
    baseline_speedup,
    clean,
    figure,
    milliseconds,
    percent,
    seconds,
    signed_percent,
    speedup,
)

FORMATS: tuple[str, ...] = tuple(tabulate_formats)
"""Every format that ``--format`` takes."""

_BARS_PART_COLUMNS = {"github", "pipe", "orgtbl", "jira", "presto", "psql", "pretty", "textile"}
_QUIET = (Status.PASSED, Status.SKIPPED)
_WORST_FIRST = (
    GateClass.REGRESSED,
    GateClass.MISSING,
    GateClass.INCOMPARABLE,
    GateClass.NO_BASELINE,
    GateClass.UNDECIDED,
    GateClass.IMPROVED,
)
_GREEN, _YELLOW, _RED, _RESET = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the table.

    Attributes:
        head: its title.
        cells: one per verdict.
        align: ``left`` or ``right``.
        rank: a narrow terminal lacks the columns of the highest ranks; rank 0 always stays.
    """

    head: str
    cells: tuple[str, ...]
    align: str = "left"
    rank: int = 0


def render_table(
    verdicts: Sequence[Verdict],
    fmt: str = "simple",
    *,
    width: int | None = None,
    colour: bool = False,
    gate: GateDecision | None = None,
) -> str:
    """Return the table with one row per verdict. Only pairs that passed have times and speedups.

    Columns for further baselines, the bound and the gate appear if a verdict has them.

    Args:
        verdicts: in the order of the rows.
        fmt: a tabulate format.
        width: characters of the terminal; None is unlimited. The least important columns are left
            out until the table fits. If that is not enough, each pair gets a paragraph.
        colour: colour statuses with terminal codes.
        gate: adds a column with its decisions.
    """
    columns = _columns(verdicts, fmt, gate, colour=colour)
    text = _draw(columns, fmt)
    if width is None:
        return text
    left_out: list[str] = []
    while _width(text) > width:
        going = max(columns, key=lambda column: column.rank)
        if going.rank == 0:
            return _stacked(columns)
        columns = [column for column in columns if column is not going]
        left_out.append(going.head)
        text = _draw(columns, fmt)
    if left_out:
        text += "\n" + _fold(f"left out, for want of width: {', '.join(reversed(left_out))}", width)
    return text


def _columns(
    verdicts: Sequence[Verdict], fmt: str, gate: GateDecision | None, *, colour: bool
) -> list[Column]:
    diff = "max abs diff" if fmt in _BARS_PART_COLUMNS else "max |diff|"

    def column(head: str, cells: Sequence[str], align: str = "left", rank: int = 0) -> Column:
        return Column(head=head, cells=tuple(cells), align=align, rank=rank)

    columns = [
        column("pair", [clean(v.pair) for v in verdicts]),
        column("status", [_status(v, colour=colour) for v in verdicts]),
        column(diff, [figure(v.max_abs_diff) for v in verdicts], "right", 6),
        column("precision", [v.precision or "-" for v in verdicts], rank=5),
        column("reference ms", [_ms(v, v.speed.reference_ms) for v in verdicts], "right", 7),
        column("solution ms", [_ms(v, v.speed.candidate_ms) for v in verdicts], "right", 4),
        column("speedup", [_speedup(v) for v in verdicts]),
    ]
    names = list(dict.fromkeys(b.name for v in verdicts for b in v.speed.baselines))
    for name in names:
        cells = [baseline_speedup(v, name) for v in verdicts]
        columns.append(column(f"vs {baseline_label(name)}", cells, rank=2))
    if any(v.speed.bound for v in verdicts):
        shares = [percent(v.speed.bound.share) if v.speed.bound else "-" for v in verdicts]
        columns.append(column("of bound", shares, "right", 3))
    if gate:
        found = {decision.pair: decision for decision in gate.pairs}
        columns.append(column("gate", [_gate(found.get(v.pair)) for v in verdicts], rank=1))
    return columns


def _draw(columns: Sequence[Column], fmt: str) -> str:
    text: str = tabulate(
        list(zip(*(column.cells for column in columns), strict=True)),
        headers=[column.head for column in columns],
        tablefmt=fmt,
        disable_numparse=True,
        colalign=[column.align for column in columns],
    )
    return text


def _width(text: str) -> int:
    return max((len(clean(line)) for line in text.split("\n")), default=0)


def _stacked(columns: Sequence[Column]) -> str:
    """Return a paragraph per pair, for terminals that are too narrow for a table."""
    pairs = []
    for row in zip(*(column.cells for column in columns), strict=True):
        lines = [row[0]]
        lines += [
            f"  {column.head} {cell}"
            for column, cell in zip(columns[1:], row[1:], strict=True)
            if cell not in ("-", "")
        ]
        pairs.append("\n".join(lines))
    return "\n".join(pairs)


def _fold(text: str, width: int) -> str:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("  " + word)
        else:
            lines[-1] += (" " if lines[-1] else "") + word
    return "\n".join(lines)


def _status(verdict: Verdict, *, colour: bool) -> str:
    text = verdict.status.value + (" !" if verdict.warnings else "")
    if not colour:
        return text
    code = {Status.PASSED: _GREEN, Status.SKIPPED: _YELLOW}.get(verdict.status, _RED)
    if verdict.warnings:
        code = _YELLOW
    return f"{code}{text}{_RESET}"


def _ms(verdict: Verdict, value: float | None) -> str:
    return milliseconds(value) if verdict.status is Status.PASSED else "-"


def _speedup(verdict: Verdict) -> str:
    return speedup(verdict.speed) if verdict.status is Status.PASSED else "-"


def _gate(decision: PairDecision | None) -> str:
    if decision is None:
        return "-"
    moved = "" if decision.change is None else f" {signed_percent(decision.change)}"
    if decision.gate_class is GateClass.REGRESSED and decision.what != "speed":
        moved = f" ({decision.what})"
    return f"{decision.gate_class.value}{moved}"


def summarize(verdicts: Sequence[Verdict], wall_s: float | None = None, *, reused: str = "") -> str:
    """Return one line such as ``5 passed, 1 WRONG_VALUES, in 41.3 s on cpu``.

    Args:
        verdicts: of one run.
        wall_s: its wall time; None leaves that out.
        reused: number and source of the verdicts that were reused; empty leaves that out.
    """
    counts = Counter(verdict.status for verdict in verdicts)
    parts = [
        f"{count} {status.value.lower() if status in _QUIET else status.value}"
        for status, count in sorted(counts.items(), key=lambda item: item[0] is not Status.PASSED)
    ]
    warned = sum(bool(verdict.warnings) for verdict in verdicts)
    if warned:
        parts[0] += f" ({warned} with warnings)"
    ran = [verdict for verdict in verdicts if verdict.status is not Status.SKIPPED]
    devices = sorted({verdict.device for verdict in ran if verdict.device})
    where = f" on {', '.join(devices)}" if devices else ""
    if set(counts) <= {Status.SKIPPED}:
        parts.append("nothing was evaluated")
    if reused:
        parts.append(reused)
    took = "" if wall_s is None else f", in {seconds(wall_s)}"
    return f"{', '.join(parts)}{took}{where}"


def worst_first(decisions: Sequence[PairDecision]) -> list[PairDecision]:
    """Return the decisions that are not OK, the worst first."""
    order = {c: place for place, c in enumerate(_WORST_FIRST)}
    news = [d for d in decisions if d.gate_class is not GateClass.OK]
    return sorted(news, key=lambda d: (order[d.gate_class], d.pair))


def explain_gate(gate: GateDecision) -> str:
    """Return the gate's decision: its counts, then a line per pair that is not OK."""
    counts: Mapping[GateClass, int] = Counter(decision.gate_class for decision in gate.pairs)
    said = ", ".join(f"{counts[c]} {c.value}" for c in GateClass if counts.get(c)) or "no pairs"
    lines = [f"gate against {clean(gate.baseline)}: {said}"]
    lines += [
        f"  {d.gate_class.value} {clean(d.pair)}: {' '.join(clean(d.reason).split())}"
        for d in worst_first(gate.pairs)
    ]
    return "\n".join(lines)
