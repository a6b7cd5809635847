"""Acceptance runs: which verdict counts, who disagrees, what is unexplained; own-code folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import acceptance, own_code
from benchmarks import verdicts as stored
from benchmarks.acceptance import Agreement, Row, main
from benchmarks.verdicts import Theirs
from harness.domain import SpeedOutcome, Status, UsageError
from harness.pairs.discover import discover


def write_root(folder: Path, *names: str) -> Path:
    """Write a root of pairs whose files hold their own names."""
    for name in names:
        problem, solution = name.split("/")
        for kind, file in (("problems", "reference.py"), ("solutions", f"{solution}.py")):
            target = folder / kind / problem / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(f"# {name}\nclass ModelNew: ...\n" if kind == "solutions" else "")
    return folder


def verdict(pair: str, status: str = "PASSED", **more: Any) -> dict[str, Any]:
    return {"pair": pair, "status": status, "message": "", **more}


def write_document(path: Path, *verdicts: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"schema_version": 2, "verdicts": list(verdicts)}))
    return path


def write_lines(path: Path, *verdicts: dict[str, Any], cut: str = "") -> Path:
    lines = [json.dumps({"key": str(i), "verdict": v}) + "\n" for i, v in enumerate(verdicts)]
    path.write_text("".join(lines) + cut)
    return path


def test_a_document_and_lines_are_read_alike(tmp_path: Path) -> None:
    one, other = verdict("a/x"), verdict("b/x", "CRASHED")
    document = write_document(tmp_path / "run.json", one, other)
    lines = write_lines(tmp_path / "run.jsonl", one, other)
    single = write_lines(tmp_path / "single.jsonl", one)
    assert stored.read_runs([document]) == stored.read_runs([lines])
    assert list(stored.read_runs([single])) == ["a/x"]


def test_a_last_line_that_was_cut_off_is_left_out_and_no_other_is(tmp_path: Path) -> None:
    cut = write_lines(tmp_path / "cut", verdict("a/x"), cut='{"key": "1", "verd')
    assert list(stored.read_runs([cut])) == ["a/x"]
    broken = tmp_path / "broken"
    broken.write_text('{"key": "1", "verd\n' + cut.read_text())
    with pytest.raises(UsageError, match="broken:1"):
        stored.read_runs([broken])


def test_a_file_without_verdicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no verdicts"):
        stored.read_runs([write_lines(tmp_path / "empty")])


def test_fields_of_later_versions_are_no_obstacle(tmp_path: Path) -> None:
    later = verdict("a/x", warnings=["one", {"kind": "stream", "message": "two"}], shape_of=7)
    (read,) = stored.read_runs([write_document(tmp_path / "run.json", later)])["a/x"]
    assert read.warnings == ("one", "two")


def test_messages_do_not_name_the_folder_of_a_machine(tmp_path: Path) -> None:
    said = verdict(
        "a/x", "BUILD_FAILED", message="no w at /home/me/pub/solutions/a/x.py:3. Next: x"
    )
    (read,) = stored.read_runs([write_document(tmp_path / "run.json", said)])["a/x"]
    assert read.message == "no w at solutions/a/x.py:3. Next: x"


def one_row(tmp_path: Path, *verdicts: dict[str, Any], **said: Any) -> Row:
    root = write_root(tmp_path / "root", "a/x")
    runs = stored.read_runs([write_lines(tmp_path / "run", *verdicts)] if verdicts else [])
    pairs = discover(root).pairs
    index = {"a/x": stored.Entry(source="s", said=Theirs(**said))}
    (row,) = acceptance.rows_of(pairs, runs, index, {})
    return row


def test_the_last_verdict_counts_and_skipped_only_alone(tmp_path: Path) -> None:
    crashed, passed, skipped = (verdict("a/x", s) for s in ("CRASHED", "PASSED", "SKIPPED"))
    row = one_row(tmp_path, crashed, passed, skipped)
    assert row.ours is not None
    assert row.ours.status is Status.PASSED
    row = one_row(tmp_path, skipped)
    assert row.ours is not None
    assert row.ours.status is Status.SKIPPED


def test_a_verdict_on_another_file_does_not_count(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", "a/x")
    now = hashlib.sha256((root / "solutions/a/x.py").read_bytes()).hexdigest()
    assert one_row(tmp_path, verdict("a/x", solution_hash=now)).ours is not None
    assert one_row(tmp_path, verdict("a/x", solution_hash="0" * 64)).ours is None


@pytest.mark.parametrize(
    ("status", "correct", "expected"),
    [
        ("PASSED", True, Agreement.BOTH_ACCEPT),
        ("PASSED", False, Agreement.THEY_REFUSE),
        ("PASSED", None, Agreement.ACCEPTED),
        ("WRONG_VALUES", True, Agreement.WE_REFUSE),
        ("WRONG_VALUES", False, Agreement.BOTH_REFUSE),
        ("WRONG_VALUES", None, Agreement.REFUSED),
        ("WEAK_PROBLEM", True, Agreement.WE_REFUSE),
        ("SKIPPED", True, Agreement.OPEN),
        ("HARNESS_ERROR", True, Agreement.OPEN),
    ],
)
def test_agreement(tmp_path: Path, status: str, correct: bool | None, expected: Agreement) -> None:
    assert one_row(tmp_path, verdict("a/x", status), correct=correct).agreement is expected


def test_a_pair_that_was_not_run_is_open(tmp_path: Path) -> None:
    assert one_row(tmp_path, correct=True).agreement is Agreement.OPEN


def test_kernelbench_on_the_same_machine_replaces_the_source() -> None:
    ours = stored.Ours(pair="a/x", status=Status.PASSED)
    wrong, right, unknown = Theirs(correct=False), Theirs(correct=True), Theirs()
    row = Row(pair="a/x", source="s", ours=ours, from_source=wrong, from_kernelbench=right)
    assert row.agreement is Agreement.BOTH_ACCEPT
    row = Row(pair="a/x", source="s", ours=ours, from_source=wrong, from_kernelbench=unknown)
    assert row.agreement is Agreement.THEY_REFUSE


TABLE = """
Text, and a table that explains nothing.

