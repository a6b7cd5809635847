"""The fleet against a judge that dies, lies, hangs or leaves things behind."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.domain import Blame, Options, Pair, Status, UsageError, Verdict
from harness.fleet import Deadlines, make_plan, run_pairs
from tests.fake_judge import COMMAND as FAKE_JUDGE

SHORT = Deadlines(silence_s=0.8, problem_code_s=0.4, total_s=1.5)
LONG = Deadlines(silence_s=30, problem_code_s=30, total_s=60)

Run = Callable[..., dict[str, Verdict]]


@pytest.fixture
def run(tmp_path: Path, make_pair: Callable[..., Pair]) -> Run:
    """Return a function that runs parts of the fake judge and returns verdicts by part."""

    def run_parts(*parts: str, deadlines: Deadlines = LONG, **options: Any) -> dict[str, Verdict]:
        pairs = [make_pair(f"t/{part}") for part in parts]
        given = {"device": "emulated", "log_dir": tmp_path / "logs", **options}
        chosen = Options(**given)
        verdicts = run_pairs(
            pairs,
            chosen,
            judge_command=FAKE_JUDGE,
            deadlines=deadlines,
            plan=make_plan(chosen, len(pairs), lock_folder=tmp_path),
        )
        assert [verdict.pair for verdict in verdicts] == [pair.name for pair in pairs]
        return dict(zip(parts, verdicts, strict=True))

    return run_parts


def moments(tmp_path: Path) -> list[tuple[str, str]]:
    lines = (tmp_path / "logs" / "journal").read_text().splitlines()
    return [(json.loads(line)[0], json.loads(line)[1]) for line in lines]


def test_verdict_of_a_judge_is_returned_with_log_and_replay(run: Run) -> None:
    verdict = run("passes", seed=7)["passes"]
    assert verdict.status is Status.PASSED
    assert verdict.seed == 7
    assert "--seed 7" in verdict.replay
    assert "--device emulated" in verdict.replay
    assert verdict.log is not None
    assert Path(verdict.log).read_text() == "stderr of passes\n"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("dies_at_once", "exit code 3"),
        ("dies", "SIGSEGV"),
        ("exits_0", "exit code 0"),
        ("garbage", "PASSED, believe me"),
        ("unknown_event", "celebrate"),
        ("impossible", "cannot carry a speedup"),
        ("unknown_status", "PERFECT"),
        ("somebody_elses", "t/another"),
        ("dies_after_reference", "SIGSEGV"),
    ],
)
def test_judge_without_a_believable_verdict_is_a_harness_error(
    run: Run, part: str, said: str
) -> None:
    verdict = run(part)[part]
    assert verdict.status is Status.HARNESS_ERROR
    assert said in verdict.message
    assert verdict.log is not None
    assert "HARNESS_ERROR" in Path(verdict.log).read_text()


def test_judge_that_dies_in_the_references_code_blames_the_problem(run: Run) -> None:
    verdict = run("reference_dies")["reference_dies"]
    assert verdict.status is Status.INVALID_REFERENCE
    assert "SIGSEGV" in verdict.message


@pytest.mark.parametrize("part", ["leaves_a_deep_folder", "dies_in_a_folder", "hangs_in_a_folder"])
def test_nothing_temporary_stays_however_a_judge_ends(run: Run, part: str, tmp_path: Path) -> None:
    run(part, deadlines=SHORT if part == "hangs_in_a_folder" else LONG)
    folder = Path((tmp_path / "logs" / "temporary").read_text())
    assert folder.name.startswith("kernel-eval-judge-")
    assert not folder.exists()


def test_judge_killed_for_memory_blames_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = itertools.count()
    monkeypatch.setattr("harness.fleet.judge_process.oom_kills", lambda: next(kills))
    verdict = run("killed")["killed"]
    assert verdict.status is Status.SKIPPED
    assert "ran out of memory" in verdict.message


def test_judge_killed_by_its_problem_is_no_want_of_memory(run: Run) -> None:
    assert run("killed")["killed"].status is Status.INVALID_REFERENCE


@pytest.mark.parametrize(
    ("part", "said"),
    [("killed_by_solution", "killed (SIGKILL)"), ("stopped_by_solution", "stopped (SIGSTOP)")],
)
def test_judge_that_a_solution_of_its_own_user_signals_blames_the_solution(
    run: Run, part: str, said: str
) -> None:
    verdict = run(part, deadlines=dataclasses.replace(LONG, stopped_s=0.2))[part]
    assert verdict.status is Status.CRASHED
    assert verdict.blame is Blame.SOLUTION
    assert f"the judge was {said}" in verdict.message
    assert "Next:" in verdict.message


def test_judge_that_faults_beside_a_solution_is_a_harness_error(run: Run) -> None:
    part = "segfaults_beside_solution"
    assert run(part)[part].status is Status.HARNESS_ERROR


def test_judge_killed_for_memory_beside_a_solution_blames_nobody(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = itertools.count()
    monkeypatch.setattr("harness.fleet.judge_process.oom_kills", lambda: next(kills))
    assert run("killed_by_solution")["killed_by_solution"].status is Status.SKIPPED


def test_reference_that_hangs_in_the_judge_blames_the_problem(run: Run) -> None:
    verdict = run("reference_hangs", deadlines=SHORT)["reference_hangs"]
    assert verdict.status is Status.INVALID_REFERENCE
    assert "did not return within 0 s. Next" in verdict.message


def test_reference_that_outlasts_the_pairs_time_blames_the_problem(run: Run) -> None:
    part = "reference_runs_out_of_time"
    verdict = run(part)[part]
    assert verdict.status is Status.INVALID_REFERENCE
    assert "(300 s) was over while the reference ran" in verdict.message
    assert "--time-limit" in verdict.message


def test_time_of_the_reference_runs_while_its_code_does(run: Run) -> None:
    part = "candidate_takes_its_time"
    assert run(part)[part].status is Status.PASSED


def test_where_the_reference_hangs_is_said(run: Run) -> None:
    part = "reference_hangs_in_line_2"
    verdict = run(part, deadlines=SHORT)[part]
    assert verdict.status is Status.INVALID_REFERENCE
    assert "did not return within 0 s (line 2, in slow). Next" in verdict.message
    assert verdict.log is not None
    assert "most recent call first" in Path(verdict.log).read_text()


def test_a_judge_says_where_it_stands() -> None:
    judge = subprocess.Popen(
        [sys.executable, "-m", "harness.judge"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert judge.stderr is not None
    os.set_blocking(judge.stderr.fileno(), False)
    said, until = b"", time.monotonic() + 60
    try:
        while b"__main__.py" not in said and time.monotonic() < until:
            time.sleep(0.1)
            caught = int(proc_status(judge.pid, "SigCgt"), 16)
            if caught >> (signal.SIGUSR1 - 1) & 1:  # until then it would end by it
                judge.send_signal(signal.SIGUSR1)
            said += judge.stderr.read() or b""
    finally:
        judge.kill()
        judge.communicate()
    assert b"most recent call first" in said
    assert b"in main" in said


def proc_status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1] for line in lines if line.startswith(name))


@pytest.mark.parametrize("part", ["hangs", "hangs_and_will_not_go", "chatters"])
def test_judge_that_never_ends_is_ended(run: Run, part: str) -> None:
    began = time.monotonic()
    verdict = run(part, deadlines=SHORT)[part]
    assert verdict.status is Status.HARNESS_ERROR
    assert time.monotonic() - began < 8


def test_judge_that_lingers_after_its_verdict_keeps_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.fleet.judge_process._FAREWELL_S", 0.3)
    began = time.monotonic()
    assert run("lingers")["lingers"].status is Status.PASSED
    assert time.monotonic() - began < 8


def test_what_a_judge_leaves_behind_is_ended(run: Run, tmp_path: Path) -> None:
    assert run("leaves_a_child")["leaves_a_child"].status is Status.PASSED
    assert gone(int((tmp_path / "logs" / "child").read_text()))


def test_workers_in_sessions_of_their_own_end_with_a_hanging_judge(
    run: Run, tmp_path: Path
) -> None:
    run("hangs_with_a_worker", deadlines=SHORT)
    worker = int((tmp_path / "logs" / "child").read_text())
    assert gone(worker)
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if session == str(worker) and state != "Z":
                left.append(stat)
    assert not left


def gone(pid: int) -> bool:
    """Say whether a process ends within two seconds; one that nobody reaps counts as ended."""
    for _ in range(40):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_one_bad_judge_leaves_the_other_pairs_alone(run: Run) -> None:
    verdicts = run("passes", "dies", "garbage", "fast", "reference_dies", "wrong", jobs=3)
    assert {part: v.status.value for part, v in verdicts.items()} == {
        "passes": "PASSED",
        "dies": "HARNESS_ERROR",
        "garbage": "HARNESS_ERROR",
        "fast": "PASSED",
        "reference_dies": "INVALID_REFERENCE",
        "wrong": "WRONG_VALUES",
    }


def test_no_descriptor_and_no_thread_is_left(run: Run) -> None:
    run("passes")

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = held()
    run("passes", "dies", "garbage", jobs=2)
    assert held() == before


def test_timed_pairs_have_the_cpu_one_at_a_time(run: Run, tmp_path: Path) -> None:
    run("slow-1", "slow-2", "slow-3", device="cpu", jobs=3)
    holders: set[str] = set()
    for pair, what in moments(tmp_path):
        if what == "device":
            assert not holders, "two pairs measured at once"
            holders.add(pair)
        elif what == "end":
            holders.discard(pair)


def test_nothing_builds_while_the_cpu_is_measured(run: Run, tmp_path: Path) -> None:
    run(*(f"slow_build-{i}" for i in range(4)), device="cpu", jobs=2)
    measuring = building = 0
    for _, what in moments(tmp_path):
        building += {"build": 1, "built": -1}.get(what, 0)
        measuring += {"device": 1, "end": -1}.get(what, 0)
        assert not (measuring and building)


@pytest.mark.parametrize("options", [{"device": "emulated"}, {"device": "cpu", "timed": False}])
def test_untimed_pairs_run_side_by_side_up_to_jobs(
    run: Run, tmp_path: Path, options: dict[str, Any]
) -> None:
    run(*(f"slow-{i}" for i in range(4)), jobs=2, **options)
    most = alive = 0
    for _, what in moments(tmp_path):
        alive += {"build": 1, "end": -1}.get(what, 0)
        most = max(most, alive)
    assert most == 2


def test_fail_fast_skips_what_comes_after(run: Run) -> None:
    verdicts = run("passes", "wrong", "hangs", "fast", jobs=1, fail_fast=True)
    assert [v.status.value for v in verdicts.values()] == [
        "PASSED",
        "WRONG_VALUES",
        "SKIPPED",
        "SKIPPED",
    ]
    assert "t/wrong did not pass" in verdicts["fast"].message


def test_request_carries_pair_options_settings_and_a_secret_seed(
    run: Run, tmp_path: Path, make_pair: Callable[..., Pair]
) -> None:
    verdict = run("reports_request", quick=True, timeout_s=5)["reports_request"]
    request = json.loads((tmp_path / "logs" / "request").read_text())
    assert request["pair"]["name"] == "t/reports_request"
    assert Path(request["pair"]["problem"]).is_file()
    assert request["options"]["device"] == "emulated"
    assert request["options"]["quick"] is True
    assert request["options"]["timeout_s"] == 5
    assert request["options"]["seed"] == verdict.seed > 0
    assert request["settings"]["modes"] == ["forward"]
    assert request["log"] == verdict.log


def test_bad_problem_is_a_verdict_and_the_others_run(
    tmp_path: Path, make_pair: Callable[..., Pair]
) -> None:
    pairs = [
        make_pair("broken/solution", reference="def get_inputs(:\n"),
        make_pair("settings/solution", reference="SETTINGS = {'mode': ['eval']}\n"),
        make_pair("t/passes"),
    ]
    options = Options(device="emulated", log_dir=tmp_path / "logs")
    broken, settings, passes = run_pairs(pairs, options, judge_command=FAKE_JUDGE)
    assert broken.status is settings.status is Status.INVALID_REFERENCE
    assert "reference.py:1" in broken.message
    assert "did you mean 'modes'" in settings.message
    assert passes.status is Status.PASSED


def test_size_that_a_problem_lacks_skips_its_pair(run: Run) -> None:
    verdict = run("passes", size="huge")["passes"]
    assert verdict.status is Status.SKIPPED
    assert "full, small" in verdict.message


def test_missing_compiler_skips_what_needs_one(
    tmp_path: Path, make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    source = "from torch.utils.cpp_extension import load_inline\nclass ModelNew: ...\n"
    pairs = [make_pair("t/passes", solution=source), make_pair("t/fast")]
    options = Options(device="emulated", log_dir=tmp_path / "logs")
    skipped, passed = run_pairs(pairs, options, judge_command=FAKE_JUDGE)
    assert skipped.status is Status.SKIPPED
    assert "apt-get install g++" in skipped.message
    assert passed.status is Status.PASSED


def test_judge_that_cannot_be_started_is_a_harness_error(
    tmp_path: Path, make_pair: Callable[..., Pair]
) -> None:
    options = Options(device="emulated", log_dir=tmp_path / "logs")
    command = [str(tmp_path / "no-such-program")]
    (verdict,) = run_pairs([make_pair("t/passes")], options, judge_command=command)
    assert verdict.status is Status.HARNESS_ERROR
    assert "cannot be started" in verdict.message


def test_listener_hears_every_pair_from_start_to_end(
    tmp_path: Path, make_pair: Callable[..., Pair]
) -> None:
    heard: list[tuple[str, str]] = []

    class Ears:
        def started(self, pair: str, device: str) -> None:
            heard.append((pair, f"started on {device}"))

        def phase(self, pair: str, phase: str) -> None:
            heard.append((pair, phase))

        def finished(self, verdict: Verdict) -> None:
            heard.append((verdict.pair, verdict.status.value))

    options = Options(device="emulated", log_dir=tmp_path / "logs")
    run_pairs([make_pair("t/passes")], options, listener=Ears(), judge_command=FAKE_JUDGE)
    said = [what for _, what in heard]
    assert said == ["started on emulated", "build", "check eval 3/12", "PASSED"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "emulate"}, "did you mean 'emulated'"),
        ({"mode": "training"}, "unknown mode"),
        ({"timeout_s": 0}, "timeout"),
        ({"timeout_s": float("nan")}, "timeout"),
        ({"time_limit_s": 0}, "time limit"),
        ({"time_limit_s": float("inf")}, "time limit"),
        ({"jobs": 0}, "jobs"),
        ({"seed": -1}, "seed"),
        ({"cap_s": 0.0}, "cap"),
        (
            {"baselines": ("eager", "tensorrt")},
            "unknown baseline 'tensorrt'; valid: eager, compile",
        ),
    ],
)
def test_bad_option_is_refused_before_anything_runs(
    run: Run, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        run("passes", **options)


def test_relative_paths_and_eager_by_name_are_understood(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pair: Callable[..., Pair]
) -> None:
    pair = make_pair("t/reports_request")
    monkeypatch.chdir(tmp_path)
    near = dataclasses.replace(
        pair,
        problem=pair.problem.relative_to(tmp_path),
        solution=pair.solution.relative_to(tmp_path),
    )
    options = Options(device="emulated", log_dir=tmp_path / "logs", baselines=("eager",))
    run_pairs([near], options, judge_command=FAKE_JUDGE)
    request = json.loads((tmp_path / "logs" / "request").read_text())
    assert request["pair"]["problem"] == str(pair.problem)
    assert request["pair"]["solution"] == str(pair.solution)


def test_evaluate_returns_one_verdict_from_several_threads_at_once(
    tmp_path: Path, make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.fleet.run.JUDGE_COMMAND", FAKE_JUDGE)
    monkeypatch.chdir(tmp_path)
    pairs = [make_pair(f"t/{part}") for part in ("passes", "wrong", "dies", "fast")]
    verdicts: dict[str, Verdict] = {}

    def grade(pair: Pair) -> None:
        verdicts[pair.name] = harness.evaluate(
            pair.problem, pair.solution, device="cpu", log_dir="logs"
        )

    threads = [threading.Thread(target=grade, args=(pair,)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: v.status.value for name, v in verdicts.items()} == {
        "t/passes": "PASSED",
        "t/wrong": "WRONG_VALUES",
        "t/dies": "HARNESS_ERROR",
        "t/fast": "PASSED",
    }


def test_evaluate_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such problem file"):
        harness.evaluate(tmp_path / "p.py", tmp_path / "s.py")
