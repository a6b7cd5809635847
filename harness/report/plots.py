"""Draws plots of a run as inline SVG. Needs matplotlib; without it the page has no plots.

Colours are CSS variables, so that plots follow the page's dark mode. Figures have the width of a
phone, and the page enlarges them.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.domain import Run, Speed, SpeedOutcome, Status, Verdict
from harness.report.text import baseline_label, clean, milliseconds, one_line

_WIDTH_IN = 4.0
_ROW_IN = 0.5
_INK, _FAINT, _GRID = "#010101", "#020202", "#030303"
_EAGER, _COMPILE, _THIRD, _OWN, _BOUND = "#040404", "#050505", "#060606", "#070707", "#080808"
_VARIABLES = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _GRID: "var(--line)",
    _EAGER: "var(--eager)",
    _COMPILE: "var(--compile)",
    _THIRD: "var(--third)",
    _OWN: "var(--own)",
    _BOUND: "var(--bound)",
}
_MARKERS = ("o", "D", "^", "s")
_FONT_PX = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One speedup with its interval."""

    name: str
    value: float
    low: float
    high: float


def have_matplotlib() -> bool:
    """Return whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def ratios(speed: Speed) -> list[Ratio]:
    """Return the speedups of a verdict: against eager first, then further baselines."""
    found = [("eager", speed)] if speed.outcome is not SpeedOutcome.UNTIMED else []
    named: list[tuple[str, Any]] = [*found, *((baseline_label(b.name), b) for b in speed.baselines)]
    return [
        Ratio(
            name=name, value=one.speedup, low=one.low or one.speedup, high=one.high or one.speedup
        )
        for name, one in named
        if one.speedup is not None and math.isfinite(one.speedup) and one.speedup > 0
    ]


def plot_speedups(verdicts: Sequence[Verdict]) -> str:
    """Return all pairs' speedups with their intervals, one row per pair; empty without any."""
    timed = [(v, ratios(v.speed)) for v in verdicts if v.status is Status.PASSED]
    timed = [(v, found) for v, found in timed if found]
    if not timed:
        return ""
    figure, axes = _figure(len(timed) * 1.1 + 0.9)
    names = list(dict.fromkeys(ratio.name for _, found in timed for ratio in found))
    step = 0.5 / max(len(names), 1)
    for row, (verdict, found) in enumerate(timed):
        for ratio in found:
            i = names.index(ratio.name)
            _point(axes, ratio, -row - i * step + 0.1, i)
        _row_label(axes, -row + 0.42, verdict.pair)
    _axis_of_ratios(axes, [ratio for _, found in timed for ratio in found])
    axes.set_ylim(-len(timed) + 0.35, 0.75)
    _legend(axes, names)
    return _svg(figure, "speedups", "Speedup of each pair with its 95 % interval")


