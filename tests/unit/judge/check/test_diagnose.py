"""Messages: what wrong elements have in common, what to do next, and the reproducer."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.domain import Finding, Pair, Status
from harness.judge.check import causes, diagnose
from harness.judge.check.structure import Mismatch

pytestmark = pytest.mark.unit


def said(wrong: torch.Tensor | None, inputs: Any = ()) -> str:
    mismatch = Mismatch(status=Status.WRONG_VALUES, message="", wrong=wrong)
    return diagnose.pattern(mismatch, list(inputs))


def at(shape: tuple[int, ...], *index: Any) -> torch.Tensor:
    wrong = torch.zeros(shape, dtype=torch.bool)
    wrong[index] = True
    return wrong


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (None, ""),
        (torch.tensor(True), ""),
        (torch.zeros(8, dtype=torch.bool), ""),
        (torch.empty(0, dtype=torch.bool), ""),
        (torch.ones(2, 3, dtype=torch.bool), "all 6 elements are wrong"),
        (at((4, 8), slice(1, None)), "only in samples after the first"),
        (at((4, 8), slice(None), slice(6, None)), "from index 6 to the end of dim 1 (the last"),
        (at((4, 8), slice(None), slice(2, 4)), "only at indices 2 to 3 of dim 1"),
        (at((4, 9), slice(None), slice(1, None, 4)), "only at every 4th index of dim 1 from 1"),
        (at((4, 9), slice(None), [0, 1, 5]), "only at 3 of 9 indices of dim 1"),
        (at((2, 9), 0, 3), "1 of 18 elements are wrong, only at"),
    ],
)
def test_patterns_of_wrong_elements(wrong: torch.Tensor | None, expected: str) -> None:
    assert expected in said(wrong) if expected else said(wrong) == ""


def test_the_sign_of_an_input_is_named_where_it_decides() -> None:
    x = torch.tensor([[1.0, -1.0], [-2.0, 3.0]])
    assert said(x < 0, [x]).endswith("all of them where the input is negative")
    assert said(x > 0, [x]).endswith("all of them where the input is not negative")
    assert "input" not in said(x < 0, [x[:1], x.abs(), x.int(), "text"])


def test_every_status_that_blames_somebody_has_advice() -> None:
    for status in Status:
        advised = diagnose.advised(status, "it failed", "cpu")
        assert ("Next: " in advised) is (status is not Status.PASSED), status


def test_advice_is_one_short_line() -> None:
    """A solution chooses the text of its own exception."""
    message = diagnose.advised(Status.CRASHED, "a\n\n  b\t" + "x" * 10_000, "cpu")
    assert "\n" not in message and message.startswith("a b x") and len(message) < 2000
    assert diagnose.advised(Status.CRASHED, "it died. Next: call", "cpu") == "it died. Next: call"


def written(folder: Path, **changes: Any) -> str | None:
    fields: dict[str, Any] = {
        "device": "cpu",
        "mode": "forward",
        "rng": 1,
        "init": [2],
        "state": {"weight": torch.ones(2)},
        "inputs": [torch.ones(2)],
        "expected": torch.ones(2),
        "message": 'it is "wrong"\n{braces}',
    }
    pair = Pair(name="p", problem=folder / "reference.py", solution=folder / "solution.py")
    return diagnose.write_reproducer(folder / "out", pair, **fields | changes)


def test_reproducer_is_python_whatever_the_message_says(tmp_path: Path) -> None:
    script = written(tmp_path)
    assert script is not None
    compile(Path(script).read_text(), script, "exec")
    data = torch.load(tmp_path / "out" / "data.pt", weights_only=True)
    assert data["init"] == [2] and torch.equal(data["inputs"][0], torch.ones(2))
    assert json.loads((tmp_path / "out" / "about.json").read_text())["pair"] == "p"


def test_what_torch_cannot_load_safely_is_not_written(tmp_path: Path) -> None:
    assert written(tmp_path, init=[object()]) is None
    assert written(tmp_path, init=[{"a": (1, print)}]) is None
    assert written(tmp_path, limit_bytes=8) is None
    assert not (tmp_path / "out").exists()


def test_named_tuples_are_written_as_tuples(tmp_path: Path) -> None:
    point = namedtuple("point", "x y")  # noqa: PYI024
    assert written(tmp_path, inputs=[point(torch.ones(2), math.pi)], expected={"a": [1]})
    data = torch.load(tmp_path / "out" / "data.pt", weights_only=True)
    assert type(data["inputs"][0]) is tuple and data["expected"] == {"a": [1]}


def finding(**changes: Any) -> Finding:
    return Finding(**{"kind": "data race", "message": "k writes past", "kernel": "k"} | changes)


@pytest.mark.parametrize("status", [Status.TAMPERED, Status.HARNESS_ERROR])
def test_findings_do_not_hide_a_lie_or_our_own_fault(status: Status) -> None:
    assert causes.with_findings([finding()], status, "why") == (status, "why")


def test_findings_explain_what_went_wrong() -> None:
    assert causes.with_findings([], Status.PASSED, "") == (Status.PASSED, "")
    status, message = causes.with_findings([finding()] * 3, Status.WRONG_VALUES, "why")
    assert status is Status.MEMORY_FAULT and message.endswith("(2 more findings)")


@pytest.mark.parametrize(("detail", "blamed"), [("", False), ("beyond a tensor", True)])
def test_a_signal_in_host_code_is_a_fault_only_where_it_touched_a_tensor(
    detail: str, blamed: bool
) -> None:
    found = [finding(kernel="", detail=detail)]
    status, _ = causes.with_findings(found, Status.CRASHED, "died with SIGSEGV")
    assert status is (Status.MEMORY_FAULT if blamed else Status.CRASHED)


@pytest.mark.parametrize("status", [Status.MEMORY_FAULT, Status.CRASHED])
def test_advice_does_not_name_the_device_that_is_in_use(status: Status) -> None:
    assert "--device emulated" in diagnose.advised(status, "it failed", "cuda:0")
    assert "--device" not in diagnose.advised(status, "it failed", "emulated")
