"""Attacks on the clock: whoever cheats only while it is timed is found out, or gains nothing.

``tests/fixtures/timing`` holds them beside the honest solution they pretend to beat. Each tells
a timed batch by the harness's own frames, so it behaves in all checked calls. On a GPU
``tests/bench_clock.py`` runs all of them; here those that can run on the CPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.domain import Options, Pair, Status, Verdict
from harness.fleet import run_pairs

FOLDER = Path(__file__).parent / "fixtures" / "timing"
FULL = os.environ.get("CORPUS") == "full"
ATTACKS = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if path.stem != "problem" and not path.read_text().startswith("# device: cuda")
)
EVERY_TIME = {
    "answers_when_asked",
    "describes_nothing",
    "skips_some",
    "slows_the_reference",
    "spoils_the_inputs",
    "wakes_itself",
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
    "wakes_itself",
}
TAMPERED = {"describes_nothing", "wakes_itself"}
EITHER = {"thread_fills_in"}
"""On a loaded machine its threads may be done before anyone looks: the clock has waited too."""
BOUND = 1.15
"""A CPU shared with others is noisy; on a GPU the bound is the one that the verdict states."""


def timed(solution: Path, size: str = "small") -> Verdict:
    """Evaluate a solution of the folder's problem on the CPU, briefly."""
    pair = Pair(name=solution.stem, problem=FOLDER / "problem.py", solution=solution)
    (verdict,) = run_pairs([pair], Options(device="cpu", quick=True, size=size))
    return verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", [a for a in ATTACKS if FULL or a in EVERY_TIME])
def test_attack_gains_nothing(name: str) -> None:
    verdict = timed(FOLDER / f"{name}.py")
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
def test_who_skips_calls_in_blocks_of_short_calls_is_found_out(tmp_path: Path) -> None:
    """What is timed there is checked after the block, against inputs that are gone by then."""
    text = (FOLDER / "skips_some.py").read_text()
    in_blocks = text.replace("self.calls % 8 == 0", "self.calls > 6000 and self.calls % 8 == 0")
    assert in_blocks != text
    tmp_path.chmod(0o755)
    solution = tmp_path / "skips_in_blocks.py"
    solution.write_text(in_blocks)
    verdict = timed(solution, "tiny")
    assert verdict.status is Status.WRONG_VALUES, verdict.message
    assert verdict.message.startswith("in a timed batch"), verdict.message
    honest = timed(FOLDER / "honest.py", "tiny")
    assert honest.status is Status.PASSED, honest.message
    assert honest.speed.calls_per_batch > 100, "the calls are not short"
