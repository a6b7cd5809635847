"""KernelBench's verdicts are collected one process per pair; a stand-in plays KernelBench."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernelbench_process import STAND_INS, BaseModel
from benchmarks.kernelbench_verdicts import left_to_do, main, plain_verdict
from harness.pairs.discover import discover

# Does what the solution's first line says; importing pydantic and openai is part of the play.
FAKE = """
import os, time, types
from openai import OpenAI
from pydantic import BaseModel

torch = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: {cuda}))


class Result(BaseModel):
    compiled: bool = False
    correctness: bool = False
    runtime: float = -1.0
    ref_runtime: float = -1.0
    metadata: dict = {{}}


def load_custom_model(source, context, build_dir):
    if "unbuilt" in source:
        raise ValueError("no such header")
    return object


def eval_kernel_against_ref(original_model_src, custom_model_src, device, build_dir, **trials):
    assert original_model_src == "" and device == "cuda:0" and trials["num_correct_trials"] == 5
    if "dies" in custom_model_src:
        os.abort()
    if "hangs" in custom_model_src:
        time.sleep(600)
    if "raises" in custom_model_src:
        raise TypeError("forward takes 1 argument")
    right = "right" in custom_model_src
    return Result(compiled=True, correctness=right, runtime=2.0, metadata={{"why": OSError("x")}})
"""


def write_fake(folder: Path, *, cuda: bool = True) -> Path:
    package = folder / "src" / "kernelbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "eval.py").write_text(FAKE.format(cuda=cuda))
    return folder / "src"


def write_root(folder: Path, *kinds: str) -> Path:
    (folder / "problems" / "p").mkdir(parents=True)
    (folder / "problems" / "p" / "reference.py").write_text("")
    (folder / "solutions" / "p").mkdir(parents=True)
    for kind in kinds:
        (folder / "solutions" / "p" / f"{kind}.py").write_text(f"# {kind}\nclass ModelNew: ...\n")
    return folder


def lines(path: Path) -> dict[str, dict[str, Any]]:
    return {entry["pair"]: entry for entry in map(json.loads, path.read_text().splitlines())}


def test_each_pair_gets_its_verdict_whatever_its_solution_does(tmp_path: Path) -> None:
    source = write_fake(tmp_path)
    root = write_root(tmp_path / "root", "right", "wrong", "dies", "hangs", "raises", "unbuilt")
    out = tmp_path / "kb.jsonl"
    command = [str(root), "--kernelbench", str(source), "--out", str(out), "--jobs", "2"]
    command += ["--cache", str(tmp_path / "cache"), "--time-limit", "3", "--at-once", "2"]
    assert main(command) == 0
    found = lines(out)
    assert {name: v["correctness"] for name, v in found.items()} == {
        "p/right": True,
        "p/wrong": False,
        "p/dies": False,
        "p/hangs": None,
        "p/raises": False,
        "p/unbuilt": False,
    }
    assert found["p/right"]["runtime"] == 2.0
    assert found["p/unbuilt"]["compiled"] is False
    assert "no such header" in found["p/unbuilt"]["metadata"]["compilation_error"]
    assert "signal 6" in found["p/dies"]["metadata"]["error"]
    assert "within 3 s" in found["p/hangs"]["metadata"]["error"]
    assert "TypeError" in found["p/raises"]["metadata"]["error"]


def test_what_stands_in_the_file_is_not_run_again_unless_it_changed(tmp_path: Path) -> None:
    source = write_fake(tmp_path)
    root = write_root(tmp_path / "root", "right", "wrong")
    out = tmp_path / "kb.jsonl"
    command = [str(root), "--kernelbench", str(source), "--out", str(out)]
    command += ["--cache", str(tmp_path / "cache")]
    assert main([*command, "p/right"]) == 0
    assert list(lines(out)) == ["p/right"]
    with out.open("a") as stream:
        stream.write('{"pair": "p/wro')  # an interrupt cut this line off
    pairs = discover(root).pairs
    assert [p.name for p in left_to_do(pairs, out)] == ["p/wrong"]
    assert list(lines(out)) == ["p/right"]
    (root / "solutions/p/right.py").write_text("# wrong\nclass ModelNew: ...\n")
    assert [p.name for p in left_to_do(pairs, out)] == ["p/right", "p/wrong"]


def test_without_a_gpu_or_without_kernelbench_nobody_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_root(tmp_path / "root", "right"), tmp_path / "kb.jsonl"
    command = [str(root), "--out", str(out), "--cache", str(tmp_path / "cache"), "--kernelbench"]
    assert main([*command, str(write_fake(tmp_path, cuda=False))]) == 2
    assert "needs a GPU" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "nowhere")]) == 2
    assert "cannot be imported" in capsys.readouterr().err
    assert not out.exists()


def test_a_process_that_died_is_wrong_and_one_that_took_too_long_is_unknown() -> None:
    assert plain_verdict("a/x", {"died": "signal 11"})["correctness"] is False
    assert plain_verdict("a/x", {"timed_out": "3 s"})["correctness"] is None


def test_the_stand_in_of_a_record_has_its_own_defaults() -> None:
    class Record(BaseModel):
        compiled: bool = False
        metadata: dict = {}  # noqa: RUF012 - as KernelBench writes it

    one, other = Record(compiled=True), Record()
    one.metadata["a"] = 1
    assert (one.compiled, other.compiled, other.metadata) == (True, False, {})
    with pytest.raises(TypeError, match="unknown"):
        Record(unknown=1)


def test_the_process_imports_nothing_of_the_harness() -> None:
    code = (
        "import sys, benchmarks.kernelbench_process; print([m for m in sys.modules if 'harn' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert "pydantic" in STAND_INS
