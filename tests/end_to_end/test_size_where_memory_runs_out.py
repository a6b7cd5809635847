"""A pair for which memory runs out is judged at a smaller size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.domain import Options, Pair, Status, Verdict
from harness.judge import judge as judge_module
from harness.judge.check.checker import Checker
from harness.judge.judge import judged
from harness.pairs.settings import read_settings
from tests.unit.judge.test_size_by_memory import NAMED, POLICY, PROBLEM, SOLUTION, UNIT

GREEDY = """
import torch
class ModelNew(torch.nn.Module):
    def forward(self, x):
        if x.numel() > LIMIT:
            raise RuntimeError("CUDA out of memory. Tried to allocate 64 GiB")
        return torch.relu(x)
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Pair]:
    def write(problem: str = PROBLEM, solution: str = SOLUTION) -> Pair:
        (tmp_path / "reference.py").write_text(problem)
        (tmp_path / "solution.py").write_text(solution)
        tmp_path.chmod(0o755)
        return Pair(
            name="p/s", problem=tmp_path / "reference.py", solution=tmp_path / "solution.py"
        )

    return write


def judge_it(tmp_path: Path, pair: Pair, **options: Any) -> Verdict:
    options = {"device": "cpu", "timed": False, "seed": 1, **options}
    return judged(
        pair,
        Options(**options),
        read_settings(pair.problem),
        tmp_path / "log",
        lambda *args, **fields: None,
        lambda what, need_bytes: None,
        POLICY,
    )


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let the judge run out of memory on inputs above a limit of elements; count how often."""
    seen = {"limit": 0, "times": 0}
    original = Checker._validate

    def validate(checker: Checker, trial: Any) -> None:
        if checker._problem.inputs(1)[0].numel() > seen["limit"]:
            seen["times"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(checker, trial)

    monkeypatch.setattr(Checker, "_validate", validate)
    return seen


def test_pair_is_judged_again_at_half_of_what_did_not_suffice(
    write: Callable[..., Pair], tmp_path: Path, scarce: dict[str, int]
) -> None:
    scarce["limit"] = 1 << 15
    verdict = judge_it(tmp_path, write(NAMED), memory_bytes=16 * UNIT)
    assert (verdict.status, verdict.size, scarce["times"]) == (Status.PASSED, "half", 1)
    assert "memory ran out at a larger size" in verdict.notes[0]


def test_pair_for_which_memory_never_suffices_is_skipped(
    write: Callable[..., Pair], tmp_path: Path, scarce: dict[str, int]
) -> None:
    verdict = judge_it(tmp_path, write(), memory_bytes=16 * UNIT)
    assert verdict.status is Status.SKIPPED
    assert verdict.message.endswith("Next: --size small")
    assert scarce["times"] == 1 + POLICY.smaller_sizes


def test_size_that_the_user_chose_is_not_changed(
    write: Callable[..., Pair], tmp_path: Path, scarce: dict[str, int]
) -> None:
    verdict = judge_it(tmp_path, write(), size="full", memory_bytes=16 * UNIT)
    assert (verdict.status, verdict.size, scarce["times"]) == (Status.SKIPPED, "full", 1)


def test_unmeasurable_problem_falls_back_to_its_small_size(
    write: Callable[..., Pair], tmp_path: Path, scarce: dict[str, int]
) -> None:
    scarce["limit"] = 1 << 15
    problem = NAMED.replace("torch.relu(x)", "x[x > 0]").replace("tiny", "small")
    solution = SOLUTION.replace("torch.relu(x)", "x[x > 0]")
    verdict = judge_it(tmp_path, write(problem, solution), memory_bytes=16 * UNIT)
    assert verdict.size == "small" and verdict.status is not Status.HARNESS_ERROR


def test_candidate_that_takes_too_much_where_there_is_room_is_out_of_memory(
    write: Callable[..., Pair], tmp_path: Path
) -> None:
    pair = write(NAMED, GREEDY.replace("LIMIT", "0"))
    verdict = judge_it(tmp_path, pair, memory_bytes=16 * UNIT)
    assert (verdict.status, verdict.size) == (Status.OUT_OF_MEMORY, "full")


def test_candidate_that_runs_out_where_memory_is_tight_is_judged_at_a_smaller_size(
    write: Callable[..., Pair], tmp_path: Path
) -> None:
    pair = write(NAMED, GREEDY.replace("LIMIT", str(1 << 15)))
    verdict = judge_it(tmp_path, pair, memory_bytes=15 * UNIT)
    assert (verdict.status, verdict.size) == (Status.PASSED, "half")


def test_candidate_that_runs_out_at_the_smaller_size_too_is_out_of_memory(
    write: Callable[..., Pair], tmp_path: Path
) -> None:
    pair = write(NAMED, GREEDY.replace("LIMIT", "0"))
    verdict = judge_it(tmp_path, pair, memory_bytes=15 * UNIT)
    assert (verdict.status, verdict.size) == (Status.OUT_OF_MEMORY, "half")


def test_size_is_chosen_again_where_others_hold_memory_by_then(
    write: Callable[..., Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_module.size, "free_bytes", lambda options, device: 7 * UNIT)
    verdict = judge_it(tmp_path, write(NAMED), memory_bytes=16 * UNIT)
    assert (verdict.status, verdict.size) == (Status.PASSED, "half")
