"""Builds one kernel file and runs its cases, each in a process of its own, as a worker would.

``python -m tests.emulator.runner SUPPORT BUILD SOURCE`` prints one JSON line: per case and order
the largest deviation, the findings, the launches, or how it died.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from harness.domain import to_json
from harness.usercode.pretend_cuda import pretend
from harness.worker.cuda_on_cpu import Runtime, compile_inline
from tests.emulator.cases import DEFECTS, HONEST

KERNELS = Path(__file__).parent / "kernels"
ORDERS = ("forward", "reverse", "shuffled")


def declarations(source: str) -> dict[str, str]:
    """Return the host functions of a source, by name, as declarations."""
    pattern = re.compile(
        r"^((?:torch::Tensor|std::vector<torch::Tensor>|void) (\w+)\([^)]*\)) \{", re.MULTILINE
    )
    return {m.group(2): m.group(1) + ";" for m in pattern.finditer(source)}


def build(support: Path, folder: Path, source_name: str) -> Path:
    """Compile a kernel file as load_inline would."""
    source = (KERNELS / source_name).read_text()
    wanted = declarations(source)
    return compile_inline(
        name=source_name.removesuffix(".cu"),
        cpp_sources=["\n".join(wanted.values())],
        cuda_sources=[source],
        functions=list(wanted),
        solution_file=str(KERNELS / source_name),
        build_dir=folder,
        support_dir=support,
    )


def deviation(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference relative to max(1, |expected|); inf for NaN or shape."""
    if got.shape != expected.shape:
        return float("inf")
    a, b = got.double(), expected.double()
    worst = ((a - b).abs() / b.abs().clamp(min=1)).max().item() if a.numel() else 0.0
    return worst if worst == worst else float("inf")


def run_case(runtime: Runtime, module: Any, name: str) -> dict[str, Any]:
    """Run one case in three thread orders."""
    results: dict[str, Any] = {}
    honest = HONEST.get(name)
    case = honest or DEFECTS[name]
    for order in ORDERS:
        runtime.set_thread_order(order, 7)
        torch.manual_seed(1)
        inputs = case.inputs()
        before = runtime.launches
        result: dict[str, Any] = {"error": "", "deviation": None}
        try:
            with pretend(answer_cuda=True):
                got = getattr(module, name)(*inputs)
            if honest:
                torch.manual_seed(1)
                result["deviation"] = deviation(got, honest.expected(*case.inputs()))
            del got
        except Exception as error:  # the kernel's own complaint is what the test looks at
            result["error"] = f"{type(error).__name__}: {error}"
        result["launches"] = runtime.launches - before
        del inputs
        result["findings"] = [to_json(f) for f in runtime.take_findings()]
        results[order] = result
    return results


def in_child(runtime: Runtime, module: Any, name: str) -> dict[str, Any]:
    """Run one case in a forked process; a death is a result."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            text = json.dumps(run_case(runtime, module, name))
        except BaseException:
            text = json.dumps({"died": traceback.format_exc()})
        with os.fdopen(write, "w") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"died": f"status {status}"}


def main() -> None:
    """Build, load, run every case of the source."""
    support, folder, source_name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    library = build(support, folder, source_name)
    runtime = Runtime(support, answer_cuda=True)
    runtime.guard_allocations(True)
    spec = importlib.util.spec_from_file_location(source_name.removesuffix(".cu"), library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = [n for n, c in {**HONEST, **DEFECTS}.items() if c.source == source_name]
    if len(sys.argv) > 4:
        names = sys.argv[4:]
    print(json.dumps({name: in_child(runtime, module, name) for name in names}))


if __name__ == "__main__":
    main()
