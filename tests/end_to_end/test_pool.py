"""Workers of baselines come early: what takes seconds the first time is done beside other work."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.domain import REFERENCE, Options, Pair
from harness.judge.policy import Policy
from harness.judge.reference.problem import Problem
from harness.judge.timing import roofline
from harness.judge.workers.budget import Budget
from harness.judge.workers.cache import ExtensionCache
from harness.judge.workers.pool import WorkerPool

FIXTURES = Path(__file__).parents[1] / "corpus"
COMPILED = "torch.compile"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    pair = Pair(
        name="linear",
        problem=FIXTURES / "problems" / "linear.py",
        solution=FIXTURES / "precision" / "honest" / "more_precise.py",
    )
    pool = WorkerPool(
        pair,
        Options(device="cpu", baselines=("compile",)),
        Policy(),
        tmp_path / "log",
        ExtensionCache(tmp_path / "cache", pair.solution, "cpu"),
        tmp_path / "compiled",
        numerics="strict",
        seed=1,
        budget=Budget(300.0, 600.0),
        notes=[],
        emit=lambda event: None,
    )
    pool._guarded = lambda: False  # what it guards is not looked at here
    yield pool
    pool.close()


def problem() -> Problem:
    return Problem(FIXTURES / "problems" / "linear.py", {}, torch.device("cpu"), 1)


def test_compilers_yield_to_what_is_measured(pool: WorkerPool) -> None:
    build, candidate = pool.start("build"), pool.start("candidate")
    assert os.getpriority(os.PRIO_PROCESS, build.pid) == 19
    assert os.getpriority(os.PRIO_PROCESS, candidate.pid) == os.getpriority(os.PRIO_PROCESS, 0)


def test_eager_is_no_further_baseline(pool: WorkerPool) -> None:
    pool._options = dataclasses.replace(pool._options, baselines=("eager", "compile"))
    assert pool._baseline_names() == ("compile",)


def test_the_worker_that_was_called_in_is_the_one_that_loads(pool: WorkerPool) -> None:
    pool.start_compilers()
    (early,) = pool.workers
    assert early.role == COMPILED
    workers, failed = pool.baselines(problem(), profiled=True)
    assert failed == {}
    assert workers[COMPILED] is early
    assert set(workers) == {REFERENCE, COMPILED}


def test_a_baseline_that_dies_early_is_named_and_hides_nobody(pool: WorkerPool) -> None:
    pool.start_compilers()
    pool.workers[0].kill()
    workers, failed = pool.baselines(problem(), profiled=False)
    assert set(workers) == {REFERENCE}
    assert "died" in failed[COMPILED] or "closed" in failed[COMPILED]


def test_nothing_is_left_of_workers_that_nobody_asked_for(pool: WorkerPool) -> None:
    pool.start_compilers()
    folder = pool.workers[0].folder
    assert folder.is_dir()
    pool.close()
    assert not folder.exists()


def test_counting_flops_does_not_import_the_compiler() -> None:
    """It took seconds of every evaluation."""
    script = (
        "import sys, torch\n"
        f"from {roofline.__name__} import _Flops\n"
        "with _Flops() as flops: torch.ones(2, 3) @ torch.ones(3, 4)\n"
        "print(flops.total, 'torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["48", "False"], done.stderr


def test_reference_without_memory_in_its_worker_is_no_fault_of_its_own(
    pool: WorkerPool, tmp_path: Path
) -> None:
    """A smaller size may do, so the judge is told that memory ran out."""
    path = tmp_path / "reference.py"
    path.write_text(
        "import torch, sys\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        if __name__ != 'judged_problem':\n"
        "            raise RuntimeError('CUDA out of memory. Tried to allocate 4 GiB')\n"
        "def get_inputs():\n"
        "    return []\n"
    )
    tmp_path.chmod(0o755)
    pool._pair = dataclasses.replace(pool._pair, problem=path)
    pool._options = dataclasses.replace(pool._options, baselines=("eager",))
    with pytest.raises(torch.OutOfMemoryError, match="the reference RuntimeError"):
        pool.baselines(Problem(path, {}, torch.device("cpu"), 1), profiled=False)
