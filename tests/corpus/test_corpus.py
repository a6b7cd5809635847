"""The corpus: what is wrong must be named, what is right must pass.

Each topic is a folder with its ``faulty`` solutions and, beside them, ``honest`` ones that do
something similar and must pass. ``problems`` holds the references that they answer. The comment
lines on top of a solution say what it is evaluated against and what must come out::

    # problem: linear                    a file of tests/corpus/problems
    # solution: kernels/sources/cpp.py   the solution itself, where the file is only its header
    # expect: WRONG_VALUES|CRASHED       PASSED where absent; two only where both are equally right
    # device: cpu                        cpu where absent, or emulated, or cuda
    # mode: train                        what evaluate's mode is set to
    # size: small                        what evaluate's size is set to
    # timeout: 4                         what evaluate's timeout_s is set to, in seconds
    # warns: text                        in one of the verdict's warnings; where absent, there are
                                         none but those with BY_CHANCE in them
    # may_warn: text                     the same, of a warning that comes by chance
    # tier: full                         only evaluated where CORPUS=full is set
    # why: one line

One evaluation costs about a second of processor time. One solution of each kind is evaluated by
default, and all of them by ``CORPUS=full make test``.

All selected solutions are evaluated side by side, two at a time; each test then looks at one.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import Blame, Status, Verdict, evaluate
from harness.fleet import JudgeServer

FOLDER = Path(__file__).parent
KEYS = {
    "problem",
    "solution",
    "expect",
    "device",
    "mode",
    "size",
    "timeout",
    "warns",
    "may_warn",
    "tier",
    "why",
}
FULL = os.environ.get("CORPUS") == "full"
SIDE_BY_SIDE = int(os.environ.get("CORPUS_JOBS", "2"))
LITTERERS = ("tampering/faulty/leftover_children", "tampering/faulty/many_children")
BY_CHANCE = "times the reference's own on inputs that the problem does not draw"
"""In a warning that depends on the seed: a bound of roundings is met by chance or not."""
CONTROL = {chr(c) for c in (*range(9), *range(11, 32), 127)}
SLEEPS = ("sleep 3322", "sleep 3344")
"""What the processes are called that fixtures try to leave behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One solution of the corpus and what its header says."""

    name: str
    solution: Path
    problem: Path
    expected: frozenset[Status]
    device: str = "cpu"
    mode: str | None = None
    size: str | None = None
    timeout_s: float = 30.0
    warns: str = ""
    may_warn: str = ""
    full_only: bool = False
    why: str = ""


def read_case(solution: Path) -> Case:
    """Return what a solution's header says; the file itself is never imported."""
    header: dict[str, str] = {}
    for line in solution.read_text().splitlines():
        key, colon, value = line.removeprefix("# ").partition(": ")
        if not line.startswith("# ") or not colon or key not in KEYS:
            break
        assert key not in header, f"{solution}: {key!r} is given twice"
        header[key] = value.strip()
    assert {"problem", "why"} <= header.keys(), f"{solution}: needs '# problem:' and '# why:'"
    return Case(
        name=str(solution.relative_to(FOLDER).with_suffix("")),
        solution=FOLDER / header["solution"] if "solution" in header else solution,
        problem=FOLDER / "problems" / f"{header['problem']}.py",
        expected=frozenset(Status[s] for s in header.get("expect", "PASSED").split("|")),
        device=header.get("device", "cpu"),
        mode=header.get("mode"),
        size=header.get("size"),
        timeout_s=float(header.get("timeout", 30)),
        warns=header.get("warns", ""),
        may_warn=header.get("may_warn", ""),
        full_only=header.get("tier") == "full",
        why=header["why"],
    )


NO_CASE = SimpleNamespace(params={})
CASES = [
    read_case(path)
    for kind in ("faulty", "honest")
    for path in sorted(FOLDER.glob(f"*/{kind}/*.py"))
]


def run(case: Case, judges: JudgeServer, seed: int | None = None) -> Verdict:
    """Evaluate one case as its header says."""
    return evaluate(
        case.problem,
        case.solution,
        device=case.device,
        mode=case.mode,
        size=case.size,
        timeout_s=case.timeout_s,
        timed=False,
        seed=seed,
        judges=judges,
    )


