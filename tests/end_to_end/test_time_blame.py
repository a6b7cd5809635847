"""What fails while it is timed is blamed on whoever failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.domain import Options, Pair, SpeedOutcome, Status, Verdict
from harness.fleet import JudgeServer, run_pairs

REFERENCE = """
import os
import torch
class Model(torch.nn.Module):
    def forward(self, x):
        {act}
        return x + 1
def get_inputs():
    return [torch.randn(64, 64)]
"""
SOLUTION = """
import os
import sys
import torch
class ModelNew(torch.nn.Module):
    def forward(self, x):
        {act}
        return x + 1
"""
DIES_IN_WORKER = "if os.environ.get('LOGNAME') == 'worker': os._exit(7)"


def timed(
    judges: JudgeServer, folder: Path, reference: str, solution: str, **changes: object
) -> Verdict:
    folder.chmod(0o755)
    (folder / "reference.py").write_text(REFERENCE.format(act=reference))
    (folder / "solution.py").write_text(SOLUTION.format(act=solution))
    pair = Pair(name="p/s", problem=folder / "reference.py", solution=folder / "solution.py")
    options = Options(device="cpu", quick=True, **changes)  # type: ignore[arg-type]
    (verdict,) = run_pairs([pair], options, judges=judges)
    return verdict


@pytest.mark.slow
def test_reference_that_dies_while_it_is_timed_is_the_problems_fault(
    tmp_path: Path, judges: JudgeServer
) -> None:
    verdict = timed(judges, tmp_path, DIES_IN_WORKER, "pass")
    assert verdict.status is Status.INVALID_REFERENCE, verdict.message
    assert "while it was timed" in verdict.message


@pytest.mark.slow
def test_candidate_that_dies_while_it_is_timed_has_crashed(
    tmp_path: Path, judges: JudgeServer
) -> None:
    act = "f = sys._getframe()\n" + " " * 8
    act += "while f is not None and f.f_code.co_name != 'do_go': f = f.f_back\n" + " " * 8
    act += "if f is not None: os._exit(7)"
    verdict = timed(judges, tmp_path, "pass", act)
    assert verdict.status is Status.CRASHED, verdict.message


@pytest.mark.slow
def test_baseline_that_fails_is_named_and_hides_nothing(
    tmp_path: Path, judges: JudgeServer
) -> None:
    compiled = "if 'compiled' in os.environ.get('TORCHINDUCTOR_CACHE_DIR', ''): os._exit(9)"
    verdict = timed(judges, tmp_path, compiled, "pass", baselines=("compile",))
    assert verdict.status is Status.PASSED, verdict.message
    assert verdict.speed.speedup is not None
    (baseline,) = verdict.speed.baselines
    assert baseline.name == "torch.compile"
    assert baseline.outcome is SpeedOutcome.UNTIMED
    assert baseline.speedup is None
    assert "exited with code 9" in baseline.note
