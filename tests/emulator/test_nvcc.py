"""nvcc as a second opinion: its errors, registers and spills, without a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.domain import UsageError
from harness.machine.environment import find_nvcc, nvcc_architectures
from harness.worker.cuda_on_cpu.nvcc import KernelUse, NvccVerdict, describe, parse_usage

ROOT = Path(__file__).parents[2]
needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed here")

REFERENCE = """import torch

N = 64


class Model(torch.nn.Module):
    def forward(self, x):
        return x.flip(0) * 2


def get_inputs():
    return [torch.randn(N)]


def get_init_inputs():
    return []
"""
SOLUTION = '''import torch
from torch.utils.cpp_extension import load_inline

cuda = """
#include <torch/extension.h>
inline float twice(float v) { return 2 * v; }
__global__ void flip_kernel(const float* x, float* o, int n) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    o[threadIdx.x] = DOUBLED;
}
torch::Tensor flip(torch::Tensor x) {
    auto o = torch::empty_like(x);
    flip_kernel<<<1, 64>>>(x.data_ptr<float>(), o.data_ptr<float>(), x.numel());
    return o;
}
"""
ext = load_inline("flip_ext", "torch::Tensor flip(torch::Tensor x);", cuda, functions=["flip"])


class ModelNew(torch.nn.Module):
    def forward(self, x):
        return ext.flip(x)
'''


def evaluate(folder: Path, doubled: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "reference.py").write_text(REFERENCE)
    (folder / "solution.py").write_text(SOLUTION.replace("DOUBLED", doubled))
    command = [sys.executable, str(ROOT / "run_eval.py"), "--quick", "--device", "emulated", "-v"]
    command += ["--problem", str(folder / "reference.py")]
    command += ["--solution", str(folder / "solution.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)


@pytest.mark.slow
@needs_nvcc
def test_registers_and_shared_memory_of_each_kernel_are_noted(tmp_path: Path) -> None:
    done = evaluate(tmp_path, "2 * s[n - 1 - threadIdx.x]", "--nvcc", "sm_80")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nvcc: flip_kernel(float const*, float*, int): sm_80 " in done.stdout
    assert "registers, 256 B shared, no spills" in done.stdout
    more = ["--nvcc", "sm_80", "--thread-order=reverse"]
    again = evaluate(tmp_path, "2 * s[n - 1 - threadIdx.x]", *more)
    assert "registers, 256 B shared" in again.stdout, "a build from the cache keeps its notes"


@pytest.mark.slow
@needs_nvcc
def test_what_only_nvcc_refuses_fails_the_build_at_the_solutions_line(tmp_path: Path) -> None:
    done = evaluate(tmp_path, "twice(s[n - 1 - threadIdx.x])", "--nvcc", "sm_80")
    assert "BUILD_FAILED" in done.stdout
    assert "solution.py:11: calling a __host__ function" in done.stdout
    assert "nvcc, sm_80" in done.stdout


@needs_nvcc
def test_architectures_are_those_of_this_nvcc(tmp_path: Path) -> None:
    assert "sm_90" in nvcc_architectures(str(find_nvcc()))
    done = evaluate(tmp_path, "0", "--nvcc", "sm_12")
    assert done.returncode == 2
    assert "sm_12" in done.stderr


def test_unknown_thread_order_is_bad_usage(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "0", "--thread-order", "sideways").returncode == 2


def test_nvcc_needs_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cli import main

    monkeypatch.setattr(main, "find_nvcc", lambda: None)
    with pytest.raises(UsageError, match="nvcc"):
        main.nvcc_list("sm_80")


def test_notes_gather_architectures_by_kernel() -> None:
    uses = tuple(
        KernelUse(kernel="k", architecture=a, registers=r, shared_bytes=0, spill_bytes=s)
        for a, r, s in (("sm_80", 20, 0), ("sm_90", 24, 16))
    )
    verdict = NvccVerdict(compiled=True, errors=(), kernels=uses, log="")
    (note,) = describe(verdict)
    first, second = note.split("; ")
    assert first == "nvcc: k: sm_80 20 registers, 0 B shared, no spills"
    assert second == "sm_90 24 registers, 0 B shared, 16 B spilled"


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not installed here")
def test_ptxas_lines_are_read() -> None:
    text = (
        "ptxas info    : Compiling entry function '_Z1kPf' for 'sm_80'\n"
        "ptxas info    : Function properties for _Z1kPf\n"
        "    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 14 registers, 512 bytes smem, 360 bytes cmem[0]\n"
    )
    (use,) = parse_usage(text)
    assert (use.kernel, use.architecture) == ("k(float*)", "sm_80")
    assert (use.registers, use.shared_bytes, use.spill_bytes) == (14, 512, 12)
