"""Compares a run with stored results: decides on every pair, and measures suspicious ones again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

from harness.domain import GateClass, GateDecision, PairDecision, Run, Status, Verdict
from harness.gate.decide import decide
from harness.gate.policy import GatePolicy
from harness.gate.store import Stored, StoredResults, stored_from_run

EXIT_REGRESSED, EXIT_LESS_PRECISE, EXIT_MISSING, EXIT_INCOMPARABLE = 4, 5, 6, 7
EXIT_NO_BASELINE, EXIT_UNDECIDED = 8, 9

Remeasure = Callable[[Sequence[str]], Sequence[Verdict]]
"""Evaluates the pairs of some names once more, and returns their verdicts."""


def check(
    stored: StoredResults,
    run: Run,
    *,
    scope: Collection[str] | None = None,
    policy: GatePolicy | None = None,
    remeasure: Remeasure | None = None,
) -> tuple[GateDecision, Run]:
    """Return the gate's decision, and the run with the pairs that were measured again.

    A pair that is slower or undecided is measured once more before the decision. Both measurements
    count. Other failures are final at once: every run draws new inputs, so a second run that passes
    proves nothing.

    Args:
        stored: the baseline.
        run: the new run.
        scope: stored pairs that the run should cover; None is all of them.
        policy: thresholds; None is the default.
        remeasure: evaluates pairs again; None measures nothing again.
    """
    policy = policy or GatePolicy()
    runs = {name: [one] for name, one in stored_from_run(run).pairs.items()}
    decisions = _decide_all(stored, runs, scope, policy)
    again = [d.pair for d in decisions.values() if _suspicious(d)]
    if again and remeasure is not None:
        fresh = dataclasses.replace(run, verdicts=tuple(remeasure(again)))
        for name, one in stored_from_run(fresh).pairs.items():
            runs[name].append(one)
        decisions = _decide_all(stored, runs, scope, policy)
    verdicts = tuple(_noted([one.verdict for one in runs[v.pair]]) for v in run.verdicts)
    decision = GateDecision(
        baseline=stored.source,
        pairs=tuple(decisions[name] for name in sorted(decisions)),
        exit_code=exit_code(decisions.values()),
    )
    return decision, dataclasses.replace(run, verdicts=verdicts, gate=decision)


def _decide_all(
    stored: StoredResults,
    runs: dict[str, list[Stored]],
    scope: Collection[str] | None,
    policy: GatePolicy,
) -> dict[str, PairDecision]:
    decisions = {}
    for name, measured in runs.items():
        if name in stored.pairs:
            decisions[name] = decide(stored.pairs[name], measured, policy)
        else:
            decisions[name] = _unknown(measured[-1].verdict, stored)
    for name in stored.pairs:
        if name not in decisions and (scope is None or name in scope):
            decisions[name] = PairDecision(
                pair=name,
                gate_class=GateClass.MISSING,
                what="pair",
                reason="the baseline has this pair, this run has not. Next: restore the pair, or "
                "remove its entry with --update-baseline over all pairs",
                before=stored.pairs[name].verdict.speed.speedup,
            )
    return decisions


def _unknown(verdict: Verdict, stored: StoredResults) -> PairDecision:
    """Return the decision for a pair without an entry, which never passes."""
    failed = verdict.status not in (Status.PASSED, Status.SKIPPED)
    return PairDecision(
        pair=verdict.pair,
        gate_class=GateClass.REGRESSED if failed else GateClass.NO_BASELINE,
        what="status" if failed else "",
        reason=f"{verdict.status.value}: {verdict.message}"
        if failed
        else f"{stored.source} has no entry for this pair. Next: --update-baseline",
        after=verdict.speed.speedup,
    )


def _suspicious(decision: PairDecision) -> bool:
    """Return whether a second measurement may change the decision.

    Each run chooses the shape of a measurement, throughput or latency, anew. So a shape that
    differs from the stored one may be an accident.
    """
    return decision.what == "shape" or (
        decision.what == "speed"
        and decision.gate_class in (GateClass.REGRESSED, GateClass.UNDECIDED)
    )


def _noted(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the latest verdict, with a note on the ones before it."""
    latest = verdicts[-1]
    if len(verdicts) == 1:
        return latest
    earlier = ", ".join(
        "untimed" if v.speed.speedup is None else f"{v.speed.speedup:.3f}x" for v in verdicts[:-1]
    )
    note = f"the gate measured this pair again; speedup before: {earlier}"
    return dataclasses.replace(latest, notes=(*latest.notes, note))


_BY_PROPERTY = {"status": 1, "speed": EXIT_REGRESSED}
_BY_CLASS = {
    GateClass.MISSING: EXIT_MISSING,
    GateClass.INCOMPARABLE: EXIT_INCOMPARABLE,
    GateClass.NO_BASELINE: EXIT_NO_BASELINE,
    GateClass.UNDECIDED: EXIT_UNDECIDED,
}


def exit_code(decisions: Collection[PairDecision]) -> int:
    """Return the exit code for some decisions: the lowest non-zero code of one of them."""
    codes = {0}
    for decision in decisions:
        if decision.gate_class is GateClass.REGRESSED:
            codes.add(_BY_PROPERTY.get(decision.what, EXIT_LESS_PRECISE))
        else:
            codes.add(_BY_CLASS.get(decision.gate_class, 0))
    return min(codes - {0}, default=0)
