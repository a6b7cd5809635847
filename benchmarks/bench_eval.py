"""Cold and warm wall time of an evaluation of all pairs, as a newcomer meets it.

``make bench`` clones the committed state into a temporary folder and runs ``make eval`` there
twice: the first run finds no environment and an empty cache, the second finds both. Where make
cannot fill an environment, another command takes its place:

    python3 benchmarks/bench_eval.py --command 'python3 run_eval.py --device cuda'
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One evaluation of all pairs."""

    name: str
    wall_s: float
    exit_code: int
    document: dict[str, Any]


def measure(name: str, command: str, clone: Path) -> Run:
    """Run a command in the clone and return its wall time and its JSON document."""
    target = clone / f"{name}.json"
    line = f'{command} ARGS="--json {target}"' if command == "make eval" else None
    line = line or f"{command} --json {shlex.quote(str(target))}"
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    began = time.monotonic()
    done = subprocess.run(line, shell=True, cwd=clone, env=env, check=False)  # noqa: S602
    wall_s = time.monotonic() - began
    document = json.loads(target.read_text()) if target.is_file() else {"verdicts": []}
    return Run(name=name, wall_s=wall_s, exit_code=done.returncode, document=document)


def report(runs: list[Run], command: str) -> str:
    """Return what was measured, where and when."""
    environment = runs[-1].document.get("environment", {})
    verdicts = runs[-1].document["verdicts"]
    devices = ", ".join(sorted({v["device"] for v in verdicts}))
    gpus = ", ".join(environment.get("gpu") or ["no GPU"])
    lines = [
        "",
        f"command  {command}, in a fresh clone of {environment.get('commit')}",
        f"date     {environment.get('date')}",
        f"device   {devices}: {gpus}; {environment.get('cpu')}, {environment.get('cores')} cores",
        f"torch    {environment.get('torch')}, {environment.get('compiler')}",
        "",
    ]
    for run in runs:
        passed = sum(v["status"] == "PASSED" for v in run.document["verdicts"])
        lines.append(
            f"{run.name:<6} {run.wall_s:7.1f} s   {passed} of {len(run.document['verdicts'])} "
            f"pairs PASSED, exit code {run.exit_code}"
        )
    for run in runs:
        peaks: dict[str, int] = {}
        for verdict in run.document["verdicts"]:
            for who, size in verdict["peak_bytes"].items():
                peaks[who] = max(peaks.get(who, 0), size)
        said = ", ".join(f"{who} {size / 1024**2:.0f} MiB" for who, size in sorted(peaks.items()))
        lines.append(f"{run.name:<6} peak resident memory of one process: {said or 'unknown'}")
    return "\n".join(lines)


def main() -> int:
    """Measure a cold and a warm run, print both; returns 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--command", default="make eval", help="what is run in the clone")
    command = parser.parse_args().command
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        runs = [measure(name, command, clone) for name in ("cold", "warm")]
        print(report(runs, command))
    return int(any(run.exit_code for run in runs))


if __name__ == "__main__":
    sys.exit(main())
