"""What the clock is worth, measured on a GPU: run by hand, each part prints a Markdown table.

    python benchmarks/bench_clock.py --aa           the reference against itself, all pairs
    python benchmarks/bench_clock.py --repeat 10    the same three pairs again and again, in fresh
                                               processes, beside the usual protocol
    python benchmarks/bench_clock.py --attacks      tests/corpus/timing against their honest twin
    python benchmarks/bench_clock.py --cap 3        seconds of blocks per evaluation
    python benchmarks/bench_clock.py --eager        torch.compile left out
    python benchmarks/bench_clock.py --size NAME    another size for --aa: example is launch-bound
    python benchmarks/bench_clock.py --only NAMES   pairs of --aa (elementwise_add) and --repeat
                                               (elementwise_add:full), or attacks, by comma
    python benchmarks/bench_clock.py --json FILE    every record, blocks included

The usual protocol is what most harnesses do: both models in one process, CUDA events around each
call, the reference first, the mean of 100 calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tabulate import tabulate  # noqa: E402

from harness.domain import Options, Pair, Verdict, to_json  # noqa: E402
from harness.fleet import run_pairs  # noqa: E402

TIMING = ROOT / "tests" / "corpus" / "timing"
REPEATED = (
    ("elementwise_add", "full", "memory-bound"),
    ("gemm_scale_batchnorm", "full", "compute-bound"),
    ("elementwise_add", "example", "launch-bound"),
)
USUAL = """
import importlib.util, sys, torch
def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
reference, solution = load(sys.argv[1], "r"), load(sys.argv[2], "s")
for change in sys.argv[3:]:
    name, value = change.split("=")
    setattr(reference, name, eval(value))
with torch.device("cuda"):  # gigabytes are drawn in no time there
    inputs = [v.cuda() if torch.is_tensor(v) else v for v in reference.get_inputs()]
times = []
for cls in (reference.Model, solution.ModelNew):
    with torch.device("cuda"):
        model = cls(*reference.get_init_inputs()).cuda().eval()
    with torch.no_grad():
        for _ in range(5):
            model(*inputs)
        torch.cuda.synchronize()
        spent = []
        for _ in range(100):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(); model(*inputs); end.record(); torch.cuda.synchronize()
            spent.append(begin.elapsed_time(end))
    times.append(sum(spent) / len(spent))
print("USUAL", times[0] / times[1])
"""


def evaluated(pairs: list[Pair], arguments: argparse.Namespace, size: str) -> list[Verdict]:
    options = Options(
        device=arguments.device,
        size=size,
        quick=True,
        cap_s=arguments.cap,
        baselines=() if arguments.eager else None,
    )
    verdicts = run_pairs(pairs, options)
    arguments.records.extend(to_json(v) for v in verdicts)
    if arguments.json:
        arguments.json.write_text(json.dumps(arguments.records))
    return verdicts


def wanted(arguments: argparse.Namespace, name: str) -> bool:
    return not arguments.only or name in arguments.only.split(",")


def shipped(problem: str) -> Pair:
    return Pair(
        name=f"{problem}/solution",
        problem=ROOT / "problems" / problem / "reference.py",
        solution=ROOT / "solutions" / problem / "solution.py",
    )


def against_itself(arguments: argparse.Namespace) -> None:
    """Time every reference against a copy of itself."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for problem in sorted((ROOT / "problems").iterdir()):
            reference = problem / "reference.py"
            if reference.is_file() and wanted(arguments, problem.name):
                copy = Path(folder) / f"{problem.name}.py"
                copy.write_text(reference.read_text() + "\n\nModelNew = Model\n")
                pairs.append(Pair(name=problem.name, problem=reference, solution=copy))
        Path(folder).chmod(0o755)
        verdicts = evaluated(pairs, arguments, arguments.size)
    print_table(verdicts)


