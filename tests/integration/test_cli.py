"""The command line: choices, exit codes, the JSON document, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.domain import Pair
from tests.fake_judge import COMMAND as FAKE_JUDGE

ROOT = Path(__file__).parents[2]

Cli = Callable[..., int]


@pytest.fixture
def cli(tmp_path: Path, make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that makes pairs out of parts and runs the command line on them."""
    monkeypatch.setattr("harness.fleet.logs.PROJECT_ROOT", tmp_path)

    def run(*argv: str, parts: tuple[str, ...] = ("passes",)) -> int:
        for part in parts:
            make_pair(f"t/{part}")
        given = argv if "--device" in argv else (*argv, "--device", "emulated")
        return main(given, root=tmp_path, judge_command=FAKE_JUDGE)

    return run


def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        (("passes", "fast"), 0),
        (("passes", "skipped"), 0),
        (("passes", "wrong"), 1),
        (("reference_dies",), 1),
        (("skipped",), 2),
        (("wrong", "dies"), 3),
        (("harness_error", "passes"), 3),
    ],
)
def test_exit_code_follows_from_the_verdicts(
    cli: Cli, tmp_path: Path, parts: tuple[str, ...], code: int
) -> None:
    target = tmp_path / "out.json"
    assert cli("--json", str(target), parts=parts) == code
    written = document(target)
    assert written["exit_code"] == code
    assert sorted(v["pair"] for v in written["verdicts"]) == sorted(f"t/{p}" for p in parts)


