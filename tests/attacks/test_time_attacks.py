"""Attacks on the clock: whoever cheats only while it is timed is found out, or gains nothing.

``tests/corpus/timing`` holds them beside the honest solution they pretend to beat. Each tells
a timed batch by the harness's own frames, so it behaves in all checked calls. On a GPU
``benchmarks/bench_clock.py`` runs all of them; here those that can run on the CPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.domain import Options, Pair, SpeedOutcome, Status, Verdict
from harness.fleet import JudgeServer, run_pairs

FOLDER = Path(__file__).parents[1] / "corpus" / "timing"
FULL = os.environ.get("CORPUS") == "full"
OTHERS = {"problem", "product", "short", "works_ahead", "adds_ahead", "naps_alone"}
"""Not solutions, or of another problem."""
ATTACKS = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if path.stem not in OTHERS
    and not path.stem.startswith("running")
    and not path.read_text().startswith("# device: cuda")
)
EVERY_TIME = {
    "answers_when_asked",
    "describes_nothing",
    "skips_some",
    "slows_the_reference",
    "spoils_the_inputs",
    "wakes_itself",
    "writes_over_its_input",
}
FOUND_OUT = {
    "answers_when_asked",
    "calls_it_a_gradient",
    "describes_nothing",
    "cached_by_pointer",
    "cached_by_shape",
    "half_the_rows",
    "lower_precision",
    "refines_afterwards",
    "skips_some",
    "spoils_the_inputs",
    "wakes_itself",
    "writes_over_its_input",
}
TAMPERED = {"describes_nothing", "wakes_itself"}
EITHER = {"thread_fills_in"}
"""On a loaded machine its threads may be done before anyone looks: the clock has waited too."""
BOUND = 1.15
"""A CPU shared with others is noisy; on a GPU the bound is the one that the verdict states."""

ATTEMPTS = 3
"""While a machine is busy with other things nothing is decided: an evaluation is UNDECIDED then."""


def timed(name: str, judges: JudgeServer) -> Verdict:
    """Evaluate one of the folder's solutions on the CPU, briefly."""
    pair = Pair(name=name, problem=FOLDER / "problem.py", solution=FOLDER / f"{name}.py")
    (verdict,) = run_pairs([pair], Options(device="cpu", quick=True), judges=judges)
    return verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", [a for a in ATTACKS if FULL or a in EVERY_TIME])
def test_attack_gains_nothing(name: str, judges: JudgeServer) -> None:
    verdict = timed(name, judges)
    told = f"{verdict.status.value}: {verdict.message}; {verdict.speed.speedup}"
    if name in FOUND_OUT or (name in EITHER and verdict.status is not Status.PASSED):
        assert verdict.status not in (Status.PASSED, Status.HARNESS_ERROR), told
        assert (verdict.status is Status.TAMPERED) == (name in TAMPERED), told
        assert verdict.speed.speedup is None
    else:
        assert verdict.status is Status.PASSED, told
        assert verdict.speed.low is not None
        assert verdict.speed.low < BOUND, told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("honest", Status.PASSED, ""),
        ("skips_its_state", Status.WRONG_STATE, "state average is not the reference's"),
        ("stale_number", Status.WRONG_VALUES, "a timed call gives "),
        ("one_stale_of_many", Status.WRONG_VALUES, "was not there when"),
    ],
)
def test_all_that_a_timed_call_leaves_is_looked_at(
    name: str, status: Status, said: str, judges: JudgeServer
) -> None:
    """The state after the calls, numbers among the outputs, any of a hundred tensors."""
    solution = FOLDER / f"running_{name}.py"
    pair = Pair(name=name, problem=FOLDER / "running.py", solution=solution)
    (verdict,) = run_pairs([pair], Options(device="cpu", quick=True, size="full"), judges=judges)
    assert verdict.status is status, verdict.message
    assert said in verdict.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "name", "size"),
    [
        ("product", "works_ahead", "small"),
        ("product", "works_ahead", "tiny"),
        ("short", "adds_ahead", "full"),
    ],
)
def test_who_works_ahead_is_judged_by_isolated_calls(
    problem: str, name: str, size: str, judges: JudgeServer
) -> None:
    """All inputs of a batch lie there at *go*: many rows cost hardly more than one."""
    pair = Pair(name=name, problem=FOLDER / f"{problem}.py", solution=FOLDER / f"{name}.py")
    for _ in range(ATTEMPTS):
        (verdict,) = run_pairs([pair], Options(device="cpu", quick=True, size=size), judges=judges)
        assert verdict.status is Status.PASSED, verdict.message
        speed = verdict.speed
        assert speed.low is not None
        told = f"{speed.shape} {speed.outcome.value} {speed.speedup} [{speed.low}, {speed.high}]"
        assert speed.outcome is not SpeedOutcome.FASTER or speed.low < BOUND, told
        if speed.shape == "latency":
            break
    assert speed.shape == "latency", told
    assert "batched calls overlap" in speed.note
    assert speed.low < BOUND, told


