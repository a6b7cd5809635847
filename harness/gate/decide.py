"""Compares one pair with its stored result: pure functions over records."""

from __future__ import annotations

from collections.abc import Sequence

from harness.domain import (
    Check,
    GateClass,
    HarnessError,
    PairDecision,
    SpeedOutcome,
    Status,
    Verdict,
)
from harness.gate.policy import PRECISIONS, GatePolicy, change_of, on_another_card
from harness.gate.store import Stored

_UPDATE = "Next: check the change, then --update-baseline"


def decide(stored: Stored, runs: Sequence[Stored], policy: GatePolicy) -> PairDecision:
    """Return the gate's decision about one pair.

    The order of the questions: does it fail now (that counts on any machine), can the results be
    compared, did status, findings, launches, precision or errors get worse, did the speedup change.

    Args:
        stored: its stored result: passed, or skipped because it cannot run there.
        runs: its measurements in this run, the latest last. There are several if the pair was
            measured again.
        policy: thresholds.
    """
    latest = runs[-1]
    verdict = latest.verdict
    count = len(runs)
    skipped = stored.verdict.status is Status.SKIPPED
    if verdict.status is Status.SKIPPED and skipped:
        said = f"SKIPPED, as in the baseline: {verdict.message}"
        return _say(verdict, GateClass.OK, "", said, count)
    if verdict.status is Status.SKIPPED:
        return _say(
            verdict,
            GateClass.MISSING,
            "status",
            f"stored as {stored.verdict.status.value}, now SKIPPED: {verdict.message}",
            count,
        )
    if verdict.status is not Status.PASSED:
        return _say(
            verdict,
            GateClass.REGRESSED,
            "status",
            f"stored as {stored.verdict.status.value}, now {verdict.status.value}: "
            f"{verdict.message}",
            count,
        )
    unlike = "" if skipped else _incomparable(stored, latest)
    if unlike:
        return _say(verdict, GateClass.INCOMPARABLE, "", unlike, count)
    if skipped:
        said = "stored as SKIPPED, now PASSED. Next: --update-baseline"
        return _say(verdict, GateClass.IMPROVED, "status", said, count)
    worse = _worse(stored.verdict, verdict, policy)
    if worse:
        what, reason = worse
        return _say(verdict, GateClass.REGRESSED, what, reason, count)
    return _speed(stored, runs, policy)


def _say(
    verdict: Verdict, gate_class: GateClass, what: str, reason: str, count: int
) -> PairDecision:
    return PairDecision(
        pair=verdict.pair,
        gate_class=gate_class,
        what=what,
        reason=reason,
        after=verdict.speed.speedup,
        measurements=count,
    )


def _incomparable(stored: Stored, latest: Stored) -> str:
    """Return why two results cannot be compared; empty if they can."""
    old, new = stored.verdict, latest.verdict
    if stored.device != latest.device:
        return (
            f"stored on {stored.device}, this run is on {latest.device}. Next: name the baseline "
            "of this device, or write one with --update-baseline"
        )
    if not old.problem_hash or not new.problem_hash:
        return "a result lacks the hash of the problem's file. Next: --update-baseline"
    if old.problem_hash != new.problem_hash:
        return f"the problem's file has changed since then. {_UPDATE}"
    for name, before, after in (("size", old.size, new.size), ("modes", old.modes, new.modes)):
        if before != after:
            return f"stored with {name} {_text(before)}, this run has {name} {_text(after)}"
    timed = SpeedOutcome.UNTIMED not in (old.speed.outcome, new.speed.outcome)
    if timed and stored.measurement_version != latest.measurement_version:
        return (
            f"stored with version {stored.measurement_version} of the measurement, this run has "
            f"version {latest.measurement_version}. Next: --update-baseline"
        )
    drivers = [_major(side.environment.get("driver")) for side in (stored, latest)]
    if timed and drivers[0] != drivers[1]:
        return f"stored with driver {drivers[0]}, this run has driver {drivers[1]}. {_UPDATE}"
    return ""


def _text(value: str | tuple[str, ...]) -> str:
    return (value if isinstance(value, str) else ", ".join(value)) or "none"


