"""The table, the sentences below it and the JSON document."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest

from harness.domain import Check, KernelProfile, Run, Speed, SpeedOutcome, Status, Verdict
from harness.report import (
    FORMATS,
    explain,
    explain_in_full,
    explain_run,
    open_progress,
    render_markdown,
    render_page,
    render_run,
    render_table,
    summarize,
    write_document,
)
from harness.report.kernels import kernel_rows
from harness.report.text import clean, figure, milliseconds, seconds, speedup

FASTER = Speed(
    outcome=SpeedOutcome.FASTER,
    speedup=2.31234,
    low=2.2912,
    high=2.3349,
    reference_ms=8.4689,
    candidate_ms=3.6625,
)
PASSED = Verdict(
    pair="gemm/solution",
    status=Status.PASSED,
    device="cuda:0",
    max_abs_diff=9.5e-7,
    precision="fp32",
    speed=FASTER,
)
WRONG = Verdict(
    pair="norm/solution",
    status=Status.WRONG_VALUES,
    device="cuda:0",
    message="output[3] is 2.0, expected 1.0. Next: look at the last tile",
    max_abs_diff=1.0,
    precision="worse",
    replay="python run_eval.py norm/solution --seed 7",
)


def test_table_shows_times_and_speedup_of_what_passed() -> None:
    table = render_table([PASSED])
    assert "9.5e-07" in table
    assert "8.469" in table
    assert "2.31x [2.29, 2.33] faster" in table


def test_table_shows_no_time_of_what_did_not_pass() -> None:
    timed = Speed(reference_ms=8.0, candidate_ms=4.0)
    failed = Verdict(pair="p/s", status=Status.CRASHED, speed=timed)
    row = render_table([failed]).splitlines()[-1]
    assert "8" not in row
    assert "x" not in row


@pytest.mark.parametrize("fmt", FORMATS)
def test_table_has_every_format(fmt: str) -> None:
    table = render_table([PASSED, WRONG], fmt)
    assert "WRONG" in table
    assert "2.31x" in table


def test_bars_in_headers_do_not_split_columns() -> None:
    lines = render_table([PASSED], "github").splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_summary_counts_by_status() -> None:
    assert summarize([WRONG, PASSED], 65.4) == "1 passed, 1 WRONG_VALUES, in 1 min 05 s on cuda:0"
    skipped = Verdict(pair="p/s", status=Status.SKIPPED)
    assert summarize([skipped], 0.0).startswith("1 skipped, nothing was evaluated, in")


def test_explanation_names_blame_next_step_replay_and_end_of_log(tmp_path: Path) -> None:
    log = tmp_path / "pair.log"
    log.write_text("".join(f"line {i}\n" for i in range(1000)))
    verdict = Verdict(
        pair=WRONG.pair,
        status=WRONG.status,
        message=WRONG.message,
        replay=WRONG.replay,
        log=str(log),
    )
    said = explain(verdict)
    assert said.splitlines()[0].startswith("norm/solution: WRONG_VALUES (blame: solution): output")
    assert "replay: python run_eval.py norm/solution --seed 7" in said
    assert str(log) in said
    assert "| line 999" in said
    assert "| line 3\n" not in said


def test_report_cannot_be_forged_by_what_a_solution_prints(tmp_path: Path) -> None:
    log = tmp_path / "pair.log"
    log.write_bytes(b"\x1b[2J\x1b[Hgemm/solution  PASSED\r\n\x1b]0;title\x07\xff\x00\x9bm end")
    verdict = Verdict(
        pair="p/s", status=Status.CRASHED, message="a\nb/solution  PASSED\x1b[A", log=str(log)
    )
    said = explain(verdict)
    assert said.splitlines()[0] == "p/s: CRASHED (blame: solution): a b/solution PASSED"
    assert all(line.startswith("  | ") for line in said.splitlines()[2:])
    assert not set(said) & {"\x1b", "\r", "\x00", "\x07", "\x9b"}


def test_skips_and_notes_are_said_once() -> None:
    skipped = [
        Verdict(pair=f"p/{i}", status=Status.SKIPPED, message="no compiler", notes=("root",))
        for i in range(5)
    ]
    said = explain_run(skipped)
    assert said.count("no compiler") == 1
    assert "5 pairs" in said
    assert said.count("root") == 1


def test_full_explanation_has_checks_and_memory() -> None:
    check = Check(
        phase="eval/3",
        what="grad x",
        max_abs_diff=1e-6,
        error=2e-7,
        budget=None,
        precision="fp32",
    )
    verdict = Verdict(
        pair="p/s",
        status=Status.PASSED,
        checks=(check,),
        phases={"build": 1.0},
        peak_bytes={"judge": 300 << 20},
        state_match=("gamma <- weight",),
        launches=4,
    )
    said = explain_in_full(verdict)
    for piece in ("grad x", "1.0e-06", "judge 300 MiB", "gamma <- weight", "launches: 4"):
        assert piece in said
    assert said in explain_run([verdict], in_full=True)


def test_document_holds_every_verdict(tmp_path: Path) -> None:
    text = render_run(Run(verdicts=(PASSED, WRONG), environment={"cpu": "x"}, exit_code=1))
    document = json.loads(text)
    assert document["schema_version"] == 2
    assert document["environment"] == {"cpu": "x"}
    assert [v["pair"] for v in document["verdicts"]] == ["gemm/solution", "norm/solution"]
    assert document["verdicts"][0]["speed"]["speedup"] == 2.31234
    assert document["verdicts"][1]["blame"] == "solution"


def test_document_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    write_document("new\n", str(target))
    assert target.read_text() == "new\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o600 == 0o600


def test_failed_write_keeps_the_old_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_document("new", str(target))
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_document_goes_through_what_cannot_be_replaced() -> None:
    write_document("{}", "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_plain_progress_says_which_pair_which_phase_and_how_many_are_left() -> None:
    stream = io.StringIO()
    with open_progress(2, stream) as progress:
        progress.started("a/s", "cpu")
        progress.phase("a/s", "build")
        progress.phase("a/s", "check eval 1/12")
        progress.phase("a/s", "check eval 2/12")
        progress.finished(Verdict(pair="a/s", status=Status.PASSED))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["a/s: build", "a/s: check eval 1/12"]
    assert lines[2].startswith("[1/2] a/s: PASSED after")
    assert lines[2].endswith("1 left")


def test_live_progress_draws_on_a_terminal_and_respects_no_color(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with open_progress(2, stream) as progress:
        progress.started("a/[red]s", "cpu")
        progress.phase("a/[red]s", "check eval 1/12")
        progress.finished(Verdict(pair="a/[red]s", status=Status.WRONG_VALUES))
    drawn = stream.getvalue()
    assert "a/[red]s" in drawn
    assert "WRONG_VALUES" in drawn
    assert "\x1b[31m" not in drawn


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (figure(None), "-"),
        (figure(0.0), "0"),
        (figure(float("inf")), "inf"),
        (milliseconds(0.0123456), "0.01235"),
        (milliseconds(12345.6), "12346"),
        (milliseconds(None), "-"),
        (seconds(59.96), "60.0 s"),
        (seconds(125), "2 min 05 s"),
        (speedup(Speed()), "untimed"),
        (speedup(Speed(outcome=SpeedOutcome.SLOWER, speedup=0.5)), "0.50x slower"),
        (clean("a\tb\nc\x1b[31mred\x1b[0m"), "a\tb\ncred"),
    ],
)
def test_figures_are_rounded_for_reading(said: str, expected: str) -> None:
    assert said == expected


def test_kernels_stand_in_every_report() -> None:
    norm = KernelProfile(
        name="void norm<4>(float const*, int)",
        duration_ms=1.25,
        dram_read_bytes=2_150_000_000,
        occupancy=0.873,
        registers=40,
        stall="long scoreboard",
    )
    evil = KernelProfile(name="<script>x\x1b[2J|")
    verdict = Verdict(pair="p/s", status=Status.PASSED, ncu=(norm, evil))
    run = Run(verdicts=(verdict,))
    pages = [explain_run([verdict]), render_markdown(run), render_page(run)]
    for page in (*pages, explain_run([verdict], in_full=True)):
        for piece in ("norm", "1.25", "2.15", "87 %", "40", "long scoreboard"):
            assert piece in page
        assert "\x1b" not in page
    assert all("<script>x" not in page for page in pages[1:])
    many = kernel_rows([norm] * 20)
    assert many[-1][0] == "4 more launches"
    assert {len(row) for row in many} == {7}
