"""The live script's statistics, on fabricated records: what it prints must not rot unseen."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from benchmarks import live
from harness.gate import check, stored_from_run
from harness.report import render_run
from tests.records import run, speed, verdict


def documents(true: float, count: int, draw: random.Random) -> list[dict[str, Any]]:
    stored = stored_from_run(run(verdict("add/solution", speed=speed(1.0))))
    found = []
    for _ in range(count):
        measured = run(verdict("add/solution", speed=speed(true * draw.uniform(0.998, 1.002))))
        found.append(json.loads(render_run(check(stored, measured)[1])))
    return found


def test_replay_counts_classes_and_fails_on_a_false_regression(
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw = random.Random(1)
    record = {"unchanged": documents(1.0, 6, draw), "planted": documents(0.97, 2, draw)}
    assert live.replay(record) == 0
    out = capsys.readouterr().out
    rows = {line[:34].strip(): line[34:].split() for line in out.splitlines()}
    assert rows["replay unchanged, add"] == ["30"]
    assert rows["replay planted, add"] == ["12"]
    assert "add/solution: 6 runs" in out
    record["unchanged"] += documents(0.9, 1, draw)
    assert live.replay(record) == 1


def test_planted_slowdown_does_the_same_work_twice() -> None:
    class Tensor:
        def __init__(self, rows: int) -> None:
            self.rows = rows

        def size(self, _: int) -> int:
            return self.rows

        def dim(self) -> int:
            return 1

        def __getitem__(self, rows: slice) -> Tensor:
            return Tensor(rows.stop)

    calls: list[int] = []

    class ModelNew:
        def forward(self, x: Tensor) -> int:
            calls.append(x.rows)
            return x.rows

    exec(live.PLANT.format(share=0.03), {"ModelNew": ModelNew})
    assert ModelNew().forward(Tensor(200)) == 200
    assert calls == [200, 6]


def test_smaller_problem_differs_in_its_batch_alone() -> None:
    source = (live.ROOT / "problems" / "elementwise_add" / "reference.py").read_text()
    changed = live.smaller(source, 4)
    assert changed == source.replace("batch_size = 16384", "batch_size = 4096") != source
    assert live.smaller(source, 1) == source
    with pytest.raises(SystemExit, match="no line"):
        live.smaller("rows = 4", 4)
