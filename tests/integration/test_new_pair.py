"""``--new``: the skeleton of a pair evaluates as it stands, and overwrites nothing."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.cli.main import main
from harness.domain import Status, UsageError
from harness.pairs.discover import discover
from harness.pairs.new_pair import write_pair
from harness.pairs.settings import read_settings

ROOT = Path(__file__).parents[2]


def test_new_pair_on_a_read_only_file_system_is_one_clear_line() -> None:
    with pytest.raises(UsageError, match=r"cannot be written: .*Next: --root FOLDER"):
        write_pair("my_pair", Path("/proc"))


def test_new_pair_is_found_and_has_settings(tmp_path: Path) -> None:
    written = write_pair("scaled_relu", tmp_path)
    (pair,) = discover(tmp_path).pairs
    assert pair.name == "scaled_relu/solution"
    assert written == (pair.problem, pair.solution)
    assert {"small", "odd"} <= read_settings(pair.problem).sizes.keys()
    assert "NAME" not in pair.solution.read_text() + pair.problem.read_text()
    ast.parse(pair.solution.read_text())


def test_next_command_finds_the_new_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my pairs").mkdir()
    assert main(["--new", "scaled_relu", "--root", "my pairs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    commands = re.findall(r"python run_eval\.py (.*?)(?=; |$)", said.partition("next: ")[2])
    assert len(commands) == 2
    for command in commands:
        argv = [a for a in shlex.split(command) if a != "--update-baseline"]
        assert main([*argv, "--list"]) == 0
        assert capsys.readouterr().out == "scaled_relu/solution\n"


def test_advice_on_an_empty_root_names_that_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for make in (lambda: None, (tmp_path / "problems").mkdir):
        make()
        assert main(["--root", str(tmp_path)]) == 2
        assert f"run_eval.py --new NAME --root {tmp_path}" in capsys.readouterr().err


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
