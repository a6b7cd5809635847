"""The replay command repeats an evaluation: no option that matters is lost."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from harness.cli import main as cli
from harness.domain import Options, Pair
from harness.fleet.replay import NOT_REPLAYED, replay_command
from harness.machine.environment import PROJECT_ROOT

PAIR = Pair(name="p/s", problem=Path("/x/p.py"), solution=Path("/x/s.py"))
OTHER = {
    "device": "cuda:1",
    "mode": "eval",
    "size": "ROWS=3,SHAPE=(2,3)",
    "quick": True,
    "seed": 2**62 + 1,
    "timeout_s": 12.5,
    "time_limit_s": 1234567.0,
    "baselines": ("eager", "compile"),
    "precision": "tf32",
    "warm_l2": True,
    "cap_s": 0.1,
    "ncu": True,
    "nvcc": ("sm_80", "sm_90a"),
    "fast_headers": False,
    "thread_orders": ("shuffled",),
    "memory_bytes": 12345678901,
}
"""For each option that a replay must repeat, a value that is not its default."""


@pytest.fixture(autouse=True)
def nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_nvcc", lambda: Path("/usr/bin/nvcc"))
    monkeypatch.setattr(cli, "nvcc_architectures", lambda nvcc: ("sm_80", "sm_90"))


def parsed(command: str) -> Options:
    """Return the options that the command line understands from a command."""
    program, script, *words = shlex.split(command)
    assert (program, script) == ("python", "run_eval.py")
    return cli._options(cli._parser().parse_args(words))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Options)])
def test_every_option_is_replayed_or_listed_as_without_effect(field: str) -> None:
    assert (field in OTHER) != (field in NOT_REPLAYED), f"{field}: replay it, or list it"
    if field in OTHER:
        options = dataclasses.replace(Options(), **{field: OTHER[field]})
        assert options != Options()
        assert parsed(replay_command(PAIR, options)) == options


def test_all_options_together_are_replayed() -> None:
    options = dataclasses.replace(Options(), **OTHER)
    assert parsed(replay_command(PAIR, options)) == options


def test_default_options_need_no_words() -> None:
    command = replay_command(PAIR, Options())
    assert command == "python run_eval.py --problem /x/p.py --solution /x/s.py"


@pytest.mark.parametrize("root", [PROJECT_ROOT, Path("/elsewhere")])
def test_pair_of_a_root_is_named(root: Path) -> None:
    pair = Pair(
        name="add/fast@small",
        problem=root / "problems" / "add" / "reference.py",
        solution=root / "solutions" / "add" / "fast.py",
    )
    command = replay_command(pair, Options(seed=1))
    rooted = "" if root == PROJECT_ROOT else "--root /elsewhere "
    assert command == f"python run_eval.py add/fast {rooted}--seed 1"


def test_file_at_the_top_of_the_disk_is_replayed_by_its_path() -> None:
    pair = Pair(name="p/s", problem=Path("/p.py"), solution=Path("/s.py"))
    assert "--problem /p.py --solution /s.py" in replay_command(pair, Options())
