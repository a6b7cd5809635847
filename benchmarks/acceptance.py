"""Compares the harness's verdicts on public solutions with the verdicts of others.

``python benchmarks/acceptance.py ROOT RUN ...`` reads a folder of pairs (``ROOT/problems``,
``ROOT/solutions``) and the stored runs of its pairs, and prints Markdown. A run is a document of
``run_eval.py --json FILE`` or a file of ``run_eval.py --resume FILE``. If a pair was evaluated more
than once, its last verdict counts; SKIPPED counts only if it is the only verdict. Verdicts on other
files than those in ROOT do not count.

- ``--index FILE``: the verdict of each solution's source. JSON: ``{PAIR: {"source": ..., "model":
  ..., "correct": true, "compiled": true, "hardware": ..., "note": ...}}``. ``correct`` is null if
  the source does not say. ``model`` splits a source with solutions of several models.
- ``--kernelbench FILE``: KernelBench's own verdicts, from ``benchmarks/kernelbench_verdicts.py``.
  They are of the same machine, so they replace the verdict of the source.
- ``--explanations FILE``: which verdict is right if the two disagree, and why. JSON: ``{PAIR: [WHO,
  REASON]}``; or a Markdown table with the columns *pair*, *right* and *reason*. WHO is ``ours``,
  ``theirs`` or ``neither``. PAIR may be a pattern.
- ``--own``: the solutions are the problems' own code. Prints the pairs that did not pass, and the
  speedups, which should all be 1.
- ``--picture FILE``: draws the speedups (SVG or PNG). Needs matplotlib.

Exit code 1: a disagreement has no explanation, or own code was refused or is not as fast as itself.
"""

from __future__ import annotations

import argparse
import enum
import fnmatch
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.picture import draw
from benchmarks.verdicts import (
    RIGHT,
    Entry,
    Explanation,
    Ours,
    Theirs,
    explain,
    latest,
    read_explanations,
    read_index,
    read_kernelbench,
    read_runs,
)
from harness.domain import Pair, SpeedOutcome, Status, UsageError
from harness.pairs.discover import discover, select
from harness.report.text import clean, one_line

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
_CELL = 300  # characters of a message that a cell of a table shows


class Agreement(enum.Enum):
    """How two verdicts on one solution compare."""

    BOTH_ACCEPT = "both accept"
    BOTH_REFUSE = "both refuse"
    WE_REFUSE = "only we refuse"
    THEY_REFUSE = "only they refuse"
    ACCEPTED = "we accept, theirs unknown"
    REFUSED = "we refuse, theirs unknown"
    OPEN = "no verdict of ours"


