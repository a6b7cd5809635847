"""The seed of a run does not stand in /proc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOW = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from harness.cli.secret import hide_seed
hide_seed()
print(Path("/proc/self/cmdline").read_bytes().split(b"\\0")[3:], sys.argv[1:])
"""


@pytest.mark.parametrize("arguments", [["--seed", "12345"], ["--seed=12345"], ["--see", "12345"]])
def test_the_seed_is_taken_off_the_command_line(arguments: list[str]) -> None:
    command = [sys.executable, "-c", SHOW.format(root=str(ROOT)), "pair", *arguments, "-v"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    shown, _, kept = done.stdout.partition("] [")
    assert "12345" not in shown
    assert "pair" in shown and "-v" in shown
    assert "12345" in kept, "the program itself has lost it"


def test_other_arguments_stay() -> None:
    command = [sys.executable, "-c", SHOW.format(root=str(ROOT)), "--jobs", "12345"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.count("12345") == 2
