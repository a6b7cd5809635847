"""Baseline files: what is stored, what is refused, and what a damaged file is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.domain import MEASUREMENT_VERSION, Speed, Status, UsageError
from harness.gate import device_kind, read_results, stored_from_run, updated
from tests.records import H200, run, speed, verdict

BOTH = ("add/solution", "norm/solution")


def written(tmp_path: Path, *verdicts: object, device: str = "nvidia-h200") -> Path:
    path = tmp_path / f"{device}.json"
    names = [v.pair for v in verdicts]
    path.write_text(updated(None, run(*verdicts), device, names).text)
    return path


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("emulated", "cpu-runner"),
        ("cpu", "cpu"),
        ("cuda:0", "nvidia-h200"),
        ("cuda:1", "nvidia-geforce-rtx-4090"),
        ("cuda:7", "unknown-gpu"),
    ],
)
def test_kind_of_device_is_a_file_name(device: str, kind: str) -> None:
    assert device_kind(device, ["NVIDIA H200", "NVIDIA GeForce RTX 4090"]) == kind


def test_stored_results_are_read_back_as_they_were(tmp_path: Path) -> None:
    blocks = {"reference": (3.01, 3.0), "candidate": (1.86, 1.85)}
    given = verdict("norm/solution", speed=speed(1.62, blocks=blocks, noise_floor=0.002))
    stored = read_results(written(tmp_path, given))
    assert stored.device == "nvidia-h200"
    entry = stored.pairs["norm/solution"]
    assert entry.verdict == given
    assert entry.environment == {k: H200.get(k) for k in entry.environment}
    assert entry.environment["driver"] == "580.159.04"
    assert entry.measurement_version == MEASUREMENT_VERSION


def test_file_keeps_lists_on_one_line(tmp_path: Path) -> None:
    blocks = {"reference": (3.01, 3.0, 2.99)}
    path = written(tmp_path, verdict(speed=speed(1.6, blocks=blocks), message="a [b], {c}"))
    assert '"reference": [3.01, 3.0, 2.99]' in path.read_text()
    assert path.read_text().endswith("}\n")


def test_pair_that_did_not_pass_is_not_stored_and_its_entry_stays(tmp_path: Path) -> None:
    old = read_results(written(tmp_path, verdict("add/solution"), verdict("norm/solution")))
    wrong = verdict("norm/solution", status=Status.WRONG_VALUES)
    new = verdict("new/solution", status=Status.CRASHED)
    update = updated(old, run(wrong, new), "nvidia-h200", [*BOTH, "new/solution"])
    assert sorted(json.loads(update.text)["pairs"]) == sorted(BOTH)
    assert update.said == (
        "not stored: norm/solution is WRONG_VALUES; its old entry stays",
        "not stored: new/solution is CRASHED; it has no entry",
    )


def test_skipped_pair_is_stored_as_such_where_nothing_better_is(tmp_path: Path) -> None:
    skipped = verdict("norm/solution", status=Status.SKIPPED, message="at /home/me: needs sm_90a")
    update = updated(None, run(skipped), "nvidia-h200", BOTH)
    assert update.said == ("stored: norm/solution (new) as SKIPPED",)
    assert "/home/me" not in update.text
    old = read_results(written(tmp_path, verdict("norm/solution")))
    update = updated(old, run(skipped), "nvidia-h200", BOTH)
    assert update.said == ("not stored: norm/solution is SKIPPED; its old entry stays",)


def test_pair_that_nobody_looked_at_is_not_stored(tmp_path: Path) -> None:
    """Interrupted before its turn: SKIPPED, but for no reason of its own."""
    left = verdict("norm/solution", status=Status.SKIPPED, message="interrupted", problem_hash="")
    update = updated(None, run(left), "nvidia-h200", [left.pair])
    assert update.said == ("not stored: norm/solution was not evaluated: interrupted",)
    assert update.text == ""


def test_pairs_that_were_not_run_stay_and_those_that_are_gone_go(tmp_path: Path) -> None:
    old = read_results(written(tmp_path, verdict("add/solution"), verdict("norm/solution")))
    faster = verdict("norm/solution", speed=speed(2.0))
    update = updated(old, run(faster), "nvidia-h200", BOTH)
    assert sorted(json.loads(update.text)["pairs"]) == sorted(BOTH)
    assert update.said == ("stored: norm/solution (1.620x -> 2.000x)",)
    update = updated(old, run(faster), "nvidia-h200", ["norm/solution"])
    assert list(json.loads(update.text)["pairs"]) == ["norm/solution"]
    assert update.said[-1] == "removed: add/solution no longer exists"


def test_pair_of_another_device_is_not_stored() -> None:
    update = updated(None, run(verdict(device="emulated", speed=Speed())), "nvidia-h200", ())
    assert update.text == ""
    assert "ran on cpu-runner" in update.said[0]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_named_and_refused(tmp_path: Path, share: float) -> None:
    path = written(tmp_path, verdict("add/solution"), verdict("norm/solution"))
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(UsageError, match=r"nvidia-h200.json: is damaged.*restore the file"):
        read_results(path)


def test_missing_file_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such baseline.*--update-baseline"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"baseline_schema": 99}, "schema 99"),
        ({"baseline_schema": 0}, "schema 0"),
        ({"pairs": []}, "is no baseline"),
        ({"pairs": {"a/b": {}}}, "is no baseline"),
    ],
)
def test_file_of_another_form_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = written(tmp_path, verdict())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match=said):
        read_results(path)


def test_run_document_is_not_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"schema_version": 2, "verdicts": []}')
    with pytest.raises(UsageError, match="is no baseline"):
        read_results(path)


def test_run_stands_in_for_stored_results() -> None:
    stored = stored_from_run(run(verdict()))
    assert stored.device == "nvidia-h200"
    assert stored.source == "stored.json"
