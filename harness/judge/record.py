"""Makes the record of a verdict from the facts that the judge found out about a pair."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.domain import Check, Finding, KernelProfile, Options, Pair, Speed, Status, Verdict
from harness.judge.check import answers, diagnose
from harness.judge.check.precision import worst_precision

_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))
"""All control characters but tab and line feed: a solution's text must not control a terminal."""


@dataclass(slots=True)
class Facts:
    """Facts that the judge collects for the verdict."""

    phases: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    numeric_flags: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    state_match: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    launches: int | None = None
    report: answers.Report | None = None
    speed: Speed = field(default_factory=Speed)
    ncu: tuple[KernelProfile, ...] = ()
    reproducer: str | None = None
    size: str = ""
    modes: tuple[str, ...] = ()
    peak: dict[str, int] = field(default_factory=dict)


def verdict(
    facts: Facts,
    pair: Pair,
    options: Options,
    seed: int,
    log: Path,
    status: Status,
    message: str,
) -> Verdict:
    """Return the record of a pair from the collected facts."""
    report = facts.report
    checks: tuple[Check, ...] = tuple(report.checks.values()) if report else ()
    notes = list(facts.notes)
    if report:
        notes += report.notes
        if report.dropped:
            notes.append("variants dropped: " + ", ".join(dict.fromkeys(report.dropped)))
    outputs = [c.max_abs_diff for c in checks if c.what.startswith("output")]
    known = [d for d in outputs if d is not None]
    facts.peak["judge"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    warnings = [*facts.warnings, *(report.warnings if report else ())]
    if status is not Status.PASSED:
        message, warnings = diagnose.advised(status, message, options.device), []
    speed = facts.speed if status is Status.PASSED else Speed()
    if speed.speedup is None and not speed.note:
        why = "emulated: correctness only" if options.device == "emulated" else "not measured"
        speed = Speed(note=why)
    return Verdict(
        pair=pair.name,
        status=status,
        message=message.translate(_CONTROL),
        seed=seed,
        device=options.device,
        size=facts.size,
        modes=facts.modes,
        phases=facts.phases,
        checks=checks,
        max_abs_diff=max(known) if known else None,
        precision=worst_precision(report.precisions) if report else None,
        state_match=facts.state_match,
        findings=tuple(facts.findings[:20]),
        notes=tuple(notes),
        warnings=tuple(w.translate(_CONTROL) for w in dict.fromkeys(warnings)),
        numeric_flags=facts.numeric_flags,
        launches=facts.launches,
        speed=speed,
        ncu=facts.ncu,
        reproducer=facts.reproducer,
        log=str(log),
        peak_bytes=facts.peak,
        problem_hash=hashlib.sha256(pair.problem.read_bytes()).hexdigest(),
        solution_hash=hashlib.sha256(pair.solution.read_bytes()).hexdigest(),
    )
