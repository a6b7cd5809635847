"""Draws the speedups of an acceptance run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.verdicts import Ours
from harness.domain import SpeedOutcome, UsageError


def draw(timed: Sequence[Ours], target: Path) -> None:
    """Draw speedups with their intervals, sorted, one point a pair.

    Raises:
        UsageError: there is nothing to draw, matplotlib is missing, or it cannot write the file.
    """
    if not timed:
        raise UsageError(f"{target}: nothing was timed, so there is nothing to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"{target}: needs matplotlib. Next: pip install matplotlib") from error
    colours = {SpeedOutcome.FASTER: "#1a7f37", SpeedOutcome.SLOWER: "#cf222e"}
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1, color="#57606a", linewidth=1, linestyle="--", zorder=0)
    for outcome in SpeedOutcome:
        points = [(i, o) for i, o in enumerate(timed) if o.outcome is outcome]
        if not points:
            continue
        colour = colours.get(outcome, "#0969da" if outcome is SpeedOutcome.SAME else "#9a6700")
        for i, ours in points:
            if ours.low and ours.high and math.isfinite(ours.high):
                axes.plot([i, i], [ours.low, ours.high], color=colour, linewidth=1, alpha=0.4)
        axes.plot(
            [i for i, _ in points],
            [o.speedup or math.nan for _, o in points],
            "o",
            color=colour,
            markersize=3,
            label=f"{len(points)} {outcome.value}",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}x")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}x")
    axes.set_xlabel(f"{len(timed)} pairs, slowest first")
    axes.set_ylabel("speedup, 95 % interval")
    axes.legend(frameon=False)
    try:
        figure.savefig(target)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{target}: cannot be drawn: {error}. Next: name a .svg or .png"
        ) from error