def plot_bounds(verdicts: Sequence[Verdict]) -> str:
    """Return each pair's share of its bound, one row per pair; empty without any bound."""
    known = [(v.pair, v.speed.bound.share) for v in verdicts if v.speed.bound]
    if not known:
        return ""
    figure, axes = _figure(len(known) * 1.1 + 0.9)
    for row, (pair, share) in enumerate(known):
        axes.barh(-row, share, height=0.28, color=_OWN)
        _row_label(axes, -row + 0.42, pair)
        _text(axes, share, -row, f" {share:.0%}", va="center", color=_FAINT)
    axes.axvline(1, color=_INK, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
    axes.set_xlim(0, max(1.0, *(share for _, share in known)) * 1.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xticklabels(["0", "25 %", "50 %", "75 %", "bound"])
    axes.set_ylim(-len(known) + 0.5, 0.75)
    return _svg(figure, "bounds", "Share of its bound that each pair reaches")


def plot_times(verdict: Verdict) -> str:
    """Return one pair's times as bars: baselines, solution, bound; empty where untimed."""
    speed = verdict.speed
    bars: list[tuple[str, float | None, str]] = [("eager", speed.reference_ms, _EAGER)]
    for i, baseline in enumerate(speed.baselines):
        colour = _COMPILE if i == 0 else _THIRD
        bars.append((baseline_label(baseline.name), baseline.baseline_ms, colour))
    bars.append(("solution", speed.candidate_ms, _OWN))
    bars.append(("bound", speed.bound.bound_ms if speed.bound else None, _BOUND))
    known = [(name, ms, colour) for name, ms, colour in bars if ms is not None and ms > 0]
    if verdict.status is not Status.PASSED or len(known) < 2:
        return ""
    figure, axes = _figure(len(known) * 0.7 + 0.1)
    longest = max(ms for _, ms, _ in known)
    for row, (name, ms, colour) in enumerate(known):
        axes.barh(-row, ms, height=0.42, color=colour)
        text = f"{name}  {milliseconds(ms)} ms"
        _text(axes, 0, -row + 0.3, text, va="bottom")
    axes.set_xlim(0, longest)
    axes.set_ylim(-len(known) + 0.6, 0.85)
    axes.axis("off")
    return _svg(figure, f"times {verdict.pair}", f"Milliseconds per call of {verdict.pair}")


def plot_errors(verdict: Verdict) -> str:
    """Return each tensor's error as a share of its budget, beside errors of coarser arithmetics.

    A float32 budget is at least 8 roundings of the largest value, 8 * 2**-24. So one rounding in
    tf32 or fp16 (2**-11) is 1024 budgets, and in bf16 (2**-8) 8192 budgets.
    """
    rows = [
        (f"{c.phase.partition('/')[0]} {c.what}", c.error / c.budget, c.precision or "unknown")
        for c in verdict.checks
        if c.error is not None and c.budget and math.isfinite(c.error)
    ]
    if not rows:
        return ""
    figure, axes = _figure(len(rows) * 0.72 + 1.1)
    floor, ceiling = 1e-4, 1e6
    for row, (name, share, precision) in enumerate(rows):
        axes.axhline(-row, color=_GRID, linewidth=1, zorder=0)
        colour = _OWN if share <= 1 else _THIRD
        shown = min(max(share, floor), ceiling)
        axes.plot(shown, -row, _MARKERS[0], color=colour, markersize=6)
        _text(axes, floor, -row + 0.2, name, va="bottom")
        _text(axes, ceiling, -row + 0.2, precision, va="bottom", ha="right", color=_FAINT)
    axes.axvline(1, color=_INK, linewidth=1, linestyle=(0, (3, 2)))
    if any(precision == "fp32" for _, _, precision in rows):
        for level, budgets, side in (("tf32, fp16 ", 1024, "right"), (" bf16", 8192, "left")):
            axes.axvline(budgets, color=_FAINT, linewidth=0.8, linestyle=(0, (1, 2)))
            _text(axes, budgets, 0.72, level, ha=side, color=_FAINT, fontsize=_FONT_PX - 1)
    axes.set_xscale("log")
    axes.set_xlim(floor, ceiling)
    axes.set_xticks([1e-4, 1e-2, 1, 100, 1e4])
    axes.set_xticklabels(["≤ 0.01 %", "1 %", "budget", "100 x", "10⁴ x"])
    axes.minorticks_off()
    axes.set_ylim(-len(rows) + 0.5, 1.05)
    return _svg(figure, f"errors {verdict.pair}", f"Errors of {verdict.pair} by their budgets")


def plot_history(runs: Sequence[Run], pair: str) -> str:
    """Return a pair's speedups over stored runs, oldest first; empty with fewer than two."""
    points = []
    for run in runs:
        for verdict in run.verdicts:
            if verdict.pair == pair and verdict.status is Status.PASSED:
                found = ratios(verdict.speed)
                if found:
                    points.append((str(run.environment.get("date") or "")[:10], found))
    if len(points) < 2:
        return ""
    points = points[-40:]
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(3.6)
    names = list(dict.fromkeys(ratio.name for _, found in points for ratio in found))
    for i, name in enumerate(names):
        colour = _colour(i)
        known = [(x, r) for x, (_, found) in enumerate(points) for r in found if r.name == name]
        axes.errorbar(
            [x for x, _ in known],
            [r.value for _, r in known],
            yerr=[
                [max(r.value - r.low, 0) for _, r in known],
                [max(r.high - r.value, 0) for _, r in known],
            ],
            color=colour,
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4,
            linewidth=1,
            elinewidth=1,
        )
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.set_xticks([0, len(points) - 1])
    axes.set_xticklabels([points[0][0], points[-1][0]])
    axes.get_xticklabels()[0].set_ha("left")
    axes.get_xticklabels()[-1].set_ha("right")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}x")
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _legend(axes, names)
    return _svg(figure, f"history {pair}", f"Speedup of {pair} over {len(points)} stored runs")


def _figure(rows: float) -> tuple[Any, Any]:
    """Return a figure with the height of some rows, and its axes, in the page's colours."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        {"font.size": _FONT_PX, "svg.fonttype": "none", "axes.formatter.limits": [-9, 9]}
    ):
        figure = Figure(figsize=(_WIDTH_IN, max(rows, 1.2) * _ROW_IN), layout="constrained")
        axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.tick_params(colors=_FAINT, labelcolor=_FAINT, labelsize=_FONT_PX - 1)
    axes.set_yticks([])
    return figure, axes


def _point(axes: Any, ratio: Ratio, y: float, i: int) -> None:
    colour = _colour(i)
    axes.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=3, alpha=0.5)
    axes.plot(ratio.value, y, _MARKERS[i % len(_MARKERS)], color=colour, markersize=5)


def _colour(i: int) -> str:
    return (_EAGER, _COMPILE, _THIRD)[i % 3]


def _row_label(axes: Any, y: float, text: str) -> None:
    axes.axhline(y + 0.3, color=_GRID, linewidth=0.6, zorder=0)
    label = axes.text(
        0, y, _plain(text), transform=axes.get_yaxis_transform(), color=_INK, va="center"
    )
    label.set_parse_math(False)


def _text(axes: Any, x: float, y: float, text: str, **more: Any) -> None:
    given = {"color": _INK, "fontsize": _FONT_PX, **more}
    axes.text(x, y, _plain(text), **given).set_parse_math(False)


def _plain(text: str) -> str:
    return one_line(clean(text))[:60]


def _axis_of_ratios(axes: Any, found: Sequence[Ratio]) -> None:
    low = min(1.0, *(ratio.low for ratio in found))
    high = max(1.0, *(ratio.high for ratio in found))
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    wanted = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100)
    ticks = [tick for tick in wanted if low / 1.15 <= tick <= high * 1.15]
    axes.set_xticks(ticks)
    axes.set_xticklabels([f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color=_INK, linewidth=1, linestyle=(0, (3, 2)), zorder=1)


def _legend(axes: Any, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_colour(i), marker=_MARKERS[i % len(_MARKERS)], linestyle="")
        for i in range(len(names))
    ]
    axes.legend(
        handles,
        [f"against {name}" for name in names],
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=len(names),
        frameon=False,
        labelcolor=_FAINT,
        fontsize=_FONT_PX,
        handletextpad=0.1,
        columnspacing=1.0,
    )


def _svg(figure: Any, salt: str, title: str) -> str:
    """Return a figure as an ``svg`` element: no prolog, no ids that clash, the page's colours."""
    from html import escape

    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?!h|m[0-9a-f]{10}|p[0-9a-f]{10})[^"]*"', "", text)
    text = re.sub(r"<svg [^>]*?viewBox", "<svg viewBox", text, count=1)
    for sentinel, variable in _VARIABLES.items():
        text = text.replace(sentinel, variable)
    label = escape(_plain(title), quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
