"""Judges that are forks of one server: alike to the fleet, and independent of each other."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.domain import Options, Pair, Status
from harness.fleet import JUDGE_COMMAND, JudgeServer, run_pairs
from harness.fleet.judge_server import FreshJudge, StartedJudge

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
GOOD = Pair(
    name="good",
    problem=CORPUS / "problems" / "add.py",
    solution=CORPUS / "outputs" / "honest" / "negative_bit.py",
)
OPTIONS = Options(device="cpu", timed=False, quick=True)
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as server:
        yield server


def start(server: JudgeServer, folder: Path, **env: str) -> StartedJudge:
    with (folder / "log").open("ab") as log:
        return server.start(JUDGE_COMMAND, log=log, cwd=ROOT, env={**ENV, **env})


def ended(judge: StartedJudge) -> StartedJudge:
    """Close the judge's pipes, kill it and reap it."""
    for pipe in (judge.stdin, judge.stdout):
        pipe.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(judge.pid, signal.SIGKILL)
    judge.reap()
    return judge


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_until(true) -> bool:
    limit = time.monotonic() + 20
    while not true() and time.monotonic() < limit:
        time.sleep(0.02)
    return true()


def test_judge_is_a_fork_with_a_session_a_log_and_a_folder_of_its_own(
    server: JudgeServer, tmp_path: Path
) -> None:
    first, second = start(server, tmp_path), start(server, tmp_path)
    try:
        assert first.pid != second.pid
        assert parent_of(first.pid) == parent_of(second.pid) != os.getpid()
        assert os.getsid(first.pid) == os.getpgid(first.pid) == first.pid
        assert Path(f"/proc/{first.pid}/cwd").resolve() == ROOT
        assert Path(f"/proc/{first.pid}/fd/2").resolve() == tmp_path / "log"
        assert not first.state().has_ended
    finally:
        ended(first)
        ended(second)


def test_judge_that_is_killed_harms_neither_server_nor_other_judges(
    server: JudgeServer, tmp_path: Path
) -> None:
    first, second = start(server, tmp_path), start(server, tmp_path)
    parent = parent_of(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    assert wait_until(lambda: first.state().has_ended)
    assert (first.state().code, first.state().status) == (os.CLD_KILLED, signal.SIGKILL)
    assert is_there(first.pid), "its number is ours until it is reaped"
    assert not is_there(ended(first).pid)
    assert not second.state().has_ended
    ended(second)
    (verdict,) = run_pairs([GOOD], OPTIONS, judges=server)
    assert verdict.status is Status.PASSED, verdict.message
    assert is_there(parent)


def test_stopped_judge_is_seen(server: JudgeServer, tmp_path: Path) -> None:
    judge = start(server, tmp_path)
    os.kill(judge.pid, signal.SIGSTOP)
    assert wait_until(lambda: judge.state().is_stopped)
    assert not judge.state().has_ended
    ended(judge)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_server_a_judge_ends_and_the_next_is_a_program(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr("harness.fleet.judge_server._ANSWER_S", 0.5)
    judge = start(server, tmp_path)
    os.kill(parent_of(judge.pid), how)
    assert wait_until(lambda: judge.state().has_ended)
    ended(judge)
    assert wait_until(lambda: not is_there(judge.pid)), "the kernel ends it with its parent"
    fresh = start(server, tmp_path)
    assert isinstance(fresh, FreshJudge)
    ended(fresh)


def test_signals_that_can_be_ignored_do_not_end_the_server(
    server: JudgeServer, tmp_path: Path
) -> None:
    judge = start(server, tmp_path)
    parent = parent_of(judge.pid)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(parent, number)
    ended(judge)
    ended(start(server, tmp_path))
    assert is_there(parent)


def test_another_environment_or_command_gets_a_program(server: JudgeServer, tmp_path: Path) -> None:
    ended(start(server, tmp_path))
    other = start(server, tmp_path, KERNEL_EVAL_TEST="1")
    assert isinstance(other, FreshJudge)
    ended(other)


def test_closing_ends_the_server_and_its_judges(tmp_path: Path) -> None:
    with JudgeServer() as server:
        judge = start(server, tmp_path)
        parent = parent_of(judge.pid)
    assert wait_until(lambda: not is_there(parent))
    assert judge.state().has_ended
    ended(judge)
    assert wait_until(lambda: not is_there(judge.pid))


def test_run_of_several_pairs_forks_them_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers: list[JudgeServer] = []
    kinds: list[str] = []
    original = JudgeServer.start

    def noted(self: JudgeServer, *args, **named) -> StartedJudge:
        judge = original(self, *args, **named)
        servers.append(self)
        kinds.append(type(judge).__name__)
        return judge

    monkeypatch.setattr(JudgeServer, "start", noted)
    pairs = [GOOD, Pair(name="again", problem=GOOD.problem, solution=GOOD.solution)]
    assert {v.status for v in run_pairs(pairs, OPTIONS)} == {Status.PASSED}
    assert kinds == ["_ForkedJudge", "_ForkedJudge"]
    assert len(set(servers)) == 1 and servers[0]._process is None, "it ends with the run"


def test_server_holds_no_secret_and_cannot_be_read_by_its_own_user(
    server: JudgeServer, tmp_path: Path
) -> None:
    """Its memory belongs to root: a solution of the same user can't write into judges to come."""
    judge = start(server, tmp_path)
    if os.geteuid() != 0:
        assert Path(f"/proc/{parent_of(judge.pid)}/mem").stat().st_uid == 0
    opened = list(Path(f"/proc/{parent_of(judge.pid)}/fd").iterdir())
    ended(judge)
    assert len(opened) <= 5, "its streams, its socket, and no pipe of a judge"
