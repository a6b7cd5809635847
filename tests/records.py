"""Fabricated runs: two timed pairs on an H200, and what a change to them looks like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from harness.domain import Check, Run, Speed, SpeedOutcome, Status, Verdict

H200: Mapping[str, Any] = {
    "harness": "0.1.0",
    "commit": "0" * 40,
    "date": "2026-11-21T08:15:08+00:00",
    "gpu": ["NVIDIA H200"],
    "driver": "580.159.04",
    "torch": "2.11.0+cu130",
    "cuda": "13.0",
    "cpu": "Intel(R) Xeon(R) Processor",
    "cores": 16,
    "python": "3.12.3",
}


def speed(speedup: float, *, half_width: float = 0.003, **more: Any) -> Speed:
    """Return a measurement whose interval is the speedup +- half_width, relative."""
    return Speed(
        outcome=SpeedOutcome.FASTER,
        speedup=speedup,
        low=speedup * (1 - half_width),
        high=speedup * (1 + half_width),
        reference_ms=3.0,
        candidate_ms=3.0 / speedup,
        batches=20,
        calls_per_batch=10,
        **more,
    )


def check(what: str = "output", share: float = 0.02, precision: str = "fp32") -> Check:
    return Check(
        phase="eval/3:signs",
        what=what,
        max_abs_diff=1e-6,
        error=share * 1e-4,
        budget=1e-4,
        precision=precision,
    )


def verdict(pair: str = "norm/solution", **more: Any) -> Verdict:
    given: dict[str, Any] = {
        "pair": pair,
        "status": Status.PASSED,
        "seed": 7,
        "device": "cuda:0",
        "size": "full",
        "modes": ("eval",),
        "checks": (check(),),
        "max_abs_diff": 1e-6,
        "precision": "fp32",
        "launches": 2,
        "speed": speed(1.62),
        "problem_hash": "a" * 64,
        "solution_hash": "b" * 64,
        **more,
    }
    if given["status"] is not Status.PASSED:
        given["speed"] = Speed()
    return Verdict(**given)


def run(*verdicts: Verdict, **more: Any) -> Run:
    return Run(verdicts=verdicts, environment=H200, source="stored.json", **more)


def with_environment(given: Run, **changes: Any) -> Run:
    return dataclasses.replace(given, environment={**given.environment, **changes})


def emulated(given: Sequence[Verdict]) -> tuple[Verdict, ...]:
    return tuple(dataclasses.replace(v, device="emulated", speed=Speed()) for v in given)
