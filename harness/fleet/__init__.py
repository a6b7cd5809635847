"""Decides which pair runs where and when. Starts judges as processes; imports no judge."""

from __future__ import annotations

from harness.fleet.devices import Plan, make_plan
from harness.fleet.judge_process import Deadlines
from harness.fleet.judge_server import JUDGE_COMMAND, JudgeServer
from harness.fleet.run import Interrupted, Listener, run_pairs

__all__ = [
    "JUDGE_COMMAND",
    "Deadlines",
    "Interrupted",
    "JudgeServer",
    "Listener",
    "Plan",
    "make_plan",
    "run_pairs",
]
