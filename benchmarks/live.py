"""The gate on a real GPU: N runs without a change, then a planted slowdown, then statistics.

    python benchmarks/live.py --out live.json           # on a machine with a GPU
    python benchmarks/live.py --stored live.json        # more runs against what that one stored
    python benchmarks/live.py --replay live.json ...    # anywhere: every run against every other

Pairs are copied to a folder of their own, stored with ``--update-baseline`` and checked N times
with ``--check-baseline``. The planted slowdown computes a share of the rows twice: the result
stays right, the kernel does that much more work. Each gate run is a process of its own, as in CI;
the first run of each variant builds, and is not counted. ``--batch-part 4`` takes a fourth of each
problem's batch: checks take less of a run then.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.domain import GateClass, Run, run_from_json  # noqa: E402
from harness.gate import GatePolicy, check, stored_from_run  # noqa: E402

PLANT = """

_whole = ModelNew.forward


def _and_some_rows_twice(self, *args):
    out = _whole(self, *args)
    rows = max(1, round(args[0].size(0) * {share}))
    _whole(self, *(a[:rows] if a.dim() else a for a in args))
    return out


ModelNew.forward = _and_some_rows_twice
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--pairs", default="elementwise_add,batchnorm2d_inference", help="two, by comma")
    add("--runs", type=int, default=20, help="gate runs without a change")
    add("--planted-runs", type=int, default=3, help="gate runs with the slowdown")
    add("--percent", type=float, default=3.0, help="share of the rows computed twice")
    add("--plant-in", default="", help="the pair that is slowed; default: the first")
    add("--cap", type=float, default=4.0, help="seconds for the timed blocks of one pair")
    add("--batch-part", type=int, default=1, help="divide each problem's batch_size by this")
    add("--device", default="cuda:0")
    add("--budget", type=float, default=560.0, help="stop starting runs after these seconds")
    add("--args", default="--quick --size full", help="more arguments for run_eval.py")
    add("--out", type=Path, default=Path("live.json"))
    add("--stored", type=Path, help="check against what this file of --out stored; no planted runs")
    add("--replay", type=Path, nargs="+", help="only the statistics, from files that --out wrote")
    options = parser.parse_args()
    if options.replay:
        return replay(together([json.loads(path.read_text()) for path in options.replay]))
    record = live(options)
    options.out.write_text(json.dumps(record, indent=1))
    return replay(record)


def live(options: argparse.Namespace) -> dict[str, Any]:
    """Run the gate and return every document it wrote."""
    names = options.pairs.split(",")
    slowed = options.plant_in or names[0]
    record: dict[str, Any] = {"percent": options.percent, "slowed": slowed}
    record |= {"stored": None, "unchanged": [], "planted": [], "warm-up": []}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)  # a candidate reads its file under another user id
        for name in names:
            problem = copy(f"problems/{name}/reference.py", root)
            problem.write_text(smaller(problem.read_text(), options.batch_part))
            copy(f"solutions/{name}/solution.py", root)

        def gate(kind: str, *argv: str) -> None:
            document, seconds, code = evaluate(root, options, *argv)
            record[kind] = document if kind == "stored" else [*record[kind], document]
            said = ", ".join(
                f"{d['pair']} {d['gate_class']} {d['change'] or 0:+.2%}"
                for d in (document["gate"] or {"pairs": []})["pairs"]
            )
            print(f"{kind:10} exit {code} in {seconds:5.1f} s  {said}", flush=True)
            options.out.write_text(json.dumps(record))

        if options.stored:
            record["stored"] = json.loads(options.stored.read_text())["stored"]
            (root / "stored.json").write_text(json.dumps(record["stored"]))
            command = [sys.executable, str(ROOT / "run_eval.py"), "--root", str(root)]
            command += ["--report", str(root / "stored.json"), "--update-baseline"]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            options.planted_runs = 0
        else:
            gate("warm-up")
            gate("stored", "--update-baseline")
        # Planted first: they are few, and the unchanged runs use whatever time is left.
        target = root / "solutions" / slowed / "solution.py"
        original = target.read_text(encoding="utf-8")
        if options.planted_runs:
            slow = original + PLANT.format(share=options.percent / 100)
            target.write_text(slow, encoding="utf-8")
            gate("warm-up")
            for _ in range(options.planted_runs):
                gate("planted", "--check-baseline")
            target.write_text(original, encoding="utf-8")
        for _ in range(options.runs):
            if time.monotonic() - began > options.budget:
                print("stopped: the time is up")
                break
            gate("unchanged", "--check-baseline")
    return record


def copy(name: str, root: Path) -> Path:
    target = root / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return target


def smaller(problem: str, part: int) -> str:
    """Return a problem's source with its batch divided by part."""
    changed, count = re.subn(
        r"^batch_size = (\d+)",
        lambda found: f"batch_size = {int(found[1]) // part}",
        problem,
        flags=re.MULTILINE,
    )
    if not count:
        raise SystemExit("--batch-part: the problem has no line 'batch_size = N'")
    return changed


