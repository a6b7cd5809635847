"""Runs a folder of problem and solution pairs on the CPU runner and prints what came of them.

``python tests/cuda_on_cpu/public_solutions.py FOLDER`` takes a folder with one folder per pair::

    FOLDER/NAME/problem.py      a reference in KernelBench's form
    FOLDER/NAME/solution.py     ModelNew with inline CUDA
    FOLDER/NAME/about.json      optional: {"source": "where it is from", "gpu": "correct"}

``size`` in about.json may ask for ``full``, for a solution with its sizes written into the kernel.
``gpu`` is what somebody's GPU said of it: ``correct``, ``wrong`` or ``not compiled``. A verdict
that contradicts it, or an unmatched solution of which nothing is known, is a disagreement; each
wants an explanation in ``--explanations`` ({"NAME": [KIND, "why"]}; kind ``bug`` is the solution's
own). Pairs run in an order that depends on nothing but their names, so ``--limit`` draws a fair
sample; what is in ``--results`` already is not run again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness import Status, evaluate

Record = dict[str, Any]
_AGREES = {
    "correct": {"PASSED"},
    "wrong": {s.value for s in Status} - {"PASSED", "SKIPPED", "HARNESS_ERROR"},
    "not compiled": {"BUILD_FAILED", "LOAD_FAILED", "STATE_MISMATCHED"},
}


def run(folder: Path, options: argparse.Namespace) -> Record:
    """Evaluate one pair and return what is worth keeping of its verdict."""
    about = folder / "about.json"
    facts = json.loads(about.read_text()) if about.is_file() else {}
    started = time.monotonic()
    verdict = evaluate(
        folder / "problem.py",
        folder / "solution.py",
        device="emulated",
        size=facts.get("size"),
        quick=True,
        seed=options.seed,
        timeout_s=options.timeout,
        timed=False,
        cache_dir=options.cache,
        log_dir=options.logs,
    )
    return {
        "name": folder.name,
        "source": facts.get("source", ""),
        "gpu": facts.get("gpu"),
        "status": verdict.status.value,
        "message": verdict.message,
        "launches": verdict.launches,
        "findings": [f.message for f in verdict.findings],
        "kinds": sorted({f.kind for f in verdict.findings}),
        "notes": list(verdict.notes),
        "seconds": round(time.monotonic() - started, 1),
    }


def agrees(record: Mapping[str, Any]) -> bool:
    """Return whether the verdict is what the GPU said; unknown solutions have to match."""
    return record["status"] in _AGREES[record["gpu"] or "correct"]


def table(records: Sequence[Record], explanations: Mapping[str, Sequence[str]]) -> str:
    """Return the counts by source and the disagreements, in Markdown."""
    titles = ["source", *_COLUMNS]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["source"], []).append(record)
    for name in [*sorted(groups), "all"]:
        counts = _counts(groups[name] if name != "all" else records, explanations)
        cells = [str(counts[c]) for c in _COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    total = _counts(records, explanations)
    good = total["matched"] + total["wrong on the GPU too"] + total["bug"]
    share = 100 * good / max(1, total["testable"])
    lines += ["", f"Matched or a true bug: {good} of {total['testable']} testable, {share:.1f} %."]
    constructs = Counter(
        _construct(r["message"]) for r in sorted(records, key=str) if r["status"] == "SKIPPED"
    )
    if constructs:
        named = ", ".join(f"{what} {n}" for what, n in constructs.most_common())
        lines += ["", f"Unsupported: {named}."]
    lines += ["", "| disagreement | GPU | verdict | explanation |", "|---|---|---|---|"]
    for record in records:
        if agrees(record) or record["status"] == "SKIPPED":
            continue
        kind, why = explanations.get(record["name"], ("unexplained", record["message"]))
        cells = [record["name"], record["gpu"] or "unknown", record["status"], f"{kind}: {why}"]
        lines.append(
            "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
        )
    return "\n".join(lines)


_COLUMNS = (
    "pairs", "unsupported", "testable", "built", "launched", "matched", "flagged",
    "wrong on the GPU too", "bug", "left",
)  # fmt: skip


def _counts(records: Sequence[Record], explanations: Mapping[str, Sequence[str]]) -> Counter[str]:
    counts: Counter[str] = Counter(pairs=len(records))
    for record in records:
        if record["status"] == "SKIPPED":
            counts["unsupported"] += 1
            continue
        counts["testable"] += 1
        counts["built"] += record["status"] not in ("BUILD_FAILED", "LOAD_FAILED")
        counts["launched"] += bool(record["launches"])
        counts["flagged"] += bool(record["findings"])
        if record["status"] == "PASSED":
            counts["matched"] += 1
        elif record["gpu"] in ("wrong", "not compiled"):
            counts["wrong on the GPU too"] += 1
        elif explanations.get(record["name"], ("",))[0] == "bug":
            counts["bug"] += 1
        else:
            counts["left"] += 1
    return counts


def _construct(message: str) -> str:
    return message.split(" cannot run on the CPU")[0].rsplit(": ", 1)[-1]


def main() -> None:
    """Run what has not run yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--limit", type=int, help="so many pairs only")
    add("--only", nargs="*", default=[], help="these pairs, whether they have run or not")
    add("--results", type=Path, help="JSON lines: read, continued")
    add("--explanations", type=Path)
    add("--jobs", type=int, default=2)
    add("--timeout", type=float, default=120.0, help="seconds per phase of a pair")
    add("--seed", type=int, default=1)
    add("--cache", type=Path)
    add("--logs", type=Path)
    add("--table", action="store_true", help="print the table of --results, run nothing")
    options = parser.parse_args()
    found = [p.parent for p in options.folder.glob("*/solution.py")]
    found.sort(key=lambda p: hashlib.sha256(p.name.encode()).hexdigest())
    found = found[: options.limit]
    known: dict[str, Record] = {}
    if options.results and options.results.is_file():
        for line in options.results.read_text().splitlines():
            record = json.loads(line)
            known[record["name"]] = record
    wanted = [p for p in found if p.name in options.only or p.name not in known]
    if options.only:
        wanted = [p for p in found if p.name in options.only]
    if not options.table:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = [pool.submit(run, p, options) for p in wanted]
            for future in concurrent.futures.as_completed(futures):
                record = future.result()
                known[record["name"]] = record
                mark = "" if agrees(record) or record["status"] == "SKIPPED" else "  <-- disagrees"
                print(
                    f"{len(known)} {record['name']} {record['status']} gpu {record['gpu']} "
                    f"{record['seconds']} s{mark}",
                    file=sys.stderr,
                    flush=True,
                )
                if options.results:
                    with options.results.open("a") as out:
                        out.write(json.dumps(record) + "\n")
    explanations = json.loads(options.explanations.read_text()) if options.explanations else {}
    records = [known[p.name] for p in found if p.name in known]
    print(table(records, explanations))


if __name__ == "__main__":
    main()
