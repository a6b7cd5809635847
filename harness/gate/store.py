"""Stored results: one file per kind of device, reviewed in git."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.domain import (
    HarnessError,
    Run,
    Status,
    UsageError,
    Verdict,
    to_json,
    verdict_from_json,
)

BASELINE_SCHEMA = 1
"""Version of a baseline file. History: 1 first form."""

_KEPT = (
    "status", "seed", "device", "size", "modes", "checks", "max_abs_diff", "precision", "findings",
    "launches", "speed", "problem_hash", "solution_hash",
)  # fmt: skip
_SPEED_KEPT = (
    "outcome", "speedup", "low", "high", "reference_ms", "candidate_ms", "batches",
    "calls_per_batch", "shape", "reference_latency_ms", "candidate_latency_ms", "noise_floor",
    "capped", "baselines", "bound", "card", "blocks",
)  # fmt: skip
_ENVIRONMENT_KEPT = (
    "harness", "commit", "date", "gpu", "driver", "torch", "cuda", "nvcc", "compiler", "cpu",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The stored result of one pair.

    Attributes:
        verdict: without logs, phases and notes.
        device: kind of device, e.g. ``nvidia-h200``.
        environment: of the machine.
        measurement_version: of the stored times.
    """

    verdict: Verdict
    device: str
    environment: Mapping[str, Any]
    measurement_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResults:
    """The content of a baseline file, or a run in its place.

    Attributes:
        source: the file, for messages.
        device: kind of device.
        pairs: by name.
    """

    source: str
    device: str
    pairs: Mapping[str, Stored]


def device_kind(verdict_device: str, gpus: Sequence[str]) -> str:
    """Return the kind of device, as in the name of its baseline file.

    Args:
        verdict_device: ``cuda:0``, ``emulated`` or ``cpu``.
        gpus: names of the visible GPUs, in order.

    Returns:
        ``cpu-runner`` for the CUDA source on the CPU, ``cpu``, or the GPU's name: ``nvidia-h200``.
    """
    if verdict_device == "emulated":
        return "cpu-runner"
    if not verdict_device.startswith("cuda"):
        return verdict_device or "unknown"
    index = verdict_device.partition(":")[2] or "0"
    name = gpus[int(index)] if index.isdigit() and int(index) < len(gpus) else "unknown-gpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown-gpu"


def stored_from_run(run: Run) -> StoredResults:
    """Return a run in the form of stored results, so that two runs can be compared."""
    gpus = [str(name) for name in run.environment.get("gpu") or ()]
    pairs = {
        verdict.pair: Stored(
            verdict=verdict,
            device=device_kind(verdict.device, gpus),
            environment=run.environment,
            measurement_version=run.measurement_version,
        )
        for verdict in run.verdicts
    }
    kinds = sorted({stored.device for stored in pairs.values()})
    return StoredResults(source=run.source, device=" and ".join(kinds), pairs=pairs)


def read_results(path: Path) -> StoredResults:
    """Return the stored results of a file.

    Raises:
        UsageError: the file is missing or damaged, is no baseline, or has another schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such baseline. Next: --update-baseline writes it from a run that passes"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    restore = "Next: restore the file from git, or write it again with --update-baseline"
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}: is damaged: {error}. {restore}") from error
    try:
        schema = plain["baseline_schema"]
        if schema != BASELINE_SCHEMA:
            raise UsageError(
                f"{path}: has schema {schema!r}, this harness reads {BASELINE_SCHEMA}. Next: use "
                "the harness that wrote it, or delete the file and run with --update-baseline"
            )
        device = str(plain["device"])
        pairs = {str(name): _read_pair(name, p, device) for name, p in plain["pairs"].items()}
    except (AttributeError, KeyError, TypeError, ValueError, HarnessError) as error:
        raise UsageError(f"{path}: is no baseline: {error}. {restore}") from error
    return StoredResults(source=str(path), device=device, pairs=pairs)


def _read_pair(name: str, plain: Mapping[str, Any], device: str) -> Stored:
    result = {**plain["result"], "pair": name}
    return Stored(
        verdict=verdict_from_json(result),
        device=device,
        environment=dict(plain["environment"]),
        measurement_version=int(plain["measurement_version"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The new content of a baseline file.

    Attributes:
        text: of the file; empty if there is nothing to write.
        said: one line per pair that is stored, refused, kept or removed.
    """

    text: str
    said: tuple[str, ...]


def updated(old: StoredResults | None, run: Run, device: str, existing: Iterable[str]) -> Update:
    """Return the baseline with a run's results in it.

    Pairs that passed replace their entries. A skipped pair is stored as such if it has no entry, or
    one that was skipped. A pair that failed is never stored: its old entry stays. Entries of pairs
    that were not run stay. Entries of pairs that no longer exist are removed.

    Args:
        old: present content of the file.
        run: the new run.
        device: kind of device of the file.
        existing: names of all pairs on disk.
    """
    kept = dict(old.pairs) if old else {}
    said = []
    fresh = stored_from_run(run).pairs
    for name, stored in fresh.items():
        status = stored.verdict.status
        old_status = kept[name].verdict.status if name in kept else None
        skipped = status is Status.SKIPPED and old_status in (None, Status.SKIPPED)
        if status is not Status.PASSED and not skipped:
            fate = "its old entry stays" if name in kept else "it has no entry"
            said.append(f"not stored: {name} is {status.value}; {fate}")
        elif skipped and not stored.verdict.problem_hash:
            # An interrupted run did not reach this pair.
            said.append(f"not stored: {name} was not evaluated: {stored.verdict.message}")
        elif stored.device != device:
            said.append(f"not stored: {name} ran on {stored.device}, the file is for {device}")
        else:
            said.append(f"stored: {name}{_news(kept.get(name), stored)}{' as SKIPPED' * skipped}")
            kept[name] = stored
    for name in sorted(set(kept) - set(existing) - set(fresh)):
        del kept[name]
        said.append(f"removed: {name} no longer exists")
    document = {
        "baseline_schema": BASELINE_SCHEMA,
        "device": device,
        "pairs": {name: _plain(kept[name]) for name in sorted(kept)},
    }
    return Update(text=_dump(document) if kept or old else "", said=tuple(said))


def _news(before: Stored | None, after: Stored) -> str:
    if before is None:
        return " (new)"
    old, new = before.verdict.speed.speedup, after.verdict.speed.speedup
    return "" if old is None or new is None else f" ({old:.3f}x -> {new:.3f}x)"


def _plain(stored: Stored) -> dict[str, Any]:
    verdict = to_json(stored.verdict)
    result = {key: verdict[key] for key in _KEPT}
    result["speed"] = {key: verdict["speed"][key] for key in _SPEED_KEPT}
    return {
        "measurement_version": stored.measurement_version,
        "environment": {key: stored.environment.get(key) for key in _ENVIRONMENT_KEPT},
        "result": result,
    }


def _dump(document: Mapping[str, Any]) -> str:
    """Return JSON with each list of plain values on one line, which gives readable diffs."""
    text = json.dumps(document, indent=1, allow_nan=False)
    flat = re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", _on_one_line, text)
    json.loads(flat)
    return flat + "\n"


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r",\n\s+", ", ", found.group(1)) + "]"