| pair | ours |
|---|---|
| `a/x` | 1 |

| pair | what | right | reason |
|---|:--|---|---|
| `a/x` | . | ours | tanh \\| exact |
| b/* | . | neither | both guess |
"""


def test_explanations_are_json_or_a_markdown_table(tmp_path: Path) -> None:
    table, plain = tmp_path / "why.md", tmp_path / "why.json"
    table.write_text(TABLE)
    plain.write_text(
        json.dumps({"a/x": ["ours", "tanh | exact"], "b/*": ["neither", "both guess"]})
    )
    assert stored.read_explanations(table) == stored.read_explanations(plain)
    known = stored.read_explanations(table)
    assert stored.explain("b/y", known) == known[1]
    assert stored.explain("c/y", known) is None


def test_an_explanation_says_who_is_right(tmp_path: Path) -> None:
    path = tmp_path / "why.json"
    path.write_text(json.dumps({"a/x": ["maybe", "hm"]}))
    with pytest.raises(UsageError, match="'maybe'"):
        stored.read_explanations(path)


def test_the_page_is_good_only_when_each_disagreement_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_root(tmp_path / "root", "a/x", "b/x")
    run = write_document(
        tmp_path / "run.json",
        verdict("a/x", "PRECISION_LOST", message="tf32 | or so"),
        verdict("b/x", warnings=["ignores the current stream"]),
    )
    index = tmp_path / "index.json"
    entry = {"source": "someone", "model": "m1", "correct": True, "hardware": "A100"}
    index.write_text(json.dumps({"a/x": entry, "b/x": {**entry, "model": "m2"}}))
    command = [str(root), str(run), "--index", str(index)]
    assert main(command) == 1
    page = capsys.readouterr().out
    assert "2 pairs from 1 sources, 2 evaluated." in page
    assert "| `a/x` | someone, m1 | correct (A100) | not run |" in page
    assert "PRECISION_LOST: tf32 \\| or so | **open** |" in page
    assert "ignores the current stream" in page
    why = tmp_path / "why.json"
    why.write_text(json.dumps({"a/x": ["ours", "its product is TF32"], "old/*": ["ours", "gone"]}))
    assert main([*command, "--explanations", str(why)]) == 0
    page = capsys.readouterr().out
    assert "| ours | its product is TF32 |" in page
    assert "1 are accepted by them and refused by us, 1 of them rightly." in page
    assert "Explanations that name no disagreement: old/*." in page


def timed(pair: str, speedup: float, outcome: str = "SAME") -> dict[str, Any]:
    speed = {"outcome": outcome, "speedup": speedup, "low": speedup * 0.99, "high": speedup * 1.01}
    return verdict(pair, speed=speed)


def test_own_code_has_percentiles_a_picture_and_no_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_root(tmp_path / "root", *(f"p{i}/own" for i in range(5)))
    even = [timed(f"p{i}/own", 0.99 + 0.005 * i) for i in range(4)]
    weak = verdict("p4/own", "WEAK_PROBLEM", message="zeros pass")
    picture = tmp_path / "speedups.svg"
    run = write_document(tmp_path / "even.json", *even, weak)
    pytest.importorskip("matplotlib")
    assert main([str(root), str(run), "--own", "--picture", str(picture)]) == 0
    page = capsys.readouterr().out
    assert "4 timed: 0 FASTER, 4 SAME" in page
    assert "| speedup | 0.990 |" in page
    assert "| `p4/own` | WEAK_PROBLEM | zeros pass |" in page
    assert "<svg" in picture.read_text()
    slow = write_document(tmp_path / "slow.json", timed("p0/own", 0.5, "SLOWER"))
    assert main([str(root), str(run), str(slow), "--own"]) == 1
    assert "| `p0/own` | SLOWER | 0.500x | 0.495x to 0.505x |" in capsys.readouterr().out
    wrong = write_document(tmp_path / "wrong.json", verdict("p0/own", "PRECISION_LOST"))
    assert main([str(root), str(run), str(wrong), "--own"]) == 1


def test_only_chosen_pairs_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_root(tmp_path / "root", "a/x", "b/x")
    run = write_document(tmp_path / "run.json", verdict("a/x"), verdict("b/x", "CRASHED"))
    names = tmp_path / "names.txt"
    names.write_text("a/x\n")
    assert main([str(root), str(run), "--select", f"@{names}"]) == 0
    assert "1 pairs" in capsys.readouterr().out


def test_what_kernelbench_measured_stands_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "kb.jsonl"
    line = {"pair": "a/x", "compiled": True, "correctness": False}
    line["metadata"] = {"max_difference": ["0.5"], "correctness_issue": "Output mismatch"}
    path.write_text(json.dumps(line) + "\n")
    said = stored.read_kernelbench(path)["a/x"]
    assert said.word == "wrong"
    assert "Output mismatch" in said.note
    assert "0.5" in said.note


def test_infinite_figures_are_no_speedups() -> None:
    ours = stored.Ours(
        pair="a/x", status=Status.PASSED, outcome=SpeedOutcome.UNDECIDED, speedup=float("inf")
    )
    assert acceptance.speedups([Row(pair="a/x", source="s", ours=ours)]) == []


PROBLEM = """
import torch

class Block(torch.nn.Module): ...

class Model(torch.nn.Module):
    def __init__(self):
        super(Model, self).__init__()
        self.block = Block()
"""


def test_own_code_is_the_problem_with_its_model_renamed(tmp_path: Path) -> None:
    level = tmp_path / "KernelBench" / "level2"
    level.mkdir(parents=True)
    (level / "7_Some_Name_.py").write_text(PROBLEM)
    (level / "notes.py").write_text("")
    root = tmp_path / "root"
    assert own_code.main([str(level.parent), str(root)]) == 0
    (pair,) = discover(root).pairs
    assert pair.name == "l2_007_Some_Name_/own"
    assert pair.problem.read_text() == PROBLEM
    own = pair.solution.read_text()
    assert "class ModelNew(torch.nn.Module)" in own
    assert "super(ModelNew, self)" in own
    assert "class Block(torch.nn.Module)" in own


def test_a_folder_without_levels_is_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_code.main([str(tmp_path), str(tmp_path / "root")]) == 2
    assert "KernelBench checkout" in capsys.readouterr().err
