"""The run-time library in a process: counters, device cpu, allocator, deaths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.worker.cuda_on_cpu import compile_inline, read_findings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CUDA = """#include <torch/extension.h>
#include <c10/cuda/CUDAException.h>
__global__ void twice(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = 2 * x[i];
}
torch::Tensor f(torch::Tensor x) {
    if (!x.is_cuda()) return x * 3;
    auto o = torch::empty_like(x);
    twice<<<(x.numel() + 31) / 32, 32>>>(x.data_ptr<float>(), o.data_ptr<float>(), x.numel());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return o;
}
torch::Tensor launches_anyway(torch::Tensor x) {
    auto o = torch::empty_like(x);
    twice<<<1, 32>>>(x.data_ptr<float>(), o.data_ptr<float>(), x.numel());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return o;
}
torch::Tensor leaks(torch::Tensor x) {
    float* p;
    cudaMalloc(&p, 400);
    twice<<<1, 32>>>(x.data_ptr<float>(), p, 8);
    return x;
}
torch::Tensor keeps(torch::Tensor x) {
    static float* kept[3] = {};
    static int calls = 0;
    if (calls++ < 3) cudaMalloc(&kept[calls - 1], 400);
    float* p;
    cudaMalloc(&p, 400);
    twice<<<1, 32>>>(x.data_ptr<float>(), kept[0], 8);
    cudaFree(p);
    return x;
}
torch::Tensor never_written(torch::Tensor x) { return torch::empty_like(x); }
torch::Tensor overruns_far(torch::Tensor x) {
    float* p = x.data_ptr<float>();
    for (int64_t i = 0; i < 100000; ++i) p[i] = 1;
    return x;
}
"""
NAMES = ("f", "launches_anyway", "never_written", "overruns_far", "leaks", "keeps")
HEAD = """
import importlib.util, json, sys, torch
from pathlib import Path
from harness.domain import to_json
from harness.worker.cuda_on_cpu import Runtime
support, library, answer, path = sys.argv[1:5]
runtime = Runtime(Path(support), answer_cuda=answer == "yes", findings_path=Path(path))
runtime.guard_allocations(True)
spec = importlib.util.spec_from_file_location("ext", library)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


@pytest.fixture(scope="module")
def library(support: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_inline(
        name="ext",
        cpp_sources=["\n".join(f"torch::Tensor {n}(torch::Tensor x);" for n in NAMES)],
        cuda_sources=[CUDA],
        functions=list(NAMES),
        build_dir=tmp_path_factory.mktemp("ext"),
        support_dir=support,
    )


@pytest.fixture
def run(support: Path, library: Path, tmp_path: Path) -> Any:
    def run(code: str, answer: str = "yes") -> Any:
        done = subprocess.run(
            [sys.executable, "-c", HEAD + code, str(support), str(library), answer,
             str(tmp_path / "findings")],
            capture_output=True, text=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if done.returncode != 0:
            return done
        return json.loads(done.stdout.strip().split("\n")[-1])

    return run


def test_launches_are_counted(run: Any) -> None:
    got = run(
        "x = torch.randn(100)\n"
        "for order in ('forward', 'reverse', 'shuffled'):\n"
        "    runtime.set_thread_order(order, 3)\n"
        "    assert torch.equal(module.f(x), 2 * x)\n"
        "print(json.dumps(runtime.launches))"
    )
    assert got == 3


def test_on_cpu_the_solution_takes_its_own_path(run: Any) -> None:
    got = run(
        "x = torch.randn(100)\n"
        "print(json.dumps([torch.equal(module.f(x), 3 * x), runtime.launches]))",
        answer="no",
    )
    assert got == [True, 0]


def test_on_cpu_a_launch_is_a_finding_and_an_error(run: Any) -> None:
    got = run(
        "try:\n    module.launches_anyway(torch.randn(8))\n    error = ''\n"
        "except RuntimeError as e:\n    error = str(e)\n"
        "print(json.dumps([error, [to_json(f) for f in runtime.take_findings()]]))",
        answer="no",
    )
    assert "no CUDA-capable device" in got[0]
    assert [f["kind"] for f in got[1]] == ["kernel launch on device cpu"]


def test_an_output_that_nobody_writes_is_nan(run: Any) -> None:
    got = run(
        "x = module.never_written(torch.ones(7))\n"
        "h = torch.empty(9, dtype=torch.half)\nb = torch.empty(9, dtype=torch.bfloat16)\n"
        "d = torch.empty(9, dtype=torch.double)\n"
        "print(json.dumps([bool(t.isnan().all()) for t in (x, h, b, d)]))"
    )
    assert got == [True] * 4


def test_allocations_keep_torchs_alignment(run: Any) -> None:
    got = run("print(json.dumps([torch.empty(n).data_ptr() % 64 for n in range(1, 3000, 37)]))")
    assert set(got) == {0}


def test_thousands_of_tensors_do_not_use_up_mappings(run: Any) -> None:
    got = run(
        "alive = [torch.empty(3) for _ in range(20000)]\n"
        "for _ in range(30000):\n    torch.empty(1000)\n"
        "maps = lambda: len(Path('/proc/self/maps').read_text().splitlines())\n"
        "full = maps()\n"
        "total = sum(t.numel() for t in alive)\n"
        "del alive\n"
        "print(json.dumps([full, total, maps()]))"
    )
    assert got[0] < 40000
    assert got[1] == 60000
    assert got[2] < got[0] - 10000, "freed tensors keep no mappings"


def test_a_fault_in_host_code_leaves_a_finding_behind(run: Any, tmp_path: Path) -> None:
    done = run("module.overruns_far(torch.ones(10))")
    assert done.returncode < 0
    findings = read_findings(tmp_path / "findings")
    assert [f.kind for f in findings] == ["memory fault"]
    assert "beside a tensor" in findings[0].detail


def test_memory_that_every_call_leaves_behind_is_a_leak(run: Any) -> None:
    code = (
        "x = torch.randn(8)\nfound = []\n"
        "for _ in range(9):\n    module.NAME(x)\n    found += runtime.take_findings()\n"
        "print(json.dumps([[f.kind, f.line, f.message] for f in found]))"
    )
    ((kind, line, message),) = run(code.replace("NAME", "leaks"))
    assert kind == "leaked memory"
    assert CUDA.split("\n")[line - 1] == "    cudaMalloc(&p, 400);"
    assert "400 bytes" in message
    assert run(code.replace("NAME", "keeps")) == []