def test_table_reaches_stdout_and_progress_stderr(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    cli(parts=("fast", "wrong"))
    out, err = capsys.readouterr()
    assert "2.00x [1.90, 2.10] faster" in out
    assert "t/wrong: WRONG_VALUES (blame: solution): off by one" in out
    assert "| stderr of wrong" in out
    assert "1 passed, 1 WRONG_VALUES" in out
    assert "0 left" in err


def test_document_on_stdout_is_alone_there(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--json", "-", parts=("fast",)) == 0
    out, err = capsys.readouterr()
    written = json.loads(out)
    assert written["verdicts"][0]["speed"]["speedup"] == 2.0
    assert {"gpu", "driver", "torch", "cuda", "compiler", "cpu", "commit"} <= written[
        "environment"
    ].keys()
    assert "t/fast" in err


def test_list_prints_names_alone(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--list", "t/p*", parts=("passes", "fast")) == 0
    assert capsys.readouterr().out == "t/passes\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("nothing",), "no pair matches 'nothing'"),
        (("--device", "gpu"), "unknown device"),
        (("--problem", "p.py"), "go together"),
        (("--problem", "p.py", "--solution", "s.py"), "no such problem file"),
        (("--problem", "p.py", "--solution", "s.py", "t"), "not both"),
        (("--timeout", "-1"), "timeout"),
        (("--jobs", "0"), "jobs"),
        (("--new", "Not Valid"), "lower-case"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    cli: Cli, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert cli(*argv) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("run_eval.py: ")]
    assert said in line


@pytest.mark.parametrize("argv", [("--frobnicate",), ("--mode", "fast"), ("--format", "word")])
def test_unknown_option_exits_with_2(cli: Cli, argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as left:
        cli(*argv)
    assert left.value.code == 2


def test_bad_usage_still_writes_the_document(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    assert cli("nothing", "--json", str(target)) == 2
    assert document(target)["verdicts"] == []
    assert "no pair matches" in document(target)["error"]


@pytest.mark.parametrize("target", ["no/such/folder/out.json", "."])
def test_document_that_cannot_be_written_is_refused_first(
    cli: Cli, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    assert cli("--json", target) == 2
    assert "left" not in capsys.readouterr().err


def test_failure_of_the_harness_exits_with_3_and_writes_the_document(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("harness.cli.main.run_pairs", broken)
    target = tmp_path / "out.json"
    assert cli("--json", str(target)) == 3
    assert "planted" in document(target)["error"]


def test_missing_torch_is_one_clear_line(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cli.main.torch_build", lambda: None)
    assert cli() == 2
    assert "PyTorch is not installed" in capsys.readouterr().err


def test_missing_compiler_is_one_line_and_nothing_evaluated(
    cli: Cli,
    make_pair: Callable[..., Pair],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    source = "from torch.utils.cpp_extension import load_inline\nclass ModelNew: ...\n"
    for name in ("a/solution", "b/solution", "c/solution", "d/solution"):
        make_pair(name, solution=source)
    assert cli(parts=()) == 2
    out, err = capsys.readouterr()
    assert out.count("no C++ compiler found") == 1
    assert "Traceback" not in out + err


def test_any_format_is_printed(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--format", "github") == 0
    assert "| t/passes" in capsys.readouterr().out


def test_verbose_says_everything(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("-v") == 0
    assert "phases: build 0.1 s, check 0.2 s" in capsys.readouterr().out


def start(tmp_path: Path, *argv: str) -> subprocess.Popen[str]:
    """Start the command line as a process of its own, with the fake judge."""
    program = (
        "import sys; from pathlib import Path; from harness.cli.main import main; "
        "import harness.fleet.logs as logs; logs.PROJECT_ROOT = Path(sys.argv[1]); "
        f"sys.exit(main(sys.argv[2:], root=Path(sys.argv[1]), judge_command={FAKE_JUDGE!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), *argv],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_prints_what_is_done_and_leaves_nothing(
    tmp_path: Path, make_pair: Callable[..., Pair], number: int, code: int
) -> None:
    for part in ("fast", "hangs", "slow"):
        make_pair(f"t/{part}")
    target = tmp_path / "out.json"
    argv = ("--device", "emulated", "--jobs", "1", "--json", str(target))
    process = start(tmp_path, *argv)
    assert process.stderr is not None
    for line in process.stderr:
        if "t/hangs: check" in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert "2.00x" in out
    assert "Traceback" not in err
    verdicts = {v["pair"]: v for v in document(target)["verdicts"]}
    assert {name: v["status"] for name, v in verdicts.items()} == {
        "t/fast": "PASSED",
        "t/hangs": "SKIPPED",
        "t/slow": "SKIPPED",
    }
    assert "interrupted" in verdicts["t/hangs"]["message"]
    assert not judges_of(tmp_path)
    assert not list(tmp_path.glob("kernel-eval-judge-*")), "a temporary folder stays"


def judges_of(tmp_path: Path) -> list[int]:
    """Return fake judges that still hold a log below a folder open."""
    found = []
    for handle in Path("/proc").glob("[0-9]*/fd/2"):
        try:
            target = str(handle.readlink())
        except OSError:
            continue
        if target.startswith(str(tmp_path / "results")):
            found.append(int(handle.parts[2]))
    return found


def test_killed_run_leaves_no_judge_that_waits_for_it(
    tmp_path: Path, make_pair: Callable[..., Pair]
) -> None:
    make_pair("t/slow")
    process = start(tmp_path, "--device", "emulated")
    assert process.stderr is not None
    for line in process.stderr:
        if "check" in line:
            break
    process.kill()
    process.communicate(timeout=20)
    limit = time.monotonic() + 10
    while judges_of(tmp_path) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not judges_of(tmp_path)


def test_script_without_a_main_guard_may_evaluate(
    tmp_path: Path, make_pair: Callable[..., Pair]
) -> None:
    pair = make_pair("t/wrong")
    script = tmp_path / "grade.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import harness.fleet.run as fleet\n"
        f"fleet.JUDGE_COMMAND = {FAKE_JUDGE!r}\n"
        "from harness import evaluate\n"
        f"verdict = evaluate({str(pair.problem)!r}, {str(pair.solution)!r}, device='emulated',\n"
        "                   log_dir='logs')\n"
        "print(verdict.status.value)\n"
    )
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("WRONG_VALUES\n", "")