DISAGREEMENTS = (Agreement.WE_REFUSE, Agreement.THEY_REFUSE, Agreement.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One pair with all verdicts on it.

    Attributes:
        pair: ``problem/solution``.
        source: origin of the solution.
        model: its author, if the source has solutions of several models; else empty.
        ours: the harness's verdict; None if the pair was not run.
        from_source: the verdict of its source.
        from_kernelbench: KernelBench's verdict on the same machine; None if it did not run.
    """

    pair: str
    source: str
    model: str = ""
    ours: Ours | None = None
    from_source: Theirs = field(default_factory=Theirs)
    from_kernelbench: Theirs | None = None

    @property
    def group(self) -> str:
        """Return the row of the tables that counts this pair."""
        return f"{self.source}, {self.model}" if self.model else self.source

    @property
    def theirs(self) -> Theirs:
        """Return the verdict to compare with: that of the same machine if there is one."""
        known = self.from_kernelbench
        return known if known is not None and known.correct is not None else self.from_source

    @property
    def agreement(self) -> Agreement:
        """Return how our verdict compares with theirs."""
        accepts = self.ours.accepts if self.ours else None
        if accepts is None:
            return Agreement.OPEN
        if self.theirs.correct is None:
            return Agreement.ACCEPTED if accepts else Agreement.REFUSED
        if accepts:
            return Agreement.BOTH_ACCEPT if self.theirs.correct else Agreement.THEY_REFUSE
        return Agreement.WE_REFUSE if self.theirs.correct else Agreement.BOTH_REFUSE


def rows_of(
    pairs: Sequence[Pair],
    runs: Mapping[str, Sequence[Ours]],
    index: Mapping[str, Entry],
    kernelbench: Mapping[str, Theirs],
) -> list[Row]:
    """Return one row per pair of a root. Without an index, a solution's name is its source."""
    rows = []
    for pair in pairs:
        entry = index.get(pair.name, Entry())
        rows.append(
            Row(
                pair=pair.name,
                source=entry.source or re.sub(r"_\d+$", "", pair.name.rpartition("/")[2]),
                model=entry.model,
                ours=latest(runs.get(pair.name, ()), pair),
                from_source=entry.said,
                from_kernelbench=kernelbench.get(pair.name),
            )
        )
    return rows


def status_table(rows: Sequence[Row]) -> str:
    """Return the number of pairs by source and status."""
    seen = {row.ours.status for row in rows if row.ours}
    statuses = [status for status in Status if status in seen]
    head = ["source", "pairs", "not run", *(s.value for s in statuses), "PASSED with warnings"]
    body = []
    for name, group in _by_source(rows):
        counts = Counter(row.ours.status if row.ours else None for row in group)
        warned = sum(bool(r.ours and r.ours.warnings) for r in group)
        body.append([name, len(group), counts[None], *(counts[s] for s in statuses), warned])
    return markdown_table(head, body)


def agreement_table(rows: Sequence[Row]) -> str:
    """Return the number of pairs by source and by how the two verdicts compare."""
    head = ["source", "KernelBench ran here", *(a.value for a in Agreement)]
    body = []
    for name, group in _by_source(rows):
        counts = Counter(row.agreement for row in group)
        here = sum(row.from_kernelbench is not None for row in group)
        body.append([name, here, *(counts[a] for a in Agreement)])
    return markdown_table(head, body)


def disagreement_table(rows: Sequence[Row], explanations: Sequence[Explanation]) -> str:
    """Return each pair with differing verdicts, and the explanation."""
    body = []
    for row in sorted(disagreements(rows), key=lambda row: (row.agreement.value, row.pair)):
        assert row.ours is not None
        known = explain(row.pair, explanations)
        here = row.from_kernelbench
        body.append(
            [
                f"`{row.pair}`",
                row.group,
                f"{row.from_source.word} ({row.from_source.note})"
                if row.from_source.note
                else row.from_source.word,
                "not run" if here is None else f"{here.word} {here.note}".strip(),
                f"{row.ours.status.value}: {row.ours.message}".removesuffix(": "),
                known.right if known else "**open**",
                known.reason if known else "",
            ]
        )
    head = ["pair", "source", "its source said", "KernelBench here", "ours", "right", "reason"]
    return markdown_table(head, body)


def disagreements(rows: Iterable[Row]) -> list[Row]:
    """Return the rows whose verdicts differ, or that we alone have judged and refused."""
    return [row for row in rows if row.agreement in DISAGREEMENTS]


def comparison(rows: Sequence[Row], explanations: Sequence[Explanation]) -> tuple[str, bool]:
    """Return the page on public solutions, and whether every disagreement is explained."""
    found = disagreements(rows)
    known = [explain(row.pair, explanations) for row in found]
    right = Counter(k.right for k in known if k)
    refused = [row for row in found if row.agreement is Agreement.WE_REFUSE]
    proven = sum(
        1 for row in refused if (k := explain(row.pair, explanations)) and k.right == "ours"
    )
    evaluated = sum(row.ours is not None for row in rows)
    sources = len({row.source for row in rows})
    decided = ", ".join(f"{right[who]} for {who}" for who in RIGHT)
    parts = [
        f"{len(rows)} pairs from {sources} sources, {evaluated} evaluated.",
        f"{len(found)} disagreements: {decided}, {known.count(None)} without an explanation.",
        f"{len(refused)} are accepted by them and refused by us, {proven} of them rightly.",
        "## Verdicts by source",
        status_table(rows),
        "## Beside the verdicts of others",
        "Theirs is KernelBench's verdict on this machine, else that of the source.",
        agreement_table(rows),
        "## Disagreements",
        disagreement_table(rows, explanations),
        *_skipped(rows),
        *_warned(rows),
    ]
    used = {row.pair for row in found}
    idle = [e.pattern for e in explanations if not fnmatch.filter(used, e.pattern)]
    if idle:
        parts.append(f"Explanations that name no disagreement: {', '.join(idle)}.")
    return "\n\n".join(parts), None not in known


def own_code(rows: Sequence[Row]) -> tuple[str, bool]:
    """Return the page on problems with their own code, and whether it is as expected.

    Expected: every pair passes, is a weak problem or is skipped, and no pair is faster or slower.
    """
    evaluated = [row.ours for row in rows if row.ours]
    fine = (Status.PASSED, Status.WEAK_PROBLEM, Status.SKIPPED)
    moved = [o for o in evaluated if o.outcome in (SpeedOutcome.FASTER, SpeedOutcome.SLOWER)]
    timed = speedups(rows)
    parts = [
        f"{len(rows)} pairs, {len(evaluated)} evaluated.",
        "## Verdicts",
        status_table(rows),
        "## What did not pass",
        markdown_table(
            ["pair", "status", "message"],
            [
                [f"`{o.pair}`", o.status.value, o.message]
                for o in sorted(evaluated, key=lambda o: (o.status.value, o.pair))
                if o.status is not Status.PASSED
            ],
        ),
        "## Speedups",
    ]
    if timed:
        counts = Counter(o.outcome for o in timed)
        values = np.percentile([o.speedup for o in timed], PERCENTILES)
        parts += [
            f"{len(timed)} timed: "
            + ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in SpeedOutcome)
            + ".",
            markdown_table(
                ["percentile", *(str(p) for p in PERCENTILES)],
                [["speedup", *(f"{value:.3f}" for value in values)]],
            ),
        ]
    else:
        parts.append("Nothing was timed.")
    if moved:
        parts += [
            "Faster or slower than itself:",
            markdown_table(
                ["pair", "outcome", "speedup", "95 % interval", "noise floor"],
                [
                    [
                        f"`{o.pair}`",
                        o.outcome.value,
                        _ratio(o.speedup),
                        f"{_ratio(o.low)} to {_ratio(o.high)}",
                        "" if o.noise_floor is None else f"{100 * o.noise_floor:.2f} %",
                    ]
                    for o in sorted(moved, key=lambda o: (o.outcome.value, o.pair))
                ],
            ),
        ]
    parts += _warned(rows)
    return "\n\n".join(parts), not moved and all(o.status in fine for o in evaluated)


