"""Runs the corpus on a GPU: honest kernels must pass there too; what finds each defect.

``python benchmarks/gpu_table.py`` on a machine with a GPU, nvcc and compute-sanitizer builds
kernels/*.cu with torch's own load_inline, runs every case in a process of its own (a defect may
hang or poison the context), each defect also under the tools of compute-sanitizer that fit it, and
prints a Markdown table beside the CPU runner's findings (which test_kernels.py checks).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tests.emulator.cases import DEFECTS, HONEST, Defect  # noqa: E402
from tests.emulator.runner import KERNELS, declarations, deviation  # noqa: E402

SOURCES = ("honest_basics.cu", "honest_features.cu", "defects.cu")
_TOOLS = (
    (r"race", "racecheck"),
    (r"uninit", "initcheck"),
    (r"divergent|shuffle|warp mask|grid barrier", "synccheck"),
)
_SAID = re.compile(
    r"=========\s+(?:Error: |Warning: )?((?:Invalid|Race|Uninitialized|Potential|Divergent|Barrier|"
    r"Misaligned|Program hit|Malloc/Free|Device-side|Out-of-range|Missing)[^\n]*)"
)


def build(source: str, folder: Path) -> Path:
    """Build one kernel file as a solution would and return the library."""
    from torch.utils.cpp_extension import load_inline

    text = (KERNELS / source).read_text()
    wanted = declarations(text)
    name = source.removesuffix(".cu")
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    load_inline(
        name=name,
        cpp_sources=["\n".join(wanted.values())],
        cuda_sources=[text],
        functions=list(wanted),
        extra_cuda_cflags=["--extended-lambda", "-lineinfo"],
        build_directory=str(target),
        is_python_module=True,
    )
    return target / f"{name}.so"


def run_case(name: str, folder: Path) -> dict[str, Any]:
    """Run one case on the GPU in this process."""
    case = HONEST.get(name) or DEFECTS[name]
    module_name = case.source.removesuffix(".cu")
    library = folder / module_name / f"{module_name}.so"
    spec = importlib.util.spec_from_file_location(module_name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(1)
    inputs = [v.cuda() if isinstance(v, torch.Tensor) else v for v in case.inputs()]
    torch.cuda.synchronize()
    got = getattr(module, name)(*inputs)
    torch.cuda.synchronize()
    result: dict[str, Any] = {"error": ""}
    if name in HONEST:
        torch.manual_seed(1)
        result["deviation"] = deviation(got.cpu(), HONEST[name].expected(*case.inputs()))
    elif isinstance(got, torch.Tensor):
        got.cpu()
    return result


def in_child(name: str, folder: Path, tool: str, limit: float) -> dict[str, Any]:
    """Run one case in a process of its own, under a tool of compute-sanitizer if one is named."""
    command = [sys.executable, __file__, "--folder", str(folder), "--case", name]
    environment = dict(os.environ)
    if tool:
        checker = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        command = [checker, "--tool", tool, "--print-limit", "5", *command]
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # or all tensors share one block
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": f"hangs (ended after {limit:.0f} s)", "said": "", "seconds": limit}
    result: dict[str, Any] = {"error": f"dies with code {done.returncode}"}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            result = json.loads(line)
    result["said"] = _what_it_said(done.stdout + done.stderr) if tool else ""
    result["tail"] = (done.stdout + done.stderr)[-1500:] if "dies" in result["error"] else ""
    return result


def _what_it_said(text: str) -> str:
    """Return the first report about a kernel or call of the corpus."""
    for match in _SAID.finditer(text):
        frames = "\n".join(text[match.start() : match.start() + 2500].split("\n")[:20])
        ours = "cuda.cu" in frames or "defects" in frames or "honest_" in frames
        if ours or match.group(1).startswith("Program hit"):
            return match.group(1).strip()[:110]
    return ""


def tools_for(case: Defect) -> list[str]:
    """Return the tools that could find a defect."""
    kinds = " ".join(case.kinds)
    return ["memcheck", *(tool for pattern, tool in _TOOLS if re.search(pattern, kinds))]


def main() -> None:
    """Build, run all cases side by side, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "gpu_table")
    parser.add_argument("--build", choices=SOURCES)
    parser.add_argument("--case")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sanitize-honest", action="store_true")
    options = parser.parse_args()
    if options.build:
        build(options.build, options.folder)
        return
    if options.case:
        try:
            print(json.dumps(run_case(options.case, options.folder)), flush=True)
        except Exception as error:  # noqa: BLE001 - what CUDA says is the result
            said = str(error).strip().split("\n")[0]
            print(json.dumps({"error": said[:200] or type(error).__name__}), flush=True)
        os._exit(0)
    major, minor = torch.cuda.get_device_capability()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    started = time.monotonic()
    builders = [
        subprocess.Popen([sys.executable, __file__, "--folder", options.folder, "--build", s])
        for s in SOURCES
    ]
    if any(b.wait() for b in builders):
        sys.exit("a kernel file does not build here")
    print(f"built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    jobs = [(n, "") for n in (*HONEST, *DEFECTS)]
    jobs += [(n, tool) for n, case in DEFECTS.items() for tool in tools_for(case)]
    if options.sanitize_honest:
        jobs += [(n, tool) for n in HONEST for tool in ("memcheck", "racecheck", "synccheck")]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = {
            (n, tool): pool.submit(in_child, n, options.folder, tool, 60 if tool else 20)
            for n, tool in jobs
        }
    results = {f"{n} {tool}".strip(): future.result() for (n, tool), future in futures.items()}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    print(f"ran in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(report(results))


def report(results: dict[str, dict[str, Any]]) -> str:
    """Return both tables in Markdown."""
    failed = []
    for name, case in HONEST.items():
        got = results[name]
        if got["error"] or not got["deviation"] <= case.tolerance:
            failed.append(f"{name}: {got['error'] or got['deviation']}")
    device = torch.cuda.get_device_name()
    passed = len(HONEST) - len(failed)
    head = f"{device}, torch {torch.__version__}"
    lines = [f"{head}: {passed} of {len(HONEST)} honest kernels pass.", *failed]
    noisy = [
        f"{k}: {r['said']}" for k, r in results.items() if k.split()[0] in HONEST and r["said"]
    ]
    lines += ["", *noisy] if noisy else []
    lines += ["", "| defect | CPU runner | GPU, plain | compute-sanitizer |", "|---|---|---|---|"]
    counts = {"plain": 0, "sanitizer": 0}
    for name, case in DEFECTS.items():
        plain = results[name]["error"]
        said = []
        for tool in tools_for(case):
            got = results[f"{name} {tool}"]
            if got["said"]:
                said.append(f"{tool}: {got['said']}")
            elif "hangs" in got["error"]:
                said.append(f"{tool}: {got['error']}")
        counts["plain"] += bool(plain)
        counts["sanitizer"] += any("hangs" not in s for s in said)
        nothing = f"nothing ({', '.join(tools_for(case))})"
        cells = [name, case.kinds[0], plain or "no error", "; ".join(said) or nothing]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    found = f"stops or fails in {counts['plain']}, compute-sanitizer reports {counts['sanitizer']}"
    lines += [
        "",
        f"Of {len(DEFECTS)} defects, all found on the CPU, a plain run on the GPU {found}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
