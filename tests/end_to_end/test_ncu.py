"""``--ncu`` up to the profiler itself: a program that plays its part stands on PATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli.main import main
from harness.domain import Options, Pair, Status, UsageError, Verdict, to_json, verdict_from_json
from harness.fleet import run_pairs
from harness.judge.timing import ncu
from harness.judge.timing.ncu import command, judged
from harness.judge.workers.identity import Confinement, confinement
from harness.machine.environment import PROJECT_ROOT
from harness.pairs.settings import Settings
from tests.unit.judge.timing.test_ncu_report import REPORT

ALONE = Confinement(own_user=False)
REFERENCE = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 2.0))
    def forward(self, x):
        return x * self.weight
def get_inputs():
    return [torch.randn(4, 3)]
"""
SOLUTION = """
import os
import sys
import torch
class ModelNew(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 2.0))
    def forward(self, x):
        if "profile_call" in " ".join(sys.argv):
            print("profiled", tuple(x.shape), self.weight.tolist(), x.requires_grad, flush=True)
            {act}
        return x * self.weight
"""
FAKE = """\
#!{python}
import json, os, subprocess, sys, time
words = sys.argv[1:]
report = words[words.index("--log-file") + 1]
program = words[words.index({python!r}):]
print("ncu was told", json.dumps(words), "as", os.getuid(), flush=True)
{act}
"""
CALL_AND_REPORT = f"""
code = subprocess.call(program)
print("left", sorted(os.listdir(os.path.dirname(report))), flush=True)
open(report, "w").write({REPORT!r})
sys.exit(code)
"""
REFUSAL = (
    "==PROF== Connected to process 7 (/usr/bin/python3)\n"
    "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU "
    "Performance Counters on the target device 0.\n"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a worker's user id may read too."""
    with tempfile.TemporaryDirectory(prefix="test-ncu-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def fake_ncu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that puts a program named ncu first on PATH."""

    def put(act: str) -> Path:
        (folder / "bin").mkdir()
        program = folder / "bin" / "ncu"
        program.write_text(FAKE.format(python=sys.executable, act=textwrap.dedent(act)))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return program

    return put


def evaluated(
    folder: Path, act: str = "pass", solution: str | None = None, **changes: Any
) -> tuple[Verdict, str]:
    """Return what a judge process says of a pair with --ncu on the CPU, and its log.

    The fleet refuses --ncu without a GPU, so the judge is asked directly.
    """
    (folder / "reference.py").write_text(REFERENCE)
    (folder / "solution.py").write_text(solution or SOLUTION.format(act=act))
    options = Options(device="cpu", quick=True, seed=5, timed=False, ncu=True)
    request = {
        "pair": to_json(
            Pair(name="p/s", problem=folder / "reference.py", solution=folder / "solution.py")
        ),
        "options": {**to_json(options), **changes},
        "settings": Settings().to_json(),
        "log": str(folder / "pair.log"),
        "temporary": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-m", "harness.judge"],
        input=f'{json.dumps(request)}\n{{"grant": "device"}}\n',
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=PROJECT_ROOT,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    log = (folder / "pair.log").read_text() if (folder / "pair.log").exists() else ""
    return verdict_from_json(said[-1]["verdict"]), log + done.stderr


def only_note(verdict: Verdict) -> str:
    """Return what --ncu says in a verdict, which passed and has no kernels."""
    assert verdict.status is Status.PASSED, verdict.message
    assert verdict.ncu == ()
    (note,) = [n for n in verdict.notes if n.startswith("--ncu")]
    assert "Next: " in note
    return note


@pytest.mark.slow
def test_second_call_of_the_solution_is_profiled_with_its_own_state(
    folder: Path, fake_ncu: Callable[[str], Path]
) -> None:
    program = fake_ncu(CALL_AND_REPORT)
    verdict, log = evaluated(folder)
    assert verdict.status is Status.PASSED, verdict.message
    assert [k.name for k in verdict.ncu] == [
        "void norm_kernel<4>(float const*, float*, int)",
        "copy",
    ], log
    assert not [n for n in verdict.notes if n.startswith("--ncu")]
    assert log.count("profiled (4, 3)") == 2, log
    assert list(verdict.phases)[-1] == "ncu"
    told = json.loads(log.partition("ncu was told ")[2].partition(" as ")[0])
    assert told[told.index("--clock-control") + 1] == "none"
    assert str(program) not in told
    if os.geteuid() == 0:
        assert int(log.partition(" as ")[2].split()[0]) > 1_600_000_000


@pytest.mark.slow
def test_profiled_training_call_has_gradients(
    folder: Path, fake_ncu: Callable[[str], Path]
) -> None:
    fake_ncu(CALL_AND_REPORT)
    verdict, log = evaluated(folder, mode="train")
    assert len(verdict.ncu) == 2, log
    assert log.count("True\n") == 2, log


@pytest.mark.slow
def test_built_extension_comes_from_the_cache(
    folder: Path, fake_ncu: Callable[[str], Path]
) -> None:
    fake_ncu(CALL_AND_REPORT)
    source = "torch::Tensor scaled(torch::Tensor x, torch::Tensor w) { return x * w; }"
    inline = f"""
from torch.utils.cpp_extension import load_inline
made = load_inline("scaled", {source!r}, functions=["scaled"])
"""
    solution = SOLUTION.replace("x * self.weight", "made.scaled(x, self.weight)")
    verdict, log = evaluated(folder, solution=inline + solution.format(act="pass"))
    assert len(verdict.ncu) == 2, log
    left = log.partition("left ")[2].splitlines()[0]
    assert "build" not in left
    assert "tensors" in left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "said"),
    [
        (f"open(report, 'w').write({REFUSAL!r}); sys.exit(1)", "ERR_NVGPUCTRPERM"),
        ("sys.exit(3)", "cannot be read: it holds no table (exit code 3)"),
        ("os.symlink('/etc/passwd', report)", "cannot be read"),
        ("os.mkfifo(report)", "cannot be read"),
    ],
    ids=["no permission", "no report", "link", "pipe"],
)
def test_what_goes_wrong_is_a_note_and_no_verdict(
    folder: Path, fake_ncu: Callable[[str], Path], act: str, said: str
) -> None:
    fake_ncu(act)
    verdict, _ = evaluated(folder)
    assert said in only_note(verdict)


@pytest.mark.slow
def test_solution_that_fails_under_the_profiler_has_passed_all_the_same(
    folder: Path, fake_ncu: Callable[[str], Path]
) -> None:
    fake_ncu(CALL_AND_REPORT)
    verdict, _ = evaluated(folder, act="os._exit(9)")
    assert verdict.status is Status.PASSED
    (note,) = [n for n in verdict.notes if n.startswith("--ncu")]
    assert "exit code 9" in note


def test_missing_ncu_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ncu, "find_ncu", lambda: None)

    def never(build_folder: Path) -> ncu.Call:
        raise AssertionError("nothing is to be drawn")

    kernels, note = ncu.profile(never, ALONE, log=tmp_path / "log", warm_l2=False, timeout_s=1.0)
    assert kernels == ()
    assert note.startswith("--ncu: ncu was not found. Next: install Nsight Compute")


