"""``--new``: the skeleton of a pair evaluates as it stands, and overwrites nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.domain import Status, UsageError
from harness.pairs.discover import discover
from harness.pairs.new_pair import write_pair
from harness.pairs.settings import read_settings

ROOT = Path(__file__).parents[2]


def test_new_pair_on_a_read_only_file_system_is_one_clear_line() -> None:
    with pytest.raises(UsageError, match=r"cannot be written: .*Next: --root FOLDER"):
        write_pair("my_pair", Path("/proc"))


def test_new_pair_is_found_and_has_settings(tmp_path: Path) -> None:
    said = write_pair("scaled_relu", tmp_path)
    (pair,) = discover(tmp_path).pairs
    assert pair.name == "scaled_relu/solution"
    assert str(pair.solution) in said
    assert {"small", "odd"} <= read_settings(pair.problem).sizes.keys()
    assert "NAME" not in pair.solution.read_text() + pair.problem.read_text()
    ast.parse(pair.solution.read_text())


def test_new_pair_is_clean(tmp_path: Path) -> None:
    write_pair("scaled_relu", tmp_path)
    for command in (["check", "--extend-ignore", "D103"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("existing", ["problems/x/reference.py", "solutions/x/solution.py"])
def test_new_pair_overwrites_nothing(tmp_path: Path, existing: str) -> None:
    path = tmp_path / existing
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UsageError, match="overwrites nothing"):
        write_pair("x", tmp_path)
    assert path.read_text() == "mine"
    assert list(tmp_path.rglob("*.py")) == [path]


@pytest.mark.parametrize("name", ["", "X", "1x", "a-b", "../x", "a b"])
def test_name_that_cannot_name_a_kernel_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="lower-case"):
        write_pair(name, tmp_path)


def test_new_pair_is_short(tmp_path: Path) -> None:
    """It is the first kernel that a user reads."""
    write_pair("scaled_relu", tmp_path)
    (pair,) = discover(tmp_path).pairs
    assert len(pair.solution.read_text().splitlines()) <= 65


@pytest.mark.slow
def test_new_pair_passes(tmp_path: Path) -> None:
    write_pair("scaled_relu", tmp_path)
    (pair,) = discover(tmp_path).pairs
    verdict = harness.evaluate(
        pair.problem,
        pair.solution,
        device="emulated",
        quick=True,
        timed=False,
        timeout_s=180,
        log_dir=tmp_path / "logs",
    )
    assert (verdict.status, verdict.message) == (Status.PASSED, "")