def evaluate(
    root: Path, options: argparse.Namespace, *argv: str
) -> tuple[dict[str, Any], float, int]:
    """Run the command line once; returns its document, its seconds and its exit code."""
    document = root / "out.json"
    command = [sys.executable, str(ROOT / "run_eval.py"), "--root", str(root), "--no-history"]
    command += ["--device", options.device, "--cap", str(options.cap), "--json", str(document)]
    command += [*options.args.split(), *argv]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if not document.is_file():
        raise SystemExit(f"no document: {done.stdout}\n{done.stderr}")
    plain: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))
    document.unlink()
    if plain["error"] or not plain["verdicts"]:
        raise SystemExit(f"exit code {done.returncode}: {plain['error']}\n{done.stderr[-2000:]}")
    return plain, seconds, done.returncode


def together(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one record with the runs of all; they were checked against the same stored one."""
    first = records[0]
    if any(record["stored"] != first["stored"] for record in records):
        raise SystemExit("these files have not stored the same run. Next: replay them one by one")
    return first | {
        kind: [run for record in records for run in record[kind]]
        for kind in ("unchanged", "planted")
    }


def replay(record: dict[str, Any]) -> int:
    """Print what the gate said live, and what it says to every run against every other.

    In the replay a suspicious pair is measured again by taking the next recorded run for its
    second measurement.
    """
    unchanged = [alone(run_from_json(plain)) for plain in record["unchanged"]]
    planted = [alone(run_from_json(plain)) for plain in record["planted"]]
    print(f"\n{'':34}" + "".join(f"{c.value:>13}" for c in GateClass))
    for kind in ("unchanged", "planted"):
        live_said = Counter(
            (d["pair"], d["gate_class"]) for plain in record[kind] for d in plain["gate"]["pairs"]
        )
        for pair in sorted({pair for pair, _ in live_said}):
            row("live " + kind, pair, {c: live_said[(pair, c.value)] for c in GateClass})
    against = {"unchanged": unchanged, "planted": planted}
    regressed = 0
    for kind, runs in against.items():
        counts: Counter[tuple[str, GateClass]] = Counter()
        for stored, (i, now) in itertools.product(unchanged, enumerate(runs)):
            if stored is now:
                continue
            second = next((r for r in runs[i + 1 :] + runs[:i] if r is not stored), now)
            for pair, gate_class in decided(stored, now, second):
                counts[(pair, gate_class)] += 1
        for pair in sorted({pair for pair, _ in counts}):
            row("replay " + kind, pair, {c: counts[(pair, c)] for c in GateClass})
            if kind == "unchanged":
                regressed += counts[(pair, GateClass.REGRESSED)]
    spread(unchanged)
    print(f"policy: {GatePolicy()}")
    return 1 if regressed else 0


def alone(run: Run) -> Run:
    return dataclasses.replace(run, gate=None)


def decided(stored: Run, now: Run, second: Run) -> list[tuple[str, GateClass]]:
    """Return each pair's class in one replayed gate run."""
    devices = {v.pair: v.device for v in now.verdicts}

    def again(names: Any) -> Any:
        # Runs of machines with more or fewer GPUs meet here: what is measured again stays where
        # the first measurement was.
        return [
            dataclasses.replace(v, device=devices[v.pair])
            for v in second.verdicts
            if v.pair in names
        ]

    decision, _ = check(stored_from_run(stored), now, remeasure=again)
    return [(d.pair, d.gate_class) for d in decision.pairs]


def row(kind: str, pair: str, counts: dict[GateClass, int]) -> None:
    name = f"{kind}, {pair.partition('/')[0]}"
    print(f"{name[:34]:34}" + "".join(f"{counts.get(c, 0) or '':>13}" for c in GateClass))


def spread(runs: list[Run]) -> None:
    """Print what the policy's run_to_run stands for: how far runs of the same code differ."""
    for pair in sorted({v.pair for run in runs for v in run.verdicts}):
        found = [v.speed for run in runs for v in run.verdicts if v.pair == pair]
        ratios = sorted(s.speedup for s in found if s.speedup)
        if len(ratios) < 2:
            continue
        middle = ratios[len(ratios) // 2]
        widths = [(s.high - s.low) / 2 / s.speedup for s in found if s.high and s.low and s.speedup]
        mean = sum(ratios) / len(ratios)
        sd = (sum((r - mean) ** 2 for r in ratios) / (len(ratios) - 1)) ** 0.5 / mean
        print(
            f"{pair}: {len(ratios)} runs, median {middle:.4f}x, "
            f"{ratios[0] / middle - 1:+.2%} to {ratios[-1] / middle - 1:+.2%}, sd {sd:.2%}, "
            f"interval +-{sum(widths) / len(widths):.2%} on average"
        )


if __name__ == "__main__":
    sys.exit(main())
