"""Measures the CPU runner: build times, cost per emulated thread, allocator.

``python benchmarks/bench_cuda_on_cpu.py [SUPPORT]`` prints a table beside the figures of an earlier
design. Times per thread are processor time, so that a busy machine changes them little; build times
are both wall and processor time, user and system. Without SUPPORT, a folder that is kept, the
run-time library and the header are built afresh.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.worker import cuda_on_cpu

SOURCE = """#include <torch/extension.h>
__global__ void add(const float* a, const float* b, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = a[i] + b[i];
}
__global__ void reduce(const float* x, float* o) {
    __shared__ float s[256];
    s[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
    for (int k = 128; k > 0; k /= 2) {
        if (threadIdx.x < k) s[threadIdx.x] += s[threadIdx.x + k];
        __syncthreads();
    }
    if (threadIdx.x == 0) o[blockIdx.x] = s[0];
}
torch::Tensor run_add(torch::Tensor a, torch::Tensor b) {
    auto o = torch::empty_like(a);
    const int n = a.numel();
    add<<<(n + 255) / 256, 256>>>(a.data_ptr<float>(), b.data_ptr<float>(), o.data_ptr<float>(), n);
    return o;
}
torch::Tensor run_reduce(torch::Tensor x) {
    auto o = torch::empty({x.numel() / 256}, x.options());
    reduce<<<x.numel() / 256, 256>>>(x.data_ptr<float>(), o.data_ptr<float>());
    return o;
}
"""
DECLARATIONS = (
    "torch::Tensor run_add(torch::Tensor a, torch::Tensor b);\n"
    "torch::Tensor run_reduce(torch::Tensor x);"
)


def best_ns(call: Callable[[], Any], threads: int, repeats: int = 7) -> float:
    """Return the least processor time of one call, in nanoseconds per emulated thread."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best / threads * 1e9


def children_s() -> float:
    """Return the processor time of all finished children so far, user and system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Build, run, print."""
    torch.set_num_threads(1)
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        support = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "support"
        start, before = time.perf_counter(), children_s()
        built = cuda_on_cpu.prepare(support)
        seconds, used = time.perf_counter() - start, children_s() - before
        size = f"{built.size_bytes / 1e6:.0f} MB"
        if built.seconds:
            once = f"{seconds:.1f} s (processor {used:.1f} s), {size}"
        else:
            once = f"there already, {size}"
        rows.append(("run-time library and header, once", once, "20 to 30 s, 500 MB"))
        before = children_s()
        start = time.perf_counter()
        library = cuda_on_cpu.compile_inline(
            name="bench",
            cpp_sources=[DECLARATIONS],
            cuda_sources=[SOURCE],
            functions=["run_add", "run_reduce"],
            build_dir=Path(folder) / "build",
            support_dir=support,
        )
        seconds = time.perf_counter() - start
        used = children_s() - before
        rows.append(("one extension", f"{seconds:.1f} s (processor {used:.1f} s)", "4 to 5 s"))
        runtime = cuda_on_cpu.Runtime(support, answer_cuda=True)
        runtime.guard_allocations(True)
        spec = importlib.util.spec_from_file_location("bench", library)
        assert spec is not None and spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        n = 1 << 20
        a, b = torch.randn(n), torch.randn(n)
        for order in ("forward", "reverse", "shuffled"):
            runtime.set_thread_order(order, 1)
            add = best_ns(lambda: module.run_add(a, b), n)
            reduce = best_ns(lambda: module.run_reduce(a), n)
            rows.append((f"elementwise, checked, {order}", f"{add:.0f} ns/thread", "44 ns/thread"))
            rows.append(
                (f"reduction, 9 barriers, {order}", f"{reduce:.0f} ns/thread", "206 ns/thread")
            )
        small = best_ns(lambda: [torch.empty(100) for _ in range(2000)], 2000) / 1e3
        rows.append(("small tensor, allocated and freed", f"{small:.1f} us", "-"))
        assert runtime.take_findings() == []
    width = [max(len(r[i]) for r in rows) for i in range(3)]
    print(f"{'what':{width[0]}}  {'measured here':{width[1]}}  earlier design")
    print(f"{'':{width[0]}}  load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for row in rows:
        print("  ".join(f"{text:{width[i]}}" for i, text in enumerate(row)).rstrip())


if __name__ == "__main__":
    main()
