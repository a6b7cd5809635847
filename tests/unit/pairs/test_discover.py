"""Pairs are found on disk, chosen by globs, and nobody's code is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.domain import Pair, UsageError
from harness.pairs.discover import discover, pair_from_files, select

MakePair = Callable[..., Pair]


def names(root: Path, *patterns: str) -> list[str]:
    return [pair.name for pair in select(discover(root).pairs, patterns)]


@pytest.fixture
def tree(tmp_path: Path, make_pair: MakePair) -> Path:
    make_pair("gemm/hopper")
    make_pair("gemm/solution")
    make_pair("gemm/ampere")
    make_pair("batchnorm2d_training/solution", reference="raise SystemExit\n")
    make_pair("batchnorm2d_inference/solution", solution="raise SystemExit\n")
    (tmp_path / "solutions" / "gemm" / "helpers.py").write_text("# ModelNew is elsewhere\n")
    (tmp_path / "solutions" / "gemm" / "_draft.py").write_text("class ModelNew: ...\n")
    (tmp_path / "solutions" / "gemm" / "typo.py").write_text("class ModelNew(:\n")
    (tmp_path / "solutions" / "gemm" / "alias.py").write_text("from x import Y as ModelNew\n")
    return tmp_path


def test_first_solution_leads_and_helpers_are_no_pairs(tree: Path) -> None:
    assert names(tree) == [
        "batchnorm2d_inference/solution",
        "batchnorm2d_training/solution",
        "gemm/solution",
        "gemm/alias",
        "gemm/ampere",
        "gemm/hopper",
        "gemm/typo",
    ]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("gemm", 5),
        ("gemm/", 5),
        ("batchnorm*", 2),
        ("gemm/hopper", 1),
        ("*/solution", 3),
        ("g?mm/[ah]*", 3),
    ],
)
def test_globs_choose(tree: Path, pattern: str, count: int) -> None:
    assert len(names(tree, pattern)) == count


def test_several_patterns_choose_each_pair_once(tree: Path) -> None:
    assert names(tree, "gemm/solution", "gemm/s*", "*training") == [
        "gemm/solution",
        "batchnorm2d_training/solution",
    ]


def test_pairs_come_in_the_order_of_the_patterns(tree: Path) -> None:
    assert names(tree, "gemm/hopper", "batchnorm*", "gemm/[as]*") == [
        "gemm/hopper",
        "batchnorm2d_inference/solution",
        "batchnorm2d_training/solution",
        "gemm/solution",
        "gemm/alias",
        "gemm/ampere",
    ]


def test_pattern_without_a_match_names_the_nearest(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"'gem'.*did you mean gemm"):
        names(tree, "gemm", "gem")


def test_half_a_pair_is_a_warning(tree: Path) -> None:
    (tree / "problems" / "empty").mkdir()
    (tree / "problems" / "lonely").mkdir()
    (tree / "problems" / "lonely" / "reference.py").write_text("")
    (tree / "solutions" / "orphan").mkdir()
    (tree / "solutions" / "orphan" / "solution.py").write_text("class ModelNew: ...\n")
    warnings = "\n".join(discover(tree).warnings)
    assert "no reference.py" in warnings
    assert "has no solution in solutions/lonely/" in warnings
    assert "no problems/orphan/reference.py" in warnings


def test_folder_without_problems_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--new NAME"):
        discover(tmp_path)


def test_any_two_files_are_a_pair(tmp_path: Path, make_pair: MakePair) -> None:
    problem, solution = tmp_path / "1_Square matmul.py", tmp_path / "mine.py"
    problem.write_text("")
    solution.write_text("")
    pair = pair_from_files(problem, solution)
    assert pair.name == "1_Square_matmul/mine"
    assert pair.problem == problem
    own = make_pair("gemm/hopper")
    assert pair_from_files(own.problem, own.solution) == own


def test_missing_file_or_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("")
    with pytest.raises(UsageError, match="no such solution file"):
        pair_from_files(tmp_path / "p.py", tmp_path / "s.py")
    with pytest.raises(UsageError, match="is a folder"):
        pair_from_files(tmp_path, tmp_path / "p.py")
