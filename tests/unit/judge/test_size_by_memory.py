"""The largest size that fits into a device's memory; a smaller one where memory runs out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.domain import Options, Pair, Refusal, UsageError
from harness.judge.policy import Policy
from harness.judge.reference.reduce import footprint
from harness.judge.size import Sizes, need_bytes
from harness.pairs.settings import constants_of, read_settings

UNIT = 1 << 16
PROBLEM = """
import torch
ROWS = 256
COLUMNS = 256
class Model(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)
def get_inputs():
    return [torch.randn(ROWS, COLUMNS)]
"""
NAMED = PROBLEM + 'SETTINGS = {"sizes": {"half": {"ROWS": 128}, "tiny": {"ROWS": 2}}}\n'
SOLUTION = """
import torch
class ModelNew(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)
"""
POLICY = Policy(
    memory_fixed_bytes=0,
    memory_states=1.0,
    memory_inputs=1.0,
    memory_outputs=0.0,
    memory_calls=1.0,
    memory_overdraft=1.0,
)
"""The full size, four units in and four out, then needs eight."""


LARGE = """
import torch
N = 16777216

class Model(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)

def get_inputs():
    return [torch.rand(N)]
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


def sizes(pair: Pair, policy: Policy = POLICY, **more: Any) -> Sizes:
    at_most = more.pop("at_most_bytes", None)
    options = Options(device="cuda:0", **more)
    settings = read_settings(pair.problem)
    return Sizes(pair, options, settings, policy, train=False, at_most_bytes=at_most)


# --- what a call takes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "held"),
    [
        ("return torch.relu(x)", 4),
        ("return torch.relu(x).sum()", 4),
        ("y = x + 1; z = y + 1; del y; return z.sum()", 8),
        ("return (x + 1)[:1]", 4),
        ("return x.sum()", 0),
        ("return x.view(-1)", 0),
    ],
)
def test_footprint_is_what_lives_at_once(
    write: Callable[..., Pair], forward: str, held: int
) -> None:
    found = footprint(write(PROBLEM.replace("return torch.relu(x)", forward)).problem, {})
    assert found is not None
    assert (found.state_bytes, found.input_bytes) == (0, 4 * UNIT)
    assert held * UNIT <= found.call_bytes < held * UNIT + 1024


def test_footprint_of_a_gradient_call_holds_what_backward_needs(
    write: Callable[..., Pair],
) -> None:
    path = write(PROBLEM.replace("relu(x)", "exp(torch.exp(x))")).problem
    forward, train = footprint(path, {}), footprint(path, {}, train=True)
    assert forward is not None and train is not None
    assert train.call_bytes >= forward.call_bytes + 4 * UNIT


def test_footprint_of_what_does_not_run_on_meta_tensors_is_unknown(
    write: Callable[..., Pair],
) -> None:
    for forward in ("return x[x > 0]", "return x * float(x.sum())", "raise SystemExit"):
        assert footprint(write(PROBLEM.replace("return torch.relu(x)", forward)).problem, {}) is (
            None
        )


# --- which size ------------------------------------------------------------------------------


def test_full_is_chosen_where_it_fits(write: Callable[..., Pair]) -> None:
    chosen = sizes(write(NAMED)).choose(8 * UNIT)
    assert (chosen.name, chosen.overrides, chosen.note) == ("full", {}, "")
    assert chosen.need_bytes == 8 * UNIT


def test_full_does_not_flap_where_builds_of_other_pairs_hold_some_memory(
    write: Callable[..., Pair],
) -> None:
    lenient = dataclasses.replace(POLICY, memory_overdraft=1.1)
    assert sizes(write(NAMED), lenient).choose(int(7.5 * UNIT)).name == "full"
    assert sizes(write(NAMED), lenient).choose(7 * UNIT).name == "half"
    tried = sizes(write(NAMED), lenient, at_most_bytes=4 * UNIT)
    assert tried.choose(8 * UNIT).name == "half"


def test_largest_named_size_that_fits_is_chosen(write: Callable[..., Pair]) -> None:
    chosen = sizes(write(NAMED)).choose(8 * UNIT - 1)
    assert (chosen.name, chosen.overrides) == ("half", {"ROWS": 128})
    assert chosen.note == "size half: full needs about 0.0 GiB, 0.0 GiB are free"


def test_named_size_for_quick_checks_gives_way_to_a_halved_one(write: Callable[..., Pair]) -> None:
    chosen = sizes(write(NAMED)).choose(3 * UNIT)
    assert chosen.name in ("ROWS=128,COLUMNS=128", "COLUMNS=64", "ROWS=64")
    assert chosen.need_bytes is not None and 3 * UNIT / 8 < chosen.need_bytes <= 3 * UNIT


def test_size_without_names_is_halved_and_can_be_asked_for_again(
    write: Callable[..., Pair],
) -> None:
    pair = write()
    chosen = sizes(pair).choose(5 * UNIT)
    assert constants_of(chosen.name) == chosen.overrides
    again = sizes(pair, size=chosen.name).choose(5 * UNIT)
    assert again.overrides == chosen.overrides


def test_small_is_small_where_no_size_fits(write: Callable[..., Pair]) -> None:
    """The full size ran under the name of the small one, and ran out of memory again."""
    pair = write(LARGE)
    chosen = sizes(pair).choose(1)
    assert chosen.name == "small"
    assert chosen.overrides == sizes(pair, size="small").choose(1).overrides != {}


def test_problem_that_cannot_be_measured_is_tried_at_full_size(write: Callable[..., Pair]) -> None:
    pair = write(PROBLEM.replace("torch.relu(x)", "x[x > 0]"))
    assert sizes(pair).choose(1).name == "full"


def test_size_that_the_user_asks_for_is_not_second_guessed(write: Callable[..., Pair]) -> None:
    assert sizes(write(), size="full").choose(1).name == "full"
    assert sizes(write(NAMED), size="tiny").choose(1 << 40).name == "tiny"
    assert sizes(write(NAMED), quick=True).choose(1 << 40).name == "small"


def test_size_that_does_not_exist_is_said(write: Callable[..., Pair]) -> None:
    with pytest.raises(UsageError, match="no size 'huge'"):
        sizes(write(), size="huge").choose(None)
    with pytest.raises(Refusal, match="assigns no value to WIDTH"):
        sizes(write(), size="WIDTH=3").choose(None)


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("rows=64", {"rows": 64}),
        ("rows=64,shape=(2,3)", {"rows": 64, "shape": (2, 3)}),
        ("small", None),
        ("odd-2", None),
        ("rows=f(1)", None),
        ("rows=1)+(2", None),
        ("**{}", None),
        ("", None),
    ],
)
def test_constants_of_a_size(text: str, constants: dict[str, Any] | None) -> None:
    assert constants_of(text) == constants


def test_full_sizes_of_the_ten_pairs_fit_an_h200() -> None:
    """They are measured there; the estimate must not be so careful that they are not."""
    for problem in sorted(Path(__file__).parents[3].glob("problems/*/reference.py")):
        train = "train" in read_settings(problem).modes
        found = footprint(problem, {}, train)
        assert found is not None and need_bytes(found, Policy()) < 138 << 30, problem
