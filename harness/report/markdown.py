"""Writes Markdown for a pull request or a job summary: changes first, the rest folded."""

from __future__ import annotations

import html
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from harness.domain import GateClass, GateDecision, PairDecision, Run, Status, Verdict
from harness.report.explain import log_tail
from harness.report.kernels import HEAD, kernel_rows
from harness.report.table import summarize, worst_first
from harness.report.text import (
    baseline_label,
    baseline_speedup,
    clean,
    figure,
    milliseconds,
    one_line,
    percent,
    signed_percent,
    speedup,
)

_LIMIT = 60_000  # a comment on a pull request holds 65,536 characters
_TABLE_LIMIT = 25_000
_WARNINGS = 12
_QUIET = (Status.PASSED, Status.SKIPPED)
_MARKS = re.compile(r"[\\`*_{}\[\]|~@$:]")
_PASSING = (GateClass.OK, GateClass.IMPROVED)
_ENVIRONMENT_SHOWN = (
    "gpu", "driver", "torch", "cuda", "nvcc", "compiler", "cpu", "cores", "commit", "date",
)  # fmt: skip


def render_markdown(run: Run) -> str:
    """Return the run as GitHub's Markdown.

    Text from a pair is escaped and written as code, so that it can neither format, link nor mention
    anybody.
    """
    parts = [_headline(run)]
    if run.error:
        parts.append(f"**Nothing was evaluated:** {_code(run.error)}")
    if run.gate:
        parts.append(_changes(run.gate))
    if any(verdict.warnings for verdict in run.verdicts):
        parts.append(_warnings(run))
    failed = [verdict for verdict in run.verdicts if verdict.status not in _QUIET]
    closing = [_folded("All pairs", _table(run)), _folded("Machine", _machine(run))]
    counted = _kernels(run)
    if counted:
        closing.insert(1, _folded("Kernels of one call, by Nsight Compute", counted))
    room = _LIMIT - sum(len(part) + 2 for part in (*parts, *closing))
    for i, verdict in enumerate(failed):
        part = _failure(run, verdict)
        if len(part) > room:
            parts.append(f"_{len(failed) - i} more failures are in the job's artifacts._")
            break
        parts.append(part)
        room -= len(part) + 2
    return "\n\n".join([*parts, *closing]) + "\n"


def _headline(run: Run) -> str:
    passed = sum(verdict.status is Status.PASSED for verdict in run.verdicts)
    gpus = list(dict.fromkeys(map(str, run.environment.get("gpu") or ())))
    on_gpu = any(verdict.device.startswith("cuda") for verdict in run.verdicts)
    where = ", ".join(gpus) if gpus and on_gpu else "the CPU"
    bad = bool(run.exit_code) or (run.gate is not None and run.gate.exit_code != 0)
    said = f"## {'✘' if bad else '✔'} {passed} of {len(run.verdicts)} pairs passed on {_md(where)}"
    if run.gate:
        counts = Counter(decision.gate_class for decision in run.gate.pairs)
        listed = ", ".join(f"{counts[c]} {_md(c.value)}" for c in GateClass if counts[c])
        said += f"\n\nGate against {_code(run.gate.baseline)}: **{listed or 'no pairs'}**."
    elif run.verdicts:
        said += f"\n\n{_md(summarize(run.verdicts))}."
    return said


def _changes(gate: GateDecision) -> str:
    """Return the pairs that are not OK, the worst first."""
    changed = worst_first(gate.pairs)
    if not changed:
        return "No pair changed by more than its interval."
    rows = [
        (
            f"{'✔' if d.gate_class in _PASSING else '✘'} **{_md(d.gate_class.value)}**",
            _code(d.pair),
            _ratio(d.before),
            _ratio(d.after),
            _unbroken(_moved(d)),
            _code(d.reason),
        )
        for d in changed
    ]
    head = ("gate", "pair", "before", "now", "change", "why")
    return _rows(head, rows, "llrrll")


def _moved(decision: PairDecision) -> str:
    if decision.change is None:
        return decision.what or "-"
    ends = f"[{signed_percent(decision.low)}, {signed_percent(decision.high)}]"
    return f"{signed_percent(decision.change)} {ends}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}x"


