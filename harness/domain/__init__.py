"""Every record, enum and error of the harness. Imported by all rooms, imports none of them."""

from __future__ import annotations

from harness.domain.plain import (
    run_from_json,
    to_json,
    verdict_from_json,
)
from harness.domain.records import (
    Baseline,
    Bound,
    Check,
    Finding,
    GateDecision,
    KernelProfile,
    Options,
    Pair,
    PairDecision,
    Run,
    Speed,
    Verdict,
)
from harness.domain.statuses import (
    BASELINES,
    MEASUREMENT_VERSION,
    SCHEMA_VERSION,
    VERSION,
    Blame,
    BuildFailed,
    GateClass,
    HarnessError,
    SpeedOutcome,
    Status,
    Unsupported,
    UsageError,
)

__all__ = [
    "BASELINES",
    "MEASUREMENT_VERSION",
    "SCHEMA_VERSION",
    "VERSION",
    "Baseline",
    "Blame",
    "Bound",
    "BuildFailed",
    "Check",
    "Finding",
    "GateClass",
    "GateDecision",
    "HarnessError",
    "KernelProfile",
    "Options",
    "Pair",
    "PairDecision",
    "Run",
    "Speed",
    "SpeedOutcome",
    "Status",
    "Unsupported",
    "UsageError",
    "Verdict",
    "run_from_json",
    "to_json",
    "verdict_from_json",
]
