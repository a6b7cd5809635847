"""Rounds figures for people, and makes text of a solution safe for a terminal."""

from __future__ import annotations

import re

from harness.domain import Speed, SpeedOutcome, Status, Verdict

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor moves
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links
    r"|\x1b.?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def clean(text: str) -> str:
    """Return text without control characters: a solution's output must not forge a report."""
    return _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str) -> str:
    """Return text on one line."""
    return " ".join(clean(text).split())


def figure(value: float | None) -> str:
    """Return an error with two digits, e.g. ``9.5e-07``; ``-`` for None."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def milliseconds(value: float | None) -> str:
    """Return a time with four digits; ``-`` for None."""
    if value is None:
        return "-"
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def seconds(value: float) -> str:
    """Return a duration such as ``8.3 s`` or ``2 min 05 s``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def mebibytes(value: int) -> str:
    """Return a size such as ``412 MiB``."""
    return f"{value / 1024**2:.0f} MiB"


def speedup(speed: Speed) -> str:
    """Return a speedup such as ``2.31x [2.29, 2.33] faster``, or ``untimed``."""
    if speed.outcome is SpeedOutcome.UNTIMED or speed.speedup is None:
        return "untimed"
    ends = ""
    if speed.low is not None and speed.high is not None:
        ends = f" [{speed.low:.2f}, {speed.high:.2f}]"
    return f"{speed.speedup:.2f}x{ends} {speed.outcome.value.lower()}"


def percent(value: float | None) -> str:
    """Return a share such as ``87 %``; ``-`` for None."""
    return "-" if value is None else f"{100 * value:.0f} %"


def signed_percent(value: float | None) -> str:
    """Return a change such as ``-3.1 %``; ``-`` for None."""
    return "-" if value is None else f"{100 * value:+.1f} %"


def baseline_label(name: str) -> str:
    """Return a short name of a baseline: ``compile``, ``max-autotune``."""
    short = one_line(name).removeprefix("torch.compile").strip()
    return short.removesuffix("-no-cudagraphs") or "compile"


def baseline_speedup(verdict: Verdict, name: str) -> str:
    """Return the speedup over a baseline, e.g. ``1.03x [1.02, 1.04]``; ``failed`` or ``-``."""
    for baseline in verdict.speed.baselines:
        if baseline.name == name and verdict.status is Status.PASSED:
            if baseline.speedup is None:
                return "failed" if baseline.note else "untimed"
            if baseline.low is None or baseline.high is None:
                return f"{baseline.speedup:.2f}x"
            return f"{baseline.speedup:.2f}x [{baseline.low:.2f}, {baseline.high:.2f}]"
    return "-"
