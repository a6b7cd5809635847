"""Kernels are counted by torch's profiler, and by no more of torch than that."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness.worker import launches

PROFILES = """
import sys, warnings
warnings.simplefilter("ignore")  # of a torch without CUDA
import torch
from harness.worker import launches
real = launches.profile
launches.profile = lambda **how: real(**{**how, "use_cpu": True})  # what there is without a GPU
profiler = launches.gpu_profiler()
with profiler:
    torch.ones(3) + 1
assert [e.name for e in profiler.function_events], "nothing was profiled"
print([m for m in sys.modules if m.startswith(("torch._inductor", "torch._dynamo"))])
"""


def test_the_profiler_imports_no_compiler() -> None:
    """It took four seconds of each evaluation on a GPU."""
    done = subprocess.run(
        [sys.executable, "-c", PROFILES], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.gpu
def test_kernels_are_counted_and_timed() -> None:
    device = torch.device("cuda")
    x = torch.ones(1 << 20, device=device)
    with launches.counted(device, True) as kernels:
        _ = (x + 1, x + 1, x.sum())
    assert sorted(n for name, n in kernels.items() if "elementwise" in name) == [2]
    assert sum(n for name, n in kernels.items() if "reduce" in name) == 1
    with launches.durations(device) as spent:
        _ = x + 1
    assert len(spent) == 1 and 0 < spent[0] < 1


def test_nothing_is_counted_without_a_gpu_or_a_wish() -> None:
    with launches.counted(torch.device("cpu"), True) as kernels:
        _ = torch.ones(3) + 1
    assert kernels == {}
    with launches.durations(torch.device("cpu")) as spent:
        _ = torch.ones(3) + 1
    assert spent == []
