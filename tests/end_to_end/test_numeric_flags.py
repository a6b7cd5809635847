"""Judge and workers compute under the same numeric flags, and the record says which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness.domain import Options, Pair, Status, Verdict
from harness.fleet import JudgeServer, run_pairs

FIXTURES = Path(__file__).parents[1] / "corpus"


def evaluated(
    judges: JudgeServer, precision: str | None = None, baselines: tuple[str, ...] = ()
) -> Verdict:
    pair = Pair(
        name="add/solution",
        problem=FIXTURES / "problems" / "add.py",
        solution=FIXTURES / "outputs" / "honest" / "negative_bit.py",
    )
    options = Options(device="cpu", quick=True, cap_s=0.5, precision=precision, baselines=baselines)
    (verdict,) = run_pairs([pair], options, judges=judges)
    assert verdict.status is Status.PASSED, verdict.message
    return verdict


def test_every_process_of_a_pair_has_the_judges_flags(judges: JudgeServer) -> None:
    found = evaluated(judges).numeric_flags
    assert set(found) == {"judge", "reference", "candidate"}
    assert found["candidate"] == found["reference"] == found["judge"]
    assert found["judge"]["cudnn.allow_tf32"] is False
    assert found["judge"]["matmul.allow_tf32"] is False


def test_granted_tf32_reaches_the_workers_and_not_the_judge(judges: JudgeServer) -> None:
    verdict = evaluated(judges, "tf32", ("eager", "defaults"))
    found = verdict.numeric_flags
    assert found["reference"]["matmul.allow_tf32"] and found["candidate"]["cudnn.allow_tf32"]
    assert not found["judge"]["matmul.allow_tf32"] and not found["judge"]["cudnn.allow_tf32"]
    assert found["eager defaults"]["cudnn.allow_tf32"]
    assert not found["eager defaults"]["matmul.allow_tf32"]
    assert [b.name for b in verdict.speed.baselines] == ["eager defaults"]
    assert "--precision tf32" in verdict.replay


UNTOUCHED = """
import torch
from harness.usercode import numeric_flags
before = numeric_flags.flags()
numeric_flags.set_flags(numeric_flags.STRICT)
assert not numeric_flags.flags()["cudnn.allow_tf32"]
numeric_flags.set_flags(numeric_flags.DEFAULTS)
assert numeric_flags.flags() == before, before
"""


def test_defaults_are_those_of_an_untouched_torch() -> None:
    done = subprocess.run([sys.executable, "-c", UNTOUCHED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SETS_TF32 = """
import torch
torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = True
"""


def test_what_a_problem_sets_is_granted_to_nobody(tmp_path: Path, judges: JudgeServer) -> None:
    reference = tmp_path / "reference.py"
    text = (FIXTURES / "problems" / "add.py").read_text()
    reference.write_text(text.replace("import torch\n", SETS_TF32, 1))
    pair = Pair(
        name="add/solution",
        problem=reference,
        solution=FIXTURES / "outputs" / "honest" / "negative_bit.py",
    )
    (verdict,) = run_pairs([pair], Options(device="cpu", quick=True, cap_s=0.5), judges=judges)
    found = verdict.numeric_flags
    assert verdict.status is Status.PASSED, verdict.message
    assert not found["judge"]["matmul.allow_tf32"] and not found["judge"]["cudnn.allow_tf32"]
    assert found["reference"] == found["judge"]


CONTRADICTS = """
import torch
from harness.usercode import numeric_flags
torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "tf32"
numeric_flags.flags()
numeric_flags.set_flags(numeric_flags.STRICT)
assert numeric_flags.flags()["matmul.allow_tf32"] is False, numeric_flags.flags()
"""


def test_flags_set_by_newer_names_are_told_and_mended() -> None:
    """Reading one that old and new names contradict raises: an honest solution was LOAD_FAILED."""
    done = subprocess.run([sys.executable, "-c", CONTRADICTS], capture_output=True, text=True)
    assert done.returncode == 0 or "no attribute" in done.stderr, done.stderr
