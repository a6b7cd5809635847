"""What the shipped pairs were to reach on one H200, beside what a run measured.

    python benchmarks/targets.py                  evaluates all pairs at full size, then the table
    python benchmarks/targets.py run.json ...     the table of stored runs, the last one counts

Goals are shares of the bound and speedups over eager and over torch.compile, float32, cold L2. A
goal is met when the measured figure, or the upper end of its interval, reaches it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tabulate import tabulate  # noqa: E402

from harness.domain import Run, Verdict, run_from_json  # noqa: E402


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table: share of the bound, speedup over eager, over torch.compile."""

    pair: str
    share: float
    eager: float
    compiled: float


GOALS = (
    Goal("batchnorm2d_inference/solution", 0.97, 1.45, 1.0),
    Goal("batchnorm2d_frozen_autograd/solution", 0.90, 5.5, 1.25),
    Goal("batchnorm2d_training/hopper", 0.90, 3.8, 1.35),
    Goal("groupnorm/hopper", 0.90, 2.3, 1.4),
    Goal("gemm_scale_batchnorm/hopper", 0.70, 3.7, 3.7),
    Goal("gemm_scale_batchnorm/tf32", 0.90, 1.2, 1.0),
    Goal("elementwise_add/solution", 0.97, 1.0, 1.0),
)


def main(argv: list[str]) -> int:
    if argv:
        runs = [run_from_json_file(Path(name)) for name in argv]
    else:
        with tempfile.TemporaryDirectory() as folder:
            stored = Path(folder) / "run.json"
            command = [sys.executable, str(ROOT / "run_eval.py"), "--device", "cuda"]
            subprocess.run([*command, "--json", str(stored)], cwd=ROOT, check=False)
            runs = [run_from_json_file(stored)]
    verdicts = {v.pair: v for run in runs for v in run.verdicts if v.speed.speedup is not None}
    rows = [line(goal, verdicts.get(goal.pair)) for goal in GOALS]
    head = [
        "pair",
        "status",
        "ms",
        "of bound",
        "goal",
        "over eager",
        "goal",
        "over compile",
        "goal",
    ]
    print(tabulate(rows, [*head, "missed"], tablefmt="github", disable_numparse=True))
    return 0 if all(row[-1] == "" for row in rows) else 1


def run_from_json_file(path: Path) -> Run:
    return run_from_json(json.loads(path.read_text(encoding="utf-8")))


def line(goal: Goal, verdict: Verdict | None) -> list[str]:
    """Return one row; its last cell names what was missed."""
    goals = [f"{goal.share:.0%}", f"{goal.eager}x", f"{goal.compiled}x"]
    if verdict is None:
        return [goal.pair, "-", "-", "-", goals[0], "-", goals[1], "-", goals[2], "not measured"]
    speed = verdict.speed
    share = speed.bound.share if speed.bound else 0.0
    compiled = next((b for b in speed.baselines if b.name == "torch.compile"), None)
    missed = []
    if share < goal.share:
        missed.append("bound")
    if (speed.high or 0.0) < goal.eager:
        missed.append("eager")
    if compiled is None or (compiled.high or 0.0) < goal.compiled:
        missed.append("compile")
    return [
        goal.pair,
        verdict.status.value,
        f"{speed.candidate_ms:.4g}",
        f"{share:.0%}",
        goals[0],
        interval(speed.speedup, speed.low, speed.high),
        goals[1],
        interval(compiled.speedup, compiled.low, compiled.high) if compiled else "-",
        goals[2],
        ", ".join(missed),
    ]


def interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.2f}x [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
