"""Results add up over interrupted runs: what was decided is kept, once, and taken again."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.domain import MEASUREMENT_VERSION, Options, Pair, Status, UsageError, Verdict
from harness.fleet import resume as resume_module
from harness.fleet.key import pair_key
from harness.fleet.resume import open_resume
from harness.report import read_run
from tests.fake_judge import COMMAND as FAKE_JUDGE

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"gpu": [], "date": "2026-11-30T00:00:00+00:00", "commit": "c"}

Cli = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def cli(tmp_path: Path, make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs the command line; it returns exit code and verdicts by part."""
    monkeypatch.setattr("harness.fleet.logs.PROJECT_ROOT", tmp_path)

    def run(
        *argv: str, parts: tuple[str, ...] = ("passes", "wrong")
    ) -> tuple[int, dict[str, dict[str, Any]]]:
        for part in parts:
            make_pair(f"t/{part}")
        out = tmp_path / "out.json"
        given = ("--device", "emulated", "--jobs", "1", "--json", str(out), *argv)
        code = main(given, root=tmp_path, judge_command=FAKE_JUDGE)
        verdicts = json.loads(out.read_text())["verdicts"]
        return code, {v["pair"].removeprefix("t/"): v for v in verdicts}

    return run


def evaluated(tmp_path: Path) -> Counter[str]:
    """Return how often each part was evaluated so far."""
    path = tmp_path / "results" / "logs" / "journal"
    moments = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return Counter(pair.removeprefix("t/") for pair, what, _ in moments if what == "build")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def verdict(pair: str = "t/a", status: Status = Status.PASSED) -> Verdict:
    return Verdict(pair=pair, status=status, device="emulated")


def write(path: Path, *entries: tuple[str | None, Verdict]) -> None:
    with open_resume(path, ENVIRONMENT) as file:
        for key, one in entries:
            file.append(key, one)


def stored(path: Path, *keys: str) -> list[Verdict | None]:
    with open_resume(path, ENVIRONMENT) as file:
        return [file.verdict_of(key) for key in keys]


