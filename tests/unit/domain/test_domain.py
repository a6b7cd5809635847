"""Records survive JSON, and a record that cannot be true is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from harness.domain import (
    Baseline,
    Blame,
    Bound,
    Check,
    Finding,
    HarnessError,
    KernelProfile,
    Speed,
    SpeedOutcome,
    Status,
    Verdict,
    to_json,
    verdict_from_json,
)

PASSED = Verdict(
    pair="p/s",
    status=Status.PASSED,
    seed=2**62 + 1,
    modes=("eval", "train"),
    phases={"build": 1.5, "check": 2},
    checks=(
        Check(
            phase="eval/3:signs",
            what="output",
            max_abs_diff=float("inf"),
            error=None,
            budget=1e-7,
            precision="fp32",
        ),
    ),
    findings=(Finding(kind="data race", message="two threads", block=(1, 2, 3), line=7),),
    notes=("small size",),
    launches=3,
    speed=Speed(
        outcome=SpeedOutcome.FASTER,
        speedup=2.0,
        low=1.9,
        high=2.1,
        baselines=(
            Baseline(name="torch.compile", outcome=SpeedOutcome.SAME, speedup=1.0),
            Baseline(name="torch.compile max-autotune-no-cudagraphs", note="raised"),
        ),
        bound=Bound(bound_ms=1.5, share=0.75, moved_bytes=1 << 30, copy_gb_s=4257.0),
        gpu={"temperature_c": [40, 55]},
        blocks={"reference": (2.0, 2.1), "candidate": (1.0, 1.0)},
    ),
    ncu=(
        KernelProfile(
            name="void norm<4>(float const*, int)",
            duration_ms=1.25,
            dram_read_bytes=1 << 33,
            dram_write_bytes=5,
            occupancy=0.5,
            registers=40,
            stall="long scoreboard",
            stall_cycles=12.5,
        ),
        KernelProfile(name="unknown"),
    ),
    peak_bytes={"judge": 1 << 30},
)


def test_verdict_survives_json() -> None:
    assert verdict_from_json(json.loads(json.dumps(to_json(PASSED), allow_nan=False))) == PASSED


def test_verdict_from_before_nsight_compute_is_still_read() -> None:
    plain = to_json(PASSED)
    del plain["ncu"]
    assert verdict_from_json(plain) == dataclasses.replace(PASSED, ncu=())


def test_every_status_has_a_blame_and_survives_json() -> None:
    for status in Status:
        verdict = Verdict(pair="p/s", status=status)
        plain = to_json(verdict)
        assert plain["blame"] == status.blame.value
        assert verdict_from_json(plain) == verdict
    quiet = {status for status in Status if status.blame is Blame.NOBODY}
    assert quiet == {Status.PASSED, Status.SKIPPED}


def test_failed_verdict_cannot_carry_a_speedup() -> None:
    with pytest.raises(HarnessError, match="cannot carry a speedup"):
        dataclasses.replace(PASSED, status=Status.WRONG_VALUES)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "PERFECT"},
        {"pair": None},
        {"surprise": 1},
        {"message": 5},
        {"speed": {"outcome": "LUDICROUS"}},
        {"speed": {"speedup": "fast"}},
        {"speed": {"bound": {"share": 1.0}}},
        {"speed": {"baselines": [{"name": "torch.compile"}]}},
        {"speed": {"blocks": [1, 2]}},
        {"checks": [{"phase": "eval"}]},
        {"findings": [7]},
        {"status": "WRONG_VALUES"},
    ],
)
def test_impossible_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(HarnessError):
        verdict_from_json({**to_json(PASSED), **change})


def test_record_without_a_status_is_refused() -> None:
    with pytest.raises(HarnessError, match="status"):
        verdict_from_json({"pair": "p/s"})
