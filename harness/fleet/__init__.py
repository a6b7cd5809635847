"""Decides which pair runs where and when. Starts judges as processes; imports no judge."""

from __future__ import annotations

from harness.fleet.devices import Plan, make_plan
from harness.fleet.judge_process import Deadlines
from harness.fleet.run import JUDGE_COMMAND, Interrupted, Listener, run_pairs

__all__ = [
    "JUDGE_COMMAND",
    "Deadlines",
    "Interrupted",
    "Listener",
    "Plan",
    "make_plan",
    "run_pairs",
]