def _failure(run: Run, verdict: Verdict) -> str:
    head = f"<b>{_md(verdict.status.value)}</b> {_code(verdict.pair)}"
    lines = [f"Blame: {verdict.blame.value}. {_code(verdict.message or 'no message')}"]
    for finding in verdict.findings[:5]:
        lines.append(f"{_code(f'{finding.kind}: {finding.message}')}")
    if verdict.replay:
        lines.append(f"Replay: {_code(verdict.replay)}")
    tail = log_tail(run, verdict)
    if tail:
        text = html.escape("\n".join(line[:400] for line in tail), quote=False)
        lines.append("<pre>" + text.replace("\n\n", "\n&#10;") + "</pre>")
    return _folded(head, "\n\n".join(lines), raw_head=True, is_open=True)


def _warnings(run: Run) -> str:
    """Return the warnings about pairs that passed, each once."""
    pairs: dict[str, list[str]] = {}
    for verdict in run.verdicts:
        for warning in verdict.warnings:
            pairs.setdefault(warning, []).append(verdict.pair)
    lines = []
    for warning, names in list(pairs.items())[:_WARNINGS]:
        shown = ", ".join(map(_code, names[:3]))
        shown += f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"- ⚠ {shown}: {_code(warning)}")
    if len(pairs) > _WARNINGS:
        lines.append(f"- {len(pairs) - _WARNINGS} more warnings are in the job's artifacts.")
    return "\n".join(lines)


def _table(run: Run) -> str:
    verdicts = run.verdicts
    names = list(dict.fromkeys(b.name for v in verdicts for b in v.speed.baselines))
    bound = any(v.speed.bound for v in verdicts)
    head = ["pair", "status", "speedup", *(f"vs {_md(baseline_label(name))}" for name in names)]
    head += ["of bound"] if bound else []
    head += ["reference ms", "solution ms", "max abs diff", "precision"]
    rows = []
    for v in verdicts:
        passed = v.status is Status.PASSED
        status = _md(v.status.value) + (" ⚠" if v.warnings else "")
        row = [_code(v.pair), status, _unbroken(speedup(v.speed) if passed else "-")]
        row += [_unbroken(baseline_speedup(v, name)) for name in names]
        if bound:
            row.append(percent(v.speed.bound.share) if v.speed.bound else "-")
        row += [milliseconds(v.speed.reference_ms), milliseconds(v.speed.candidate_ms)]
        rows.append([*row, figure(v.max_abs_diff), _md(v.precision or "-")])
    return _rows(head, rows, "lll" + "l" * len(names) + ("r" if bound else "") + "rrrl")


def _kernels(run: Run) -> str:
    rows = [
        (_code(verdict.pair), _code(row[0]), *map(_md, row[1:]))
        for verdict in run.verdicts
        for row in kernel_rows(verdict.ncu)
    ]
    return _rows(("pair", *HEAD), rows, "llrrrrrl") if rows else ""


def _machine(run: Run) -> str:
    rows = []
    for key in _ENVIRONMENT_SHOWN:
        value = run.environment.get(key)
        if value:
            rows.append((key, _code(", ".join(map(str, value)) if type(value) is list else value)))
    return _rows(("", ""), rows, "ll")


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in align]
    lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *rows)]
    ends = list(itertools.accumulate(len(line) + 1 for line in lines))
    shown = sum(end <= _TABLE_LIMIT for end in ends)
    rest = f"\n\n_{len(lines) - shown} more rows are in the job's artifacts._"
    return "\n".join(lines[:shown]) + (rest if shown < len(lines) else "")


def _folded(head: str, body: str, *, raw_head: bool = False, is_open: bool = False) -> str:
    summary = head if raw_head else _md(head)
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _md(text: object) -> str:
    """Return text with entities for every character that has a meaning in Markdown or HTML."""
    escaped = html.escape(one_line(str(text)), quote=True).replace("&#x27;", "&#39;")
    return _MARKS.sub(
        lambda found: f"&#{ord(found.group())};", escaped.replace("&#", "\0")
    ).replace("\0", "&#")


def _unbroken(text: str) -> str:
    """Return a figure that stays on one line."""
    return _md(text).replace(" ", "&nbsp;").replace("-", "&#8209;")


def _code(text: object) -> str:
    """Return text of a pair as code: GitHub makes no links or mentions of it."""
    return f"<code>{_md(clean(str(text))[:1000])}</code>"