def _major(driver: object) -> str:
    return str(driver or "none").partition(".")[0]


def _worse(old: Verdict, new: Verdict, policy: GatePolicy) -> tuple[str, str] | None:
    """Return which property got worse and how, except the speed; None if none did."""
    known = {finding.kind for finding in old.findings}
    fresh = sorted({finding.kind for finding in new.findings} - known)
    if fresh:
        return "findings", f"the CPU runner has new findings: {', '.join(fresh)}"
    if old.launches and not new.launches:
        return "launches", f"stored with {old.launches} kernel launches, this run has none"
    if _rank(new.precision) > _rank(old.precision):
        return "precision", f"precision fell from {old.precision} to {new.precision or 'unknown'}"
    return _errors(old.checks, new.checks, policy)


def _rank(precision: str | None) -> int:
    """Return a precision's place in the order from the most precise; an unknown one comes last."""
    return PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)


def _errors(
    old: Sequence[Check], new: Sequence[Check], policy: GatePolicy
) -> tuple[str, str] | None:
    """Return the first tensor that is not checked any more, or whose error grew too much."""
    shares = {check.what: _share(check) for check in new}
    for before in old:
        tensor = before.what  # the mode and trial of the worst call differ from run to run
        if tensor not in shares:
            return "errors", f"the stored run checked {tensor}, and this run did not"
        share, stored = shares[tensor], _share(before)
        if share is None or stored is None or share <= policy.error_share:
            continue
        if share > policy.error_growth * stored:
            return (
                "errors",
                f"{tensor} uses {share:.0%} of its error budget, {stored:.2%} in the stored run",
            )
    return None


def _share(check: Check) -> float | None:
    if check.error is None or not check.budget:
        return None
    return check.error / check.budget


def _speed(stored: Stored, runs: Sequence[Stored], policy: GatePolicy) -> PairDecision:
    old, latest = stored.verdict, runs[-1].verdict
    count = len(runs)
    before, after = old.speed, latest.speed
    if before.outcome is SpeedOutcome.UNTIMED:
        also = "" if after.outcome is SpeedOutcome.UNTIMED else ". Next: --update-baseline"
        return _say(latest, GateClass.OK, "", f"the baseline has no time{also}", count)
    if after.outcome is SpeedOutcome.UNTIMED:
        reason = f"stored with a time, this run has none: {after.note or 'it gives no reason'}"
        return _say(latest, GateClass.MISSING, "speed", reason, count)
    alike = [run.verdict.speed for run in runs if run.verdict.speed.shape == before.shape]
    if not alike:
        reason = f"stored as {before.shape}, this run measured {after.shape}. {_UPDATE}"
        return _say(latest, GateClass.INCOMPARABLE, "shape", reason, count)
    try:
        change = change_of(before, alike, policy)
    except HarnessError as error:
        return _say(latest, GateClass.MISSING, "speed", f"the interval is unusable: {error}", count)
    elsewhere = on_another_card(before, alike)
    limit = policy.other_card_limit if elsewhere else policy.limit
    if change.high < -policy.slack:
        gate_class = GateClass.REGRESSED
    elif change.low <= -limit:
        gate_class = GateClass.UNDECIDED
    elif change.low > policy.slack:
        gate_class = GateClass.IMPROVED
    else:
        gate_class = GateClass.OK
    now = (before.speedup or 0.0) * (1 + change.change)
    said = f"speedup {_ratio(before.speedup)} -> {_ratio(now)}"
    reason = (
        f"{said}: {change.change:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
        f"{f', mean of {len(alike)} measurements' if len(alike) > 1 else ''}"
    )
    if gate_class is GateClass.UNDECIDED:
        reason += f"; the pair may be {limit:.0%} slower, and may be as fast as before"
    if elsewhere:
        reason += f"; stored on another card, so a change up to {limit:.0%} passes. {_UPDATE}"
    return PairDecision(
        pair=latest.pair,
        gate_class=gate_class,
        what="" if gate_class is GateClass.OK else "speed",
        reason=reason,
        before=before.speedup,
        after=now,
        change=change.change,
        low=change.low,
        high=change.high,
        measurements=count,
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}x"