def test_second_run_takes_every_verdict_from_the_file(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.jsonl"
    first = cli("--resume", str(file), parts=("passes", "wrong", "fast"))
    capsys.readouterr()
    assert cli("--resume", str(file)) == first
    assert evaluated(tmp_path) == {"passes": 1, "wrong": 1, "fast": 1}
    out, err = capsys.readouterr()
    assert f"3 of them from {file}" in out
    assert "t/wrong: WRONG_VALUES from the resume file" in err
    header, *lines = lines_of(file)
    assert header["kernel_eval_resume"] == 1
    assert header["environment"]["python"]
    assert [line.keys() for line in lines] == [{"key", "verdict"}] * 3


def test_first_run_counts_nothing_as_taken(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("--resume", str(tmp_path / "kept.jsonl"))
    assert "of them from" not in capsys.readouterr().out


def test_what_came_to_no_verdict_of_its_own_is_evaluated_again(cli: Cli, tmp_path: Path) -> None:
    file, parts = tmp_path / "kept.jsonl", ("dies", "harness_error", "skipped", "reference_dies")
    for _ in range(2):
        cli("--resume", str(file), parts=parts)
    assert evaluated(tmp_path) == {
        "dies": 2,
        "harness_error": 2,
        "skipped": 2,
        "reference_dies": 1,
    }


def test_fail_fast_stops_at_a_stored_failure_too(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    parts = ("aaa", "passes", "wrong", "zzz")
    argv = ("--resume", str(file), "--fail-fast")
    assert cli(*argv, parts=parts)[1]["zzz"]["status"] == "SKIPPED"
    assert cli(*argv, parts=parts)[1]["zzz"]["status"] == "SKIPPED"
    assert cli("--resume", str(file), parts=parts)[1]["zzz"]["status"] == "PASSED"
    assert evaluated(tmp_path) == {"aaa": 1, "passes": 1, "wrong": 1, "zzz": 1}


@pytest.mark.parametrize(
    "change",
    [("--mode", "eval"), ("--size", "small"), ("--quick",), ("--seed", "3"), ("--timeout", "7")],
)
def test_other_options_are_another_evaluation(
    cli: Cli, tmp_path: Path, change: tuple[str, ...]
) -> None:
    file = tmp_path / "kept.jsonl"
    cli("--resume", str(file))
    cli("--resume", str(file), *change)
    cli("--resume", str(file))
    assert evaluated(tmp_path) == {"passes": 2, "wrong": 2}


def test_options_on_the_order_of_work_are_the_same_evaluation(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    cli("--resume", str(file))
    cli("--resume", str(file), "--jobs", "2", "--fail-fast", "-v")
    assert evaluated(tmp_path) == {"passes": 1, "wrong": 1}


@pytest.mark.parametrize("name", ["problems/t/reference.py", "solutions/t/passes.py"])
def test_edited_file_is_evaluated_again(cli: Cli, tmp_path: Path, name: str) -> None:
    file = tmp_path / "kept.jsonl"
    cli("--resume", str(file), parts=("passes",))
    (tmp_path / name).write_text((tmp_path / name).read_text() + "# edited\n")
    main(["--device", "emulated", "--resume", str(file)], root=tmp_path, judge_command=FAKE_JUDGE)
    assert evaluated(tmp_path) == {"passes": 2}


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("import helper\n", "helper.py"),
        ("from helper import f\n", "helper.py"),
        ("from .helper import f\n", "helper.py"),
        ("from tools import helper\n", "tools/helper.py"),
        ("import first\n", "second.py"),
        ("load(sources=['csrc/k.cu'])\n", "csrc/k.cu"),
        ("load(sources=['csrc/k.cu'])\n", "csrc/k.cuh"),
        ("os.path.join(here, 'csrc', 'any.cu')\n", "csrc/any.cu"),
        ("SOURCE = '''#include \"near.cuh\"'''\n", "near.cuh"),
    ],
)
def test_key_covers_the_files_that_a_solution_names(
    make_pair: Callable[..., Pair], source: str, file: str
) -> None:
    pair = make_pair("t/s", solution=source)
    folder = pair.solution.parent
    texts = {"first.py": "import second\n", "csrc/k.cu": '#include "k.cuh"\n', file: "//\n"}
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "another.py").write_text("1\n")

    def key() -> str | None:
        return pair_key(pair, Options(), ["emulated"])

    before = key()
    assert before == key()
    (folder / "another.py").write_text("2\n")
    assert key() == before
    (folder / file).write_text("// edited\n")
    assert key() != before


@pytest.mark.parametrize("name", ["/proc/kmsg", "/dev/zero", "/", ".", "loop", "root", "x" * 999])
def test_key_is_no_trap_for_the_fleet(make_pair: Callable[..., Pair], name: str) -> None:
    pair = make_pair("t/s", solution=f"import s\nNAME = {name!r}\n")
    (pair.solution.parent / "loop").symlink_to("loop")
    (pair.solution.parent / "root").symlink_to("/")
    assert pair_key(pair, Options(), ["cpu"])


def test_key_names_the_kind_of_device_and_not_its_number(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.machine.gpus import Gpu, Gpus

    names = ("NVIDIA H200", "NVIDIA H200", "NVIDIA A100")
    gpus = tuple(
        Gpu(index=i, name=n, uuid=str(i), capability=(9, 0), memory_bytes=1)
        for i, n in enumerate(names)
    )
    monkeypatch.setattr("harness.fleet.key.find_gpus", lambda: Gpus(devices=gpus))
    pair = make_pair("t/s")
    keys = {
        d: pair_key(pair, Options(device=d), [d]) for d in ("cuda:0", "cuda:1", "cuda:2", "cpu")
    }
    assert keys["cuda:0"] == keys["cuda:1"] == pair_key(pair, Options(), ["cuda:1", "cuda:0"])
    assert len({*keys.values(), pair_key(pair, Options(), ["cuda:0", "cuda:2"])}) == 4


def test_every_option_but_those_on_the_order_of_work_is_in_the_key(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair("t/s")
    plain = pair_key(pair, Options(), ["cpu"])
    for field in dataclasses.fields(Options):
        other: Any = dataclasses.replace(Options(), **{field.name: "another"})
        same = field.name in ("device", "jobs", "fail_fast", "cache_dir", "log_dir")
        assert (pair_key(pair, other, ["cpu"]) == plain) is same, field.name
    assert pair_key(dataclasses.replace(pair, size="small"), Options(), ["cpu"]) != plain
    assert pair_key(dataclasses.replace(pair, name="t/other"), Options(), ["cpu"]) != plain


def test_file_edited_while_its_pair_was_judged_is_evaluated_again(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = iter(["before", "before", "after"])  # looked up, begun, ended
    monkeypatch.setattr("harness.fleet.run.pair_key", lambda *given: next(keys))
    cli("--resume", str(tmp_path / "kept.jsonl"), parts=("passes",))
    assert [line["key"] for line in lines_of(tmp_path / "kept.jsonl")[1:]] == [None]


@pytest.mark.parametrize(
    "content",
    [
        "my notes",
        "my notes\n",
        '{"schema_version": 2, "verdicts": []}\n',
        "[]\n",
        '{"kernel_eval_resume": 2, "measurement_version": 4, "environment": {}}\n',
        '{"kernel_eval_resume": 1}\n',
        "\n",
    ],
)
def test_foreign_file_is_refused_and_left_as_it_is(
    cli: Cli, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    assert cli("--resume", str(file))[0] == 2
    assert "Next: name a new file" in capsys.readouterr().err
    assert file.read_text() == content
    assert not evaluated(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [(".", "is a folder"), ("no/such/file", "no such folder")]
)
def test_file_that_cannot_be_written_is_refused_first(
    cli: Cli, tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("--resume", str(tmp_path / name))[0] == 2
    assert said in capsys.readouterr().err
    assert not evaluated(tmp_path)


def test_pipe_is_refused(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert cli("--resume", str(tmp_path / "pipe"))[0] == 2
    assert "is no plain file" in capsys.readouterr().err


def test_resume_file_is_not_written_as_a_report(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.jsonl"
    cli("--resume", str(file))
    before = file.read_bytes()
    main(["--resume", str(file), "--html", str(file)], root=tmp_path, judge_command=FAKE_JUDGE)
    assert "is also the file of --resume" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    with (
        open_resume(file, ENVIRONMENT),
        pytest.raises(UsageError, match="another run is writing to it"),
        open_resume(file, ENVIRONMENT),
    ):
        pass
    assert stored(file, "k") == [None]


def test_file_of_another_measurement_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "f", ("k", verdict()))
    monkeypatch.setattr(resume_module, "MEASUREMENT_VERSION", MEASUREMENT_VERSION + 1)
    with pytest.raises(UsageError, match=r"measurement version .* Next: name a new file"):
        stored(tmp_path / "f", "k")


def test_file_cut_off_anywhere_keeps_the_whole_lines(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write(whole, ("a", verdict("t/a")), ("b", verdict("t/b")))
    content = whole.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in [*range(0, len(content), 7), *ends, *(end - 1 for end in ends)]:
        file = tmp_path / "cut"
        file.write_bytes(content[:length])
        kept = [key for key, end in zip("ab", ends[1:], strict=True) if end <= length]
        write(file, ("c", verdict("t/c")))
        keys = [line["key"] for line in lines_of(file)[1:]]
        assert keys == [*kept, "c"], length


def test_torn_line_is_read_over_while_another_run_writes(tmp_path: Path) -> None:
    write(tmp_path / "f", ("a", verdict("t/a")))
    with (tmp_path / "f").open("ab") as stream:
        stream.write(b'{"key": "b", "verd')
    assert [v.pair for v in read_run(tmp_path / "f").verdicts] == ["t/a"]


def test_damaged_line_costs_its_own_pair_only(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.jsonl"
    cli("--resume", str(file))
    header, first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(header + b"\0" * len(first) + b"\n" + b"".join(rest) + header)
    cli("--resume", str(file))
    assert evaluated(tmp_path) == {"passes": 2, "wrong": 1}
    assert "line 2 is ignored: it holds no verdict" in capsys.readouterr().err


def test_full_disk_costs_a_warning_and_exit_code_3_and_no_verdict(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.jsonl"
    cli("--resume", str(file), parts=("fast",))
    genuine = resume_module._write

    def torn(handle: int, content: bytes) -> None:
        os.write(handle, content[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(resume_module, "_write", torn)
    code, verdicts = cli("--resume", str(file))
    assert code == 3
    assert {part: v["status"] for part, v in verdicts.items()} == {
        "fast": "PASSED",
        "passes": "PASSED",
        "wrong": "WRONG_VALUES",
    }
    out, err = capsys.readouterr()
    assert "2 verdicts could not be written (No space left on device)" in err
    assert "off by one" in out
    monkeypatch.setattr(resume_module, "_write", genuine)
    assert cli("--resume", str(file))[0] == 1
    assert evaluated(tmp_path) == {"fast": 1, "passes": 2, "wrong": 2}
    assert len(lines_of(file)) == 4


def test_verdict_that_found_no_room_is_written_once_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, full = resume_module._write, [True, True, False, False, False]

    def sometimes(handle: int, content: bytes) -> None:
        if full.pop(0):
            os.write(handle, content[:9])
            raise OSError(errno.ENOSPC, "full")
        genuine(handle, content)

    write(tmp_path / "f")
    with open_resume(tmp_path / "f", ENVIRONMENT) as file:
        monkeypatch.setattr(resume_module, "_write", sometimes)
        for key in "abc":
            file.append(key, verdict(f"t/{key}"))
        assert file.problem() == ""
    assert [line["key"] for line in lines_of(tmp_path / "f")[1:]] == ["a", "b", "c"]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    names = [f"t/{i}" for i in range(40)]
    with open_resume(tmp_path / "f", ENVIRONMENT) as file:
        threads = [
            threading.Thread(target=file.append, args=(name, verdict(name))) for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(line["key"] for line in lines_of(tmp_path / "f")[1:]) == sorted(names)


def test_reports_are_made_from_a_resume_file(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.jsonl"
    cli("--resume", str(file))
    (tmp_path / "solutions/t/wrong.py").write_text("# better\n")
    cli("--resume", str(file), parts=("passes", "fast"))
    capsys.readouterr()
    assert main(["--report", str(file), "--markdown", str(tmp_path / "s.md")], root=tmp_path) == 0
    assert "2 passed, 1 WRONG_VALUES" in capsys.readouterr().out
    assert "t/wrong" in (tmp_path / "s.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_run_ended_in_the_middle_goes_on_where_it_stood(
    cli: Cli, tmp_path: Path, make_pair: Callable[..., Pair], number: int
) -> None:
    parts = ("fast", "hangs-1", "passes", "wrong")
    for part in parts:
        make_pair(f"t/{part}")
    file = tmp_path / "kept.jsonl"
    program = (
        "import sys; from pathlib import Path; from harness.cli.main import main; "
        "import harness.fleet.logs as logs; logs.PROJECT_ROOT = Path(sys.argv[1]); "
        f"sys.exit(main(sys.argv[2:], root=Path(sys.argv[1]), judge_command={FAKE_JUDGE!r}))"
    )
    argv = ("--device", "emulated", "--jobs", "2", "--resume", str(file))
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), *argv],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "[3/4]" in line:  # all but the one that hangs
            break
    process.send_signal(number)
    process.communicate(timeout=20)
    decided = {line["verdict"]["pair"]: line["verdict"] for line in lines_of(file)[1:]}
    assert decided.keys() == {"t/fast", "t/passes", "t/wrong"}

    (tmp_path / "solutions/t/hangs-1.py").unlink()
    code, verdicts = cli("--resume", str(file), parts=("slow",))
    assert code == 1
    assert {f"t/{part}": v for part, v in verdicts.items() if part != "slow"} == decided
    assert evaluated(tmp_path) == dict.fromkeys((*parts, "slow"), 1)
