"""Compares a run with stored results. Reads records and runs nothing."""

from __future__ import annotations

from harness.gate.check import check, exit_code
from harness.gate.decide import decide
from harness.gate.policy import GatePolicy, change_of
from harness.gate.store import (
    BASELINE_SCHEMA,
    Stored,
    StoredResults,
    device_kind,
    read_results,
    stored_from_run,
    updated,
)

__all__ = [
    "BASELINE_SCHEMA",
    "GatePolicy",
    "Stored",
    "StoredResults",
    "change_of",
    "check",
    "decide",
    "device_kind",
    "exit_code",
    "read_results",
    "stored_from_run",
    "updated",
]