def test_profiler_that_hangs_is_ended_with_all_that_it_started(
    folder: Path, fake_ncu: Callable[[str], Path]
) -> None:
    fake_ncu("subprocess.Popen(['sleep', '3217']); time.sleep(60)")

    def call(build_folder: Path) -> ncu.Call:
        return ncu.Call(load={}, init=[], state={}, args=[torch.ones(3)], mode="eval", rng=1)

    kernels, note = ncu.profile(
        call, confinement(Path(__file__), []), log=folder / "log", warm_l2=False, timeout_s=3.0
    )
    assert kernels == ()
    assert "did not end within 3 s" in note
    running = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not [words for words in running if b"3217" in words.split(b"\0")]


def test_kernels_are_kept_when_the_call_ended_badly() -> None:
    kernels, note = judged(1, REPORT, 60.0)
    assert len(kernels) == 2
    assert "may be missing" in note


def test_call_without_kernels_is_said_in_ncus_words() -> None:
    kernels, note = judged(0, "==WARNING== No kernels were profiled.\n", 60.0)
    assert kernels == ()
    assert "No kernels were profiled." in note


def test_no_setting_of_the_card_is_changed() -> None:
    words = command("ncu", Path("/f"), Path("/f/report.csv"), {"uid": 7}, warm_l2=False)
    assert words[words.index("--clock-control") + 1] == "none"
    assert words[words.index("--cache-control") + 1] == "all"
    warm = command("ncu", Path("/f"), Path("/f/report.csv"), {"uid": 7}, warm_l2=True)
    assert warm[warm.index("--cache-control") + 1] == "none"


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_ncu_needs_a_gpu(device: str, make_pair: Callable[..., Pair]) -> None:
    with pytest.raises(UsageError, match=f"this run is on {device}. Next: --device cuda"):
        run_pairs([make_pair("p/s")], Options(device=device, ncu=True))


def test_ncu_without_a_gpu_is_bad_usage(
    make_pair: Callable[..., Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pair("p/s")
    assert main(["--ncu", "--device", "cpu", "--no-history"], root=tmp_path) == 2
    assert "--ncu reads a GPU's counters" in capsys.readouterr().err
