"""Compares two runs in one table."""

from __future__ import annotations

from tabulate import tabulate

from harness.domain import GateDecision, Run, Status, Verdict
from harness.report.text import clean, milliseconds, one_line, signed_percent


def render_comparison(before: Run, after: Run, decision: GateDecision, fmt: str = "simple") -> str:
    """Return a table with the results of both runs and the gate's decisions.

    Args:
        before: run A.
        after: run B.
        decision: the gate's, on run B with run A as baseline.
        fmt: a tabulate format.
    """
    old = {verdict.pair: verdict for verdict in before.verdicts}
    new = {verdict.pair: verdict for verdict in after.verdicts}
    rows = [
        (
            clean(d.pair),
            _arrow(_status(old.get(d.pair)), _status(new.get(d.pair))),
            _ratio(old.get(d.pair)),
            _ratio(new.get(d.pair)),
            _moved(d.change, d.low, d.high),
            _ms(old.get(d.pair)),
            _ms(new.get(d.pair)),
            _arrow(_precision(old.get(d.pair)), _precision(new.get(d.pair))),
            d.gate_class.value,
        )
        for d in decision.pairs
    ]
    heads = ("pair", "status", "A", "B", "change [95 %]", "A ms", "B ms", "precision", "verdict")
    table: str = tabulate(
        rows,
        headers=heads,
        tablefmt=fmt,
        disable_numparse=True,
        colalign=("left", "left", "right", "right", "left", "right", "right", "left", "left"),
    )
    return f"A: {_about(before)}\nB: {_about(after)}\n\n{table}"


def _about(run: Run) -> str:
    facts = [run.source, run.environment.get("date"), run.environment.get("commit")]
    facts += list(run.environment.get("gpu") or [])
    return one_line(", ".join(str(fact) for fact in facts if fact))


def _status(verdict: Verdict | None) -> str:
    return verdict.status.value if verdict else "absent"


def _precision(verdict: Verdict | None) -> str:
    return (verdict.precision if verdict else None) or "-"


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _ratio(verdict: Verdict | None) -> str:
    speedup = verdict.speed.speedup if verdict and verdict.status is Status.PASSED else None
    return "-" if speedup is None else f"{speedup:.3f}x"


def _ms(verdict: Verdict | None) -> str:
    return milliseconds(verdict.speed.candidate_ms) if verdict else "-"


def _moved(change: float | None, low: float | None, high: float | None) -> str:
    if change is None:
        return "-"
    return f"{signed_percent(change)} [{signed_percent(low)}, {signed_percent(high)}]"