@pytest.fixture(scope="session")
def verdict_of(
    request: pytest.FixtureRequest, judges: JudgeServer
) -> Iterator[Callable[[Case], Verdict]]:
    """Start every case that was selected and return the verdict of one on demand."""
    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == Path(__file__) and "case" in getattr(item, "callspec", NO_CASE).params
    ]
    runnable = {c.name: c for c in chosen if c.device != "cuda" or torch.cuda.is_available()}
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures = {name: pool.submit(run, case, judges) for name, case in runnable.items()}
        yield lambda case: futures[case.name].result()
        pool.shutdown(cancel_futures=True)


def parameters() -> list[pytest.param]:
    """Return one parameter set per case; those that need a GPU carry its marker."""
    return [
        pytest.param(c, id=c.name, marks=[pytest.mark.gpu] if c.device == "cuda" else [])
        for c in CASES
        if FULL or not c.full_only
    ]


@pytest.mark.parametrize("seed", [5755037666728664772, 7120230214148110815])
def test_inputs_of_any_size_leave_their_rounding_in_what_lies_between(
    seed: int, judges: JudgeServer
) -> None:
    """exp(x - logsumexp(x)) rounds at the size of x, softmax at that of 1: both are float32."""
    (case,) = [c for c in CASES if c.name == "kernels/honest/mentions_cuda"]
    verdict = run(case, judges, seed)
    assert verdict.status is Status.PASSED, verdict.message


@pytest.mark.parametrize("case", parameters())
def test_corpus_gets_its_status(case: Case, verdict_of: Callable[[Case], Verdict]) -> None:
    if case.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    verdict = verdict_of(case)
    told = f"{verdict.status.value}: {verdict.message}\nwhy: {case.why}"
    assert verdict.status in case.expected, told
    if verdict.status is Status.PASSED:
        assert verdict.message == "", told
        assert verdict.blame is Blame.NOBODY
        assert verdict.checks, "a pass without a comparison is no pass"
        by_chance = [BY_CHANCE, *([case.may_warn] if case.may_warn else [])]
        certain = [w for w in verdict.warnings if not any(text in w for text in by_chance)]
        assert bool(certain) == bool(case.warns), verdict.warnings
        assert any(case.warns in warning for warning in certain or ("",))
    else:
        assert verdict.blame is next(iter(case.expected)).blame, told
        assert "Next:" in verdict.message, f"says no next step: {told}"
        if verdict.status is not Status.STATE_MISMATCHED:  # that one shows two lists side by side
            assert "\n" not in verdict.message, f"more than one line: {told}"
        assert len(verdict.message) < 4000, f"{len(verdict.message)} characters"
        assert not set(verdict.message) & CONTROL, f"control characters: {told!r}"
        assert verdict.speed.speedup is None
    assert verdict.seed or verdict.status is not Status.PASSED, "a pass must be replayable"


@pytest.mark.parametrize("case", [c for c in CASES if c.name in LITTERERS], ids=lambda c: c.name)
def test_corpus_leaves_no_process_behind(case: Case, verdict_of: Callable[[Case], Verdict]) -> None:
    verdict_of(case)
    deadline = time.monotonic() + 5
    while (left := _sleepers()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def _sleepers() -> list[str]:
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if command.endswith(SLEEPS):
            commands.append(f"{path.parent.name}: {command}")
    return commands


def test_corpus_covers_every_status_that_blames_somebody() -> None:
    cases = [case for case in CASES if not case.full_only]
    certain = {status for case in cases for status in case.expected if len(case.expected) == 1}
    possible = {status for case in cases for status in case.expected}
    wanted = {s for s in Status if s.blame in (Blame.SOLUTION, Blame.PROBLEM)}
    assert wanted <= possible
    assert wanted - certain <= {Status.TAMPERED}


def test_corpus_is_large_and_well_formed() -> None:
    faulty = [case for case in CASES if Status.PASSED not in case.expected]
    assert len(faulty) >= 80
    assert len(CASES) - len(faulty) >= 40
    for case in CASES:
        assert case.problem.is_file(), f"{case.name}: no such problem"
        assert len({status.blame for status in case.expected}) == 1, case.name
        assert ("/honest/" in case.name) == (case.expected == {Status.PASSED}), case.name


def test_corpus_names_no_problem_that_nobody_uses() -> None:
    used = {case.problem.stem for case in CASES}
    assert used == {path.stem for path in (FOLDER / "problems").glob("*.py")}
