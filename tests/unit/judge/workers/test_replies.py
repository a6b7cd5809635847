"""Replies that no worker of ours sends are refused by the one schema, whatever is wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from harness import ipc
from harness.judge.workers import replies

WEIGHT = {"name": "w", "kind": "parameter", "shape": [3, 2], "dtype": "float32", "tie": "w"}
LOAD: dict[str, Any] = {
    "state": [WEIGHT],
    "built": [],
    "failed": {},
    "files": [],
    "ships_cuda": False,
    "nvcc": [],
    "numeric_flags": {"cudnn.allow_tf32": False},
}
CALL: dict[str, Any] = {
    "odd": [],
    "aliases": [[0, 1]],
    "missing_grads": "",
    "kernels": {"k": 1},
    "values": {"output": {"v": 1}},
    "table": [],
}
GO: dict[str, Any] = {
    "claimed_ms": None,
    "allocations": [{"base": 512, "bytes": 1, "handle": "00" * 64}],
    "forms": [None],
    "state": [],
    "moving": [],
    "moving_at": [],
}
RIGHT = {"load": LOAD, "call": CALL, "go": GO, "state": {}, "profile": {"device_ms": 2}}


def read(do: str, **changes: Any) -> dict[str, Any]:
    return replies.read(do, {"id": 1, "ok": True, **RIGHT[do], **changes})


@pytest.mark.parametrize("do", RIGHT)
def test_what_a_worker_sends_is_read(do: str) -> None:
    assert replies.read(do, {"id": 1, "ok": True, **RIGHT[do], "launches": 3})["launches"] == 3


@pytest.mark.parametrize(("do", "name"), [(do, name) for do in RIGHT for name in RIGHT[do]])
@pytest.mark.parametrize("junk", [5, -1, math.nan, "x", [5], {"a": 5}, [[[]]], True, 10**30])
def test_a_field_of_another_kind_is_refused(do: str, name: str, junk: Any) -> None:
    accepted = [("profile", 5), ("go", 5), ("call", "x")]
    if (do, junk) in accepted and name in ("device_ms", "claimed_ms", "missing_grads"):
        assert read(do, **{name: junk})[name] == junk
        return
    if (name, junk) in [("ships_cuda", True), ("state", ["x"]), ("built", ["x"]), ("nvcc", ["x"])]:
        return
    if junk == {"a": 5} and name == "kernels":
        return
    with pytest.raises(ipc.WireViolation):
        read(do, **{name: junk})


@pytest.mark.parametrize(("do", "name"), [(do, name) for do in RIGHT for name in RIGHT[do]])
def test_a_missing_field_is_refused(do: str, name: str) -> None:
    said = {k: v for k, v in RIGHT[do].items() if k != name}
    with pytest.raises(ipc.WireViolation, match="missing"):
        replies.read(do, {"ok": True, **said})


@pytest.mark.parametrize(
    ("do", "changes"),
    [
        ("state", {"extra": 1}),
        ("state", {"too_small": 5, "tensors": 1}),
        ("load", {"state": [{**WEIGHT, "shape": [-1]}]}),
        ("load", {"state": [{**WEIGHT, "shape": [math.nan]}]}),
        ("load", {"state": [{k: v for k, v in WEIGHT.items() if k != "tie"}]}),
        ("load", {"files": ["x"] * 20_001}),
        ("load", {"failed": {"key": ["only one"]}}),
        ("call", {"aliases": [[0]]}),
        ("call", {"kernels": {"k": 1.5}}),
        ("call", {"odd": ["x"] * 11}),
        ("go", {"allocations": [{"base": 511, "bytes": 1, "handle": ""}]}),
        ("go", {"allocations": [{"base": 512, "bytes": 0, "handle": ""}]}),
        ("go", {"allocations": [{"base": 512, "bytes": 1, "handle": "zz"}]}),
        ("go", {"moving": [None]}),
        ("call", {"findings": [{"kind": "x", "block": [1, 2]}]}),
        ("call", {"findings": [{"message": "of no kind"}]}),
        ("call", {"launches": -1}),
        ("call", {"ok": 1}),
        ("call", {"ok": False}),
        ("call", {"ok": False, "error": {"kind": "raised"}}),
    ],
)
def test_what_cannot_be_is_refused(do: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ipc.WireViolation):
        read(do, **changes)


def test_long_text_of_user_code_is_cut_and_half_a_pair_is_no_text() -> None:
    """Compilers write megabytes, and file names may be no UTF-8: neither is tampering."""
    said = {"kind": "build", "message": "e" * 10**6 + "\ud800", "place": "\udce4" * 2000}
    failed = replies.read("load", {"ok": False, "error": said})["error"]
    assert len(failed["message"]) == 4000 and failed["place"] == "?" * 1000
    assert read("call", odd=["\ud800"])["odd"] == ["?"]


def test_events_are_known() -> None:
    assert replies.event({"event": "compiling", "name": "x"}) == "compiling"
    assert replies.event({"id": 1}) == ""
    for said in (
        {"event": 5, "name": "x"},
        {"event": "dancing", "name": ""},
        {"event": "compiled"},
    ):
        with pytest.raises(ipc.WireViolation):
            replies.event(said)


def test_findings_of_a_dying_process_are_read_line_by_line() -> None:
    line = json.dumps({"kind": "fault", "message": "m", "line": 0, "times": 1, "detail": "d"})
    assert [f.kind for f in replies.last_findings(f"{line}\n" * 60)] == ["fault"] * 50
    for bad in ("garbage", "[1]", "{}", '{"kind": 5}', "[" * 100_000):
        with pytest.raises(ipc.WireViolation):
            replies.last_findings(f"{line}\n{bad}\n")


@pytest.mark.parametrize(
    ("do", "values"),
    [
        ("call", {}),
        ("call", {"output": None}),
        ("call", {"output": None, "state": [torch.ones(1)]}),
        ("call", {"output": None, "state": {5: torch.ones(1)}}),
        ("call", {"output": None, "state": {"a": "text"}}),
        ("call", {"output": None, "state": {}, "input_grads": 5}),
        ("call", {"output": None, "state": {}, "state_grads": [torch.ones(1)]}),
        ("call", {"output": None, "state": {}, "inputs": []}),
        ("inputs", {"inputs": None}),
    ],
)
def test_values_of_another_form_are_refused(do: str, values: dict[str, Any]) -> None:
    with pytest.raises(ipc.WireViolation):
        replies.check_values(do, values)


def test_a_state_that_cannot_travel_is_no_tampering() -> None:
    state = {"sparse": ipc.Untransferable("sparse"), "w": torch.ones(1)}
    replies.check_values("call", {"output": None, "state": state, "input_grads": [None]})