def speedups(rows: Iterable[Row]) -> list[Ours]:
    """Return the verdicts that carry a speedup, slowest first."""
    timed = [
        row.ours
        for row in rows
        if row.ours
        and row.ours.status is Status.PASSED
        and row.ours.speedup is not None
        and math.isfinite(row.ours.speedup)
        and row.ours.speedup > 0
    ]
    return sorted(timed, key=lambda o: o.speedup or 0.0)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown; *None.* if it has no rows."""
    if not body:
        return "None."
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = one_line(clean(str(value)))
    if len(text) > _CELL:
        text = text[: _CELL - 3] + "..."
    return text.replace("|", "\\|")


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}x"


def _by_source(rows: Sequence[Row]) -> list[tuple[str, Sequence[Row]]]:
    names = sorted({row.group for row in rows})
    groups: list[tuple[str, Sequence[Row]]] = [
        (name, [row for row in rows if row.group == name]) for name in names
    ]
    return groups if len(names) == 1 else [*groups, ("all", rows)]


def _skipped(rows: Sequence[Row]) -> list[str]:
    """Return why pairs were skipped, the most frequent reason first."""
    reasons = Counter(
        row.ours.message for row in rows if row.ours and row.ours.status is Status.SKIPPED
    )
    if not reasons:
        return []
    body = [[count, reason] for reason, count in reasons.most_common()]
    return ["## Skipped", markdown_table(["pairs", "reason"], body)]


def _warned(rows: Sequence[Row]) -> list[str]:
    body = [[f"`{r.pair}`", "; ".join(r.ours.warnings)] for r in rows if r.ours and r.ours.warnings]
    return ["## Warnings", markdown_table(["pair", "warnings"], body)] if body else []


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page and return the exit code."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0], fromfile_prefix_chars="@"
    )
    add = parser.add_argument
    add("root", type=Path, help="folder with problems/ and solutions/")
    add("runs", type=Path, nargs="+", help="files of run_eval.py --json or --resume")
    add("--index", type=Path, help="the verdicts of the sources")
    add("--kernelbench", type=Path, help="KernelBench's verdicts on the same machine")
    add("--explanations", type=Path, help="which verdict is right if they differ, and why")
    add("--own", action="store_true", help="the solutions are the problems' own code")
    add("--picture", type=Path, help="draw the speedups: .svg or .png")
    add("--select", nargs="+", default=[], metavar="PAIR", help="these pairs only; @FILE: a list")
    options = parser.parse_intermixed_args(argv)
    try:
        rows = rows_of(
            select(discover(options.root).pairs, options.select),
            read_runs(options.runs),
            read_index(options.index) if options.index else {},
            read_kernelbench(options.kernelbench) if options.kernelbench else {},
        )
        explanations = read_explanations(options.explanations) if options.explanations else ()
        page, good = own_code(rows) if options.own else comparison(rows, explanations)
        if options.picture:
            draw(speedups(rows), options.picture)
    except UsageError as error:
        print(f"acceptance.py: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
