"""``make``: when .venv is made, filled again or left alone. A script plays the interpreter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Plays python3: makes a .venv whose python plays itself, and keeps a diary of what it is asked.
INTERPRETER = """\
#!/bin/sh
echo "$@" >> "{diary}"
case "$*" in
    "-c import sys; sys.exit(sys.version_info < (3, 10))") exit {old} ;;
    "-m venv --clear .venv")
        mkdir -p .venv/bin && cp "$0" .venv/bin/python && touch .venv/pip-works ;;
    "-m pip --version") test -e .venv/pip-works ;;
    --version) echo Python 3.11.7 ;;
    *"pip install"*) test ! -e pip-fails ;;
esac
"""


class Tree:
    """A checkout with a Makefile, a lock file and an interpreter that plays its part."""

    def __init__(self, root: Path, *, old: int = 0) -> None:
        self.root = root
        self._diary = root / "diary"
        self._python = root / "python3"
        self._python.write_text(INTERPRETER.format(diary=self._diary, old=old))
        self._python.chmod(0o755)
        shutil.copy(ROOT / "Makefile", root)
        (root / "requirements.lock").write_text("torch==2.13.0\n")

    def make(self, *arguments: str) -> tuple[int, str, str]:
        """Return make's exit code, what it said, and what the interpreter was asked."""
        self._diary.write_text("")
        done = subprocess.run(
            ["make", f"PYTHON={self._python}", *arguments],
            cwd=self.root,
            env={**os.environ, "MAKEFLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, self._diary.read_text()


def test_environment_is_made_once_and_filled_again_when_the_lock_changes(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    code, _, asked = tree.make("eval", "ARGS=groupnorm --quick")
    assert code == 0
    assert "-m venv" in asked
    assert "pip install" in asked
    assert asked.endswith("run_eval.py groupnorm --quick\n")

    _, _, asked = tree.make("eval")
    assert "venv" not in asked
    assert "pip" not in asked

    (tmp_path / "requirements.lock").write_text("torch==2.14.0\n")
    _, _, asked = tree.make("test")
    assert "-m venv" not in asked
    assert "pip install" in asked
    assert "-m pytest" in asked


def test_environment_that_does_not_run_is_made_anew(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.make("eval")
    (tmp_path / ".venv" / "bin" / "python").unlink()
    (tmp_path / ".venv" / "pip-works").unlink()
    code, _, asked = tree.make("eval")
    assert code == 0
    assert "-m venv" in asked


def test_failed_installation_is_tried_again(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tmp_path / "pip-fails").touch()
    code, said, _ = tree.make("eval")
    assert code != 0
    assert "make: pip could not install the packages into .venv" in said
    (tmp_path / "pip-fails").unlink()
    code, _, asked = tree.make("eval")
    assert code == 0
    assert "pip install" in asked


def test_old_interpreter_is_one_clear_line(tmp_path: Path) -> None:
    code, said, asked = Tree(tmp_path, old=1).make("eval")
    assert code != 0
    assert "older than Python 3.10" in said
    assert "venv" not in asked


def test_make_alone_lists_what_there_is(tmp_path: Path) -> None:
    code, said, _ = Tree(tmp_path).make()
    assert code == 0
    for target in ("eval", "test", "check", "bench", "clean"):
        assert f"make {target}" in said


def test_clean_removes_what_was_made(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.make("eval")
    (tmp_path / "results").mkdir()
    assert tree.make("clean")[0] == 0
    assert not (tmp_path / ".venv").exists()
    assert not (tmp_path / "results").exists()


def test_lock_pins_every_line() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    for pin in pins:
        assert re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.11")?', pin), pin