def print_table(verdicts: list[Verdict]) -> None:
    rows = []
    for v in verdicts:
        s = v.speed
        if s.speedup is None or s.low is None or s.high is None:
            rows.append([v.pair, v.status.value, v.message[:60]])
            continue
        claimed = (s.candidate_ms / s.claimed_ms - 1) if s.claimed_ms and s.candidate_ms else None
        rows.append(
            [
                v.pair,
                s.outcome.value,
                f"{s.speedup:.4f}",
                f"[{s.low:.4f}, {s.high:.4f}]",
                f"{s.noise_floor:.2%}",
                f"{s.candidate_ms:.4g}",
                "-" if claimed is None else f"{claimed:+.2%}",
                f"{s.late_bound:.2%}",
                f"{s.batches} x {s.calls_per_batch}",
            ]
        )
    head = ["pair", "says", "speedup", "95 %", "floor", "ms", "over events", "late", "blocks"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True), flush=True)


def repeat(arguments: argparse.Namespace) -> None:
    """Evaluate three pairs again and again, and the same by the usual protocol."""
    rows = []
    for problem, size, kind in REPEATED:
        if not wanted(arguments, f"{problem}:{size}"):
            continue
        pair, ours, usual = shipped(problem), [], []
        for _ in range(arguments.repeat):
            (verdict,) = evaluated([pair], arguments, size)
            if verdict.speed.speedup is None:
                print(problem, verdict.status, verdict.message)
                continue
            ours.append(verdict.speed.speedup)
            usual.append(usual_speedup(pair, size, arguments.device))
            print(f"{problem} {size}: {ours[-1]:.4f}, usual {usual[-1]:.4f}", flush=True)
        rows.append([f"{problem} {size}", kind, *spread(ours), *spread(usual)])
        print(rows[-1], flush=True)
    head = ["pair", "kind", "ours", "spread", "usual protocol", "spread"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True), flush=True)


def spread(values: list[float]) -> tuple[str, str]:
    """Return the median and (max - min) / median of several speedups."""
    if not values:
        return "-", "-"
    middle = statistics.median(values)
    return f"{middle:.4f}", f"{(max(values) - min(values)) / middle:.2%}"


def usual_speedup(pair: Pair, size: str, device: str) -> float:
    from harness.pairs.settings import read_settings

    changes = [] if size == "full" else read_settings(pair.problem).sizes[size].items()
    words = [f"{name}={value!r}" for name, value in changes]
    done = subprocess.run(
        [sys.executable, "-c", USUAL, str(pair.problem), str(pair.solution), *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": seen_as(device)},
    )
    return float(done.stdout.split("USUAL")[1])


def seen_as(device: str) -> str:
    """Return what CUDA_VISIBLE_DEVICES must say to leave only this device."""
    index = int(device.partition(":")[2] or 0)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[index] if visible else str(index)


def attacks(arguments: argparse.Namespace) -> None:
    """Run every attack on the clock, the honest solution first and last."""
    problems = ("problem", "product", "short")
    names = [p.stem for p in sorted(TIMING.glob("*.py")) if p.stem not in (*problems, "honest")]
    names = [n for n in names if wanted(arguments, n)]
    pairs = [
        Pair(
            name=n,
            problem=TIMING / f"{problem_of(TIMING / f'{n}.py')}.py",
            solution=TIMING / f"{n}.py",
        )
        for n in ["honest", *names]
    ]
    for few in range(0, len(pairs), 5):  # what was measured stays, should the rest be cut off
        print_table(evaluated(pairs[few : few + 5], arguments, "full"))


def problem_of(solution: Path) -> str:
    """Return the problem that an attack's second line names, or the one that most are against."""
    for line in solution.read_text().splitlines()[:3]:
        if line.startswith("# problem: "):
            return line.removeprefix("# problem: ")
    return "problem"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--aa", action="store_true")
    parser.add_argument("--repeat", type=int, default=0)
    parser.add_argument("--attacks", action="store_true")
    parser.add_argument("--only", default="", help="pairs or attacks by name, with commas")
    parser.add_argument("--cap", type=float, default=3.0)
    parser.add_argument("--size", default="full", help="of the pairs of --aa")
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.records = []
    if arguments.aa:
        against_itself(arguments)
    if arguments.attacks:
        attacks(arguments)
    if arguments.repeat:
        repeat(arguments)


if __name__ == "__main__":
    main()
