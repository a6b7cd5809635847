"""The gate, reports and history through the command line, with a judge that plays a part."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.domain import Pair
from tests.fake_judge import COMMAND as FAKE_JUDGE

ROOT = Path(__file__).parents[2]


def recorded(speedup: float, **more: Any) -> dict[str, Any]:
    """Return what a judge says about a pair that passed with a speedup."""
    timed = {
        "outcome": "FASTER",
        "speedup": speedup,
        "low": speedup * 0.997,
        "high": speedup * 1.003,
        "reference_ms": 3.0,
        "candidate_ms": 3.0 / speedup,
        "batches": 20,
        "calls_per_batch": 10,
    }
    check = {
        "phase": "eval/1:nominal",
        "what": "output",
        "max_abs_diff": 1e-6,
        "error": 1e-6,
        "budget": 1e-4,
        "precision": "fp32",
    }
    return {
        "speed": timed,
        "precision": "fp32",
        "max_abs_diff": 1e-6,
        "checks": [check],
        "launches": 2,
        "problem_hash": "a" * 64,
        "solution_hash": "",
        **more,
    }


class Checkout:
    """A folder with pairs whose judge says what was recorded."""

    def __init__(self, root: Path, make_pair: Callable[..., Pair]) -> None:
        self.root = root
        self._make_pair = make_pair

    def says(self, name: str, *verdicts: dict[str, Any]) -> None:
        """Let the judge say this about a pair, one verdict per evaluation, the last for ever."""
        pair = self._make_pair(f"{name}/recorded")
        pair.solution.with_suffix(".json").write_text(json.dumps(verdicts))

    def run(self, *argv: str) -> int:
        return main((*argv, "--device", "emulated"), root=self.root, judge_command=FAKE_JUDGE)

    @property
    def baseline(self) -> Path:
        return self.root / "baselines" / "cpu-runner.json"

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted(self.root.glob("results/*.json"))]


@pytest.fixture
def checkout(
    tmp_path: Path, make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> Checkout:
    """Return a checkout with two pairs and their stored results."""
    monkeypatch.setattr("harness.fleet.logs.PROJECT_ROOT", tmp_path)
    made = Checkout(tmp_path, make_pair)
    made.says("add", recorded(1.004))
    made.says("norm", recorded(1.62))
    assert made.run("--update-baseline", "--no-history") == 0
    return made


def test_unchanged_run_passes_the_gate(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkout.run("--check-baseline") == 0
    assert "gate against baselines/cpu-runner.json: 2 OK" in capsys.readouterr().out


def test_slowdown_is_measured_again_and_exits_with_4(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.says("add", recorded(1.004 * 0.97), recorded(1.004 * 0.971))
    assert checkout.run("--check-baseline", "--json", str(checkout.root / "o.json")) == 4
    out, err = capsys.readouterr()
    assert "measuring again: add/recorded\n" in err
    assert "REGRESSED -3.0 %" in out or "REGRESSED -2.9 %" in out
    written = json.loads((checkout.root / "o.json").read_text())
    assert written["exit_code"] == 4
    assert written["gate"]["baseline"] == "baselines/cpu-runner.json"
    assert [d["gate_class"] for d in written["gate"]["pairs"]] == ["REGRESSED", "OK"]
    assert written["gate"]["pairs"][0]["measurements"] == 2


def test_slowdown_that_is_gone_the_second_time_passes(checkout: Checkout) -> None:
    checkout.says("add", recorded(1.004 * 0.975), recorded(1.004))
    assert checkout.run("--check-baseline") == 0


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"status": "WRONG_VALUES", "speed": {}}, 1),
        ({"precision": "tf32"}, 5),
        ({"launches": 0}, 5),
        ({"findings": [{"kind": "data race", "message": "m"}]}, 5),
        ({"status": "SKIPPED", "speed": {}}, 6),
        ({"problem_hash": "c" * 64}, 7),
        ({"status": "HARNESS_ERROR", "speed": {}}, 3),
    ],
)
def test_planted_fault_has_its_own_exit_code(
    checkout: Checkout, said: dict[str, Any], code: int
) -> None:
    checkout.says("norm", recorded(1.62, **said))
    assert checkout.run("--check-baseline") == code


def test_deleted_pair_exits_with_6_and_is_named(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout.root / "solutions" / "norm" / "recorded.py").unlink()
    assert checkout.run("--check-baseline") == 6
    assert "MISSING norm/recorded" in capsys.readouterr().out


def test_deleted_pair_is_not_missed_by_a_run_of_other_pairs(checkout: Checkout) -> None:
    (checkout.root / "solutions" / "norm" / "recorded.py").unlink()
    assert checkout.run("add", "--check-baseline") == 0


def test_extra_pair_exits_with_8(checkout: Checkout) -> None:
    checkout.says("new", recorded(1.0))
    assert checkout.run("--check-baseline") == 8
    assert checkout.run("new", "--update-baseline") == 0
    assert checkout.run("--check-baseline") == 0


def test_no_baseline_at_all_exits_with_8(checkout: Checkout) -> None:
    checkout.baseline.unlink()
    assert checkout.run("--check-baseline") == 8


def test_wide_interval_exits_with_9(checkout: Checkout) -> None:
    wide = recorded(1.0)
    wide["speed"].update(low=0.94, high=1.06)
    checkout.says("add", wide)
    assert checkout.run("--check-baseline") == 9


def test_truncated_baseline_exits_with_2_before_anything_runs(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.baseline.write_text(checkout.baseline.read_text()[:500])
    for option in ("--check-baseline", "--update-baseline"):
        assert checkout.run(option) == 2
        err = capsys.readouterr().err
        assert "cpu-runner.json: is damaged" in err
        assert "left" not in err
    assert len(checkout.baseline.read_text()) == 500


def test_baseline_of_another_device_exits_with_7(checkout: Checkout) -> None:
    plain = json.loads(checkout.baseline.read_text())
    other = checkout.root / "h200.json"
    other.write_text(json.dumps({**plain, "device": "nvidia-h200"}))
    assert checkout.run("--check-baseline", str(other)) == 7
    assert checkout.run("--update-baseline", str(other)) == 2


def test_failed_pair_is_not_stored_and_that_is_said(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads(checkout.baseline.read_text())["pairs"]["norm/recorded"]
    checkout.says("norm", recorded(1.7, status="WRONG_VALUES", speed={}))
    checkout.says("add", recorded(1.1))
    assert checkout.run("--update-baseline") == 1
    out = capsys.readouterr().out
    assert "not stored: norm/recorded is WRONG_VALUES; its old entry stays" in out
    assert "stored: add/recorded (1.004x -> 1.100x)" in out
    assert json.loads(checkout.baseline.read_text())["pairs"]["norm/recorded"] == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--check-baseline", "--update-baseline"), "check, then update"),
        (("--check-baseline", "norm"), "name pairs before"),
        (("--check-baseline", "none.json"), "no such baseline"),
        (("--update-baseline", "--fail-fast"), "leave out --fail-fast"),
        (("--html", "no/folder/x.html"), "does not exist"),
        (("--junit", "."), "is a folder"),
        (("--report", "none.json"), "none.json"),
        (("--compare", "none.json", "none.json"), "none.json"),
    ],
)
def test_bad_usage_of_the_gate_and_reports_exits_with_2(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert checkout.run(*argv) == 2
    assert said in capsys.readouterr().err


def test_every_run_is_kept_in_the_history(checkout: Checkout) -> None:
    assert checkout.history() == []
    checkout.run()
    checkout.run("--check-baseline")
    first, second = checkout.history()
    assert [v["pair"] for v in first["verdicts"]] == ["add/recorded", "norm/recorded"]
    assert second["gate"]["exit_code"] == 0
    checkout.run("--no-history")
    assert len(checkout.history()) == 2


def test_history_that_cannot_be_written_is_a_warning(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    assert checkout.run("add") in (0, 3)
    assert "could not be stored in the history" in capsys.readouterr().err


def test_reports_are_written_by_a_run_and_again_from_its_record(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.says("norm", recorded(1.7))
    source = checkout.root / "solutions" / "norm" / "recorded.py"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    wrong = recorded(1.7, status="WRONG_VALUES", speed={}, solution_hash=digest)
    checkout.says("norm", wrong)
    first = {kind: tmp_path / f"first.{kind}" for kind in ("html", "markdown", "junit")}
    again = {kind: tmp_path / f"again.{kind}" for kind in first}
    assert checkout.run(*(f"--{kind}={path}" for kind, path in first.items())) == 1
    (kept,) = (tmp_path / "results").glob("*.json")
    for log in (tmp_path / "results" / "logs").rglob("*.log"):
        log.unlink()
    targets = [f"--{kind}={path}" for kind, path in again.items()]
    assert checkout.run("--report", str(kept), *targets) == 0
    for kind in first:
        assert first[kind].read_text() == again[kind].read_text(), kind
    assert "Source: recorded.py" in first["html"].read_text()
    assert "stderr of recorded" in first["html"].read_text()


def test_source_that_changed_since_is_not_shown(checkout: Checkout, tmp_path: Path) -> None:
    wrong = recorded(1.7, status="WRONG_VALUES", speed={}, solution_hash="d" * 64)
    checkout.says("norm", wrong)
    checkout.run("--html", str(tmp_path / "o.html"))
    assert "Source: recorded.py" not in (tmp_path / "o.html").read_text()


def test_report_skips_what_is_no_run(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkout.run()
    (kept,) = (tmp_path / "results").glob("*.json")
    (tmp_path / "results" / "mine.json").write_text("{}")
    capsys.readouterr()
    assert checkout.run("--report", str(tmp_path / "results" / "mine.json"), str(kept)) == 0
    out, err = capsys.readouterr()
    assert "1.62x" in out
    assert "mine.json: not a document of a run" in err


def test_comparison_of_two_runs_has_the_gates_exit_code(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkout.run("--json", str(tmp_path / "a.json"))
    checkout.says("norm", recorded(1.5))
    checkout.run("--json", str(tmp_path / "b.json"))
    capsys.readouterr()
    assert checkout.run("--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")) == 4
    out = capsys.readouterr().out
    assert "1.620x" in out and "1.500x" in out and "-7.4 %" in out
    assert checkout.run("--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")) == 0


def test_root_names_another_folder_of_pairs(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--root", str(checkout.root), "--list")
    assert main(argv, root=Path("/nonexistent")) == 0
    assert capsys.readouterr().out == "add/recorded\nnorm/recorded\n"


def test_relative_root_is_as_good_as_an_absolute_one(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout.root.parent)
    argv = ("--root", checkout.root.name, "--check-baseline", "--device", "emulated")
    assert main(argv, judge_command=FAKE_JUDGE) == 0
    assert main(("--root", "no-such-folder")) == 2


def test_entries_of_pairs_that_are_gone_go_with_a_run_of_everything_only(
    checkout: Checkout,
) -> None:
    (checkout.root / "solutions" / "norm" / "recorded.py").unlink()
    assert checkout.run("add", "--update-baseline") == 0
    assert len(json.loads(checkout.baseline.read_text())["pairs"]) == 2
    assert checkout.run("--update-baseline") == 0
    assert list(json.loads(checkout.baseline.read_text())["pairs"]) == ["add/recorded"]


def test_run_in_which_nothing_passes_writes_no_baseline(checkout: Checkout) -> None:
    checkout.baseline.unlink()
    checkout.says("norm", recorded(1.7, status="WRONG_VALUES", speed={}))
    assert checkout.run("norm", "--update-baseline") == 1
    assert not checkout.baseline.exists()


def test_baseline_is_checked_and_renewed_from_a_record_of_another_machine(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = str(tmp_path / "artifact.json")
    checkout.says("norm", recorded(1.5))
    checkout.run("--json", record, "--no-history")
    assert checkout.run("--report", record, "--check-baseline") == 4
    assert checkout.run("--report", record, "--update-baseline") == 0
    assert "stored: norm/recorded (1.620x -> 1.500x)" in capsys.readouterr().out
    assert checkout.run("--report", record, "--check-baseline") == 0


def test_report_needs_no_torch(tmp_path: Path, checkout: Checkout) -> None:
    checkout.run()
    (kept,) = (tmp_path / "results").glob("*.json")
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None; "
        "from harness.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = ("--report", str(kept), "--markdown", str(tmp_path / "o.md"), "--junit", "/dev/null")
    done = subprocess.run([sys.executable, "-c", program, *argv], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert (tmp_path / "o.md").stat().st_size


@pytest.mark.parametrize(("columns", "no_color"), [(44, ""), (80, "1")])
def test_terminal_table_respects_width_and_no_color(
    checkout: Checkout, tmp_path: Path, columns: int, no_color: str
) -> None:
    checkout.run()
    (kept,) = (tmp_path / "results").glob("*.json")
    env = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": no_color, "TERM": "xterm"}
    program = "import sys; from harness.cli.main import main; sys.exit(main(sys.argv[1:]))"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--report", str(kept)], cwd=ROOT, env=env, stdout=theirs
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:
            break
        if not chunk:
            break
        said += chunk
    os.close(ours)
    assert process.wait(timeout=20) == 0
    table = said.decode().split("\r\n\r\n")[1]
    assert "PASSED" in table
    assert ("\x1b[32m" in table) == (not no_color)
    bare = table.replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert max(map(len, bare.split("\r\n"))) <= columns