@pytest.mark.slow
def test_slow_isolated_calls_of_its_choice_leave_it_open(judges: JudgeServer) -> None:
    pair = Pair(name="naps_alone", problem=FOLDER / "product.py", solution=FOLDER / "naps_alone.py")
    (verdict,) = run_pairs([pair], Options(device="cpu", size="small", cap_s=3.0), judges=judges)
    speed = verdict.speed
    assert verdict.status is Status.PASSED, verdict.message
    assert speed.outcome is SpeedOutcome.UNDECIDED, speed.note
    assert speed.shape == "latency" and "leave open" in speed.note
    assert speed.speedup is not None and speed.speedup < BOUND


SHORT = """
import sys
import torch
class Model(torch.nn.Module):
    def forward(self, a, b):
        return a + b
def get_inputs():
    return [torch.randn(1, 128), torch.randn(1, 128)]
def timed(by="do_go"):
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != by:
        frame = frame.f_back
    return frame is not None
def alone():
    return timed("do_alone")
class ModelNew(torch.nn.Module):
    calls, last = 0, None
    def forward(self, a, b):
        {act}
        return a + b
"""


RANDOM = """
import sys
import torch
class Model(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(torch.tanh(x), 0.5, training=True)
def get_inputs():
    return [torch.randn(4, 4096)]
def timed():
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "do_go":
        frame = frame.f_back
    return frame is not None
class ModelNew(torch.nn.Module):
    def forward(self, x):
        if timed():
            {act}
        return torch.nn.functional.dropout(torch.tanh(x), 0.5, training=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("pass", Status.PASSED),
        ("return torch.empty_like(x)", Status.WRONG_VALUES),
        ("return torch.tanh(x)", Status.WRONG_VALUES),  # as large, on the whole
    ],
)
def test_what_a_reference_draws_is_drawn_again(
    act: str, expected: Status, tmp_path: Path, judges: JudgeServer
) -> None:
    """Each timed call has a seed of its own: nobody need be taken at their word for dropout."""
    tmp_path.chmod(0o755)
    file = tmp_path / "both.py"
    file.write_text(RANDOM.format(act=act))
    pair = Pair(name="random", problem=file, solution=file)
    (verdict,) = run_pairs([pair], Options(device="cpu", quick=True), judges=judges)
    assert verdict.status is expected, verdict.message
    if expected is not Status.PASSED:
        assert verdict.message.startswith("in a timed batch"), verdict.message


SKIPS_IN_BLOCKS = """\
self.calls += 1
        if self.calls % 20 or self.calls < 6000 or not timed():
            self.last = a + b
        return self.last"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("pass", Status.PASSED),
        # Not before blocks are measured: what is timed there is checked after the block, against
        # inputs that are gone by then.
        (SKIPS_IN_BLOCKS, Status.WRONG_VALUES),
        ("if timed(): return a.add_(b)", Status.INPUT_MUTATED),
        # Isolated calls are checked as whole batches are.
        ("if alone(): return torch.empty_like(a)", Status.WRONG_VALUES),
        ("if alone(): return (a.half() + b.half()).float()", Status.PRECISION_LOST),
        ("if alone(): return a.add_(b)", Status.INPUT_MUTATED),
        ("if alone(): raise ValueError('alone')", Status.CRASHED),
    ],
)
def test_short_calls_are_looked_at_too(
    act: str, expected: Status, tmp_path: Path, judges: JudgeServer
) -> None:
    tmp_path.chmod(0o755)
    file = tmp_path / "both.py"
    file.write_text(SHORT.format(act=act))
    pair = Pair(name="short", problem=file, solution=file)
    (verdict,) = run_pairs([pair], Options(device="cpu", quick=True), judges=judges)
    assert verdict.status is expected, verdict.message
    if expected is Status.PASSED:
        assert verdict.speed.reference_ms is not None
        assert verdict.speed.reference_ms < 0.04, "too slow to be a short call: the test is void"
        batch_ms = verdict.speed.reference_ms * verdict.speed.calls_per_batch
        assert batch_ms < 25.0, "batches of short calls are short"
    else:
        when = ("in a timed batch", "during time latency")
        assert verdict.message.startswith(when), verdict.message
