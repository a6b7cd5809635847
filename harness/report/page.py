"""Writes a self-contained HTML page of a run, which needs no network and has a dark mode.

Text from a pair may be hostile. The template escapes it, and the page's policy allows no script but
the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from harness.domain import Run, Status, Verdict
from harness.report import plots
from harness.report.explain import log_tail
from harness.report.kernels import HEAD, kernel_rows
from harness.report.table import summarize, worst_first
from harness.report.text import (
    baseline_label,
    baseline_speedup,
    clean,
    figure,
    mebibytes,
    milliseconds,
    one_line,
    percent,
    seconds,
    signed_percent,
    speedup,
)

_HERE = Path(__file__).parent
_LOG_LINES = 60
_SOURCE_LINES = 1500

SourceOf = Callable[[Verdict], "tuple[str, str] | None"]
"""Returns name and text of a verdict's solution file; None if the file has changed since."""


def render_page(
    run: Run, history: Sequence[Run] = (), source_of: SourceOf = lambda verdict: None
) -> str:
    """Return the page.

    Args:
        run: content of the page.
        history: earlier runs, oldest first. The run itself is added.
        source_of: returns the source of a failed pair.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        clean=clean,
        name=_breakable,
        line=one_line,
        figure=figure,
        ms=milliseconds,
        percent=percent,
        signed=signed_percent,
        seconds=seconds,
        mebibytes=mebibytes,
    )
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    drawn = plots.have_matplotlib()
    told = [*(earlier for earlier in history if earlier.source != run.source), run]
    names = list(dict.fromkeys(b.name for v in run.verdicts for b in v.speed.baselines))
    answers = {decision.pair: decision for decision in run.gate.pairs} if run.gate else {}

    def svg(text: str) -> Markup:
        return Markup(text)  # noqa: S704 - plots.py draws it and escapes its texts

    rows = [
        {
            "verdict": verdict,
            "anchor": f"pair-{i}",
            "passed": verdict.status is Status.PASSED,
            "skipped": verdict.status is Status.SKIPPED,
            "speedup": speedup(verdict.speed) if verdict.status is Status.PASSED else "-",
            "baselines": [(name, baseline_speedup(verdict, name)) for name in names],
            "ratios": {b.name: b.speedup for b in verdict.speed.baselines},
            "notes_of_baselines": [b for b in verdict.speed.baselines if b.note],
            "kernels": kernel_rows(verdict.ncu),
            "answer": answers.get(verdict.pair),
            "times": svg(plots.plot_times(verdict) if drawn else ""),
            "errors": svg(plots.plot_errors(verdict) if drawn else ""),
            "history": svg(plots.plot_history(told, verdict.pair) if drawn else ""),
            "tail": log_tail(run, verdict, _LOG_LINES),
            "source": _source(verdict, source_of),
        }
        for i, verdict in enumerate(run.verdicts)
    ]
    return environment.get_template("page.html").render(
        run=run,
        rows=rows,
        baseline_heads=[f"vs {baseline_label(name)}" for name in names],
        kernel_head=HEAD,
        has_bound=any(v.speed.bound for v in run.verdicts),
        where=_where(run),
        passed=sum(v.status is Status.PASSED for v in run.verdicts),
        summary=summarize(run.verdicts) if run.verdicts else "nothing was evaluated",
        missing=[d for d in run.gate.pairs if d.pair not in _names(run)] if run.gate else [],
        changed=worst_first(run.gate.pairs) if run.gate else [],
        date=re.sub(r"T(\d+:\d+).*", r" \1 UTC", one_line(str(run.environment.get("date") or ""))),
        speedups=svg(plots.plot_speedups(run.verdicts) if drawn else ""),
        bounds=svg(plots.plot_bounds(run.verdicts) if drawn else ""),
        drawn=drawn,
        runs=len(told),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own
        script=Markup(script),  # noqa: S704 - our own
        script_hash=digest,
    )


def _breakable(name: str) -> Markup:
    """Return a pair's name with possible line breaks after slashes and underscores."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[/_])", one_line(name)))


def _names(run: Run) -> set[str]:
    return {verdict.pair for verdict in run.verdicts}


def _where(run: Run) -> str:
    on_gpu = any(verdict.device.startswith("cuda") for verdict in run.verdicts)
    gpus = list(dict.fromkeys(map(str, run.environment.get("gpu") or ())))
    if on_gpu and gpus:
        return ", ".join(gpus)
    devices = sorted({verdict.device for verdict in run.verdicts if verdict.device})
    names = {"emulated": "the CPU runner (CUDA source run on the CPU)", "cpu": "the CPU"}
    return ", ".join(names.get(device, device) for device in devices) or "no device"


def _source(verdict: Verdict, source_of: SourceOf) -> dict[str, Any] | None:
    """Return the lines of a failed pair's solution, with marks on the lines of findings."""
    if verdict.status in (Status.PASSED, Status.SKIPPED):
        return None
    found = source_of(verdict)
    if found is None:
        return None
    name, text = found
    marked = {finding.line for finding in verdict.findings if finding.line}
    lines = clean(text).split("\n")[:_SOURCE_LINES]
    return {
        "name": name,
        "lines": [(number, line, number in marked) for number, line in enumerate(lines, 1)],
    }
