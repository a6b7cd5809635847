"""Problem files in KernelBench's form, unmodified: the same operators pass, a planted fault fails.

Our own problems (``tests/corpus/kernelbench_style``) are always run. Those of KernelBench itself
are run where the environment variable ``KERNELBENCH_DIR`` names the folder that holds ``level1``
and ``level2``::

    git clone https://github.com/ScalingIntelligence/KernelBench
    KERNELBENCH_DIR=KernelBench/KernelBench \
        python -m pytest tests/end_to_end/test_kernelbench_style.py
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.kernelbench_table import KERNELBENCH, OWN, Entry, faulty_solution
from benchmarks.own_code import own_solution
from harness import Blame, Status, Verdict, evaluate
from harness.fleet import JudgeServer

OWN_FOLDER = Path(__file__).parents[1] / "corpus" / "kernelbench_style"
KERNELBENCH_FOLDER = os.environ.get("KERNELBENCH_DIR", "")
SIDE_BY_SIDE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One problem with one solution."""

    folder: str
    entry: Entry
    faulty: bool

    @property
    def name(self) -> str:
        return f"{Path(self.entry.path).with_suffix('')}-{'faulty' if self.faulty else 'plain'}"

    @property
    def problem(self) -> Path:
        return Path(self.folder) / self.entry.path


def cases() -> list[pytest.param]:
    """Return all cases; those of KernelBench are skipped where it is not there."""
    found = []
    for folder, entries in ((str(OWN_FOLDER), OWN), (KERNELBENCH_FOLDER, KERNELBENCH)):
        absent = pytest.mark.skip(
            reason="KERNELBENCH_DIR does not name the folder of KernelBench's level1 and level2"
        )
        for entry in entries:
            for faulty in (False, True):
                case = Case(folder=folder, entry=entry, faulty=faulty)
                marks = [] if folder else [absent]
                found.append(pytest.param(case, id=case.name, marks=marks))
    return found


@pytest.fixture(scope="session")
def verdict_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, judges: JudgeServer
) -> Iterator[Callable[[Case], Verdict]]:
    """Evaluate all selected cases, two at a time, and return the verdict of one on demand."""
    folder = tmp_path_factory.mktemp("solutions")

    def run(case: Case) -> Verdict:
        source = case.problem.read_text()
        solution = folder / f"{case.name.replace('/', '-')}.py"
        solution.write_text(
            faulty_solution(source, case.entry.fault) if case.faulty else own_solution(source)
        )
        return evaluate(
            case.problem, solution, device="cpu", size="small", timed=False, judges=judges
        )

    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == Path(__file__) and hasattr(item, "callspec")
    ]
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures = {c.name: pool.submit(run, c) for c in chosen if c.folder}
        yield lambda case: futures[case.name].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", cases())
def test_unmodified_problem_tells_right_from_wrong(
    case: Case, verdict_of: Callable[[Case], Verdict]
) -> None:
    verdict = verdict_of(case)
    told = f"{verdict.status.value}: {verdict.message}\nnotes: {verdict.notes}"
    if case.faulty:
        assert verdict.blame is Blame.SOLUTION, told
        assert verdict.status in (Status.WRONG_VALUES, Status.PRECISION_LOST), told
        assert "Next:" in verdict.message, told
    else:
        assert verdict.status is Status.PASSED, told
        assert verdict.checks, told


def test_table_names_at_least_twenty_files_of_both_levels() -> None:
    paths = [entry.path for entry in KERNELBENCH]
    assert len(set(paths)) == len(paths) >= 20
    assert {path.split("/")[0] for path in paths} == {"level1", "level2"}


def test_own_problems_are_all_in_the_table() -> None:
    assert {e.path for e in OWN} == {p.name for p in OWN_FOLDER.glob("*.py")}
    assert len(OWN) >= 8


def test_planted_fault_changes_the_solution_only_where_it_is_planted() -> None:
    for entry in OWN:
        source = (OWN_FOLDER / entry.path).read_text()
        assert faulty_solution(source, entry.fault) != own_solution(source)
