"""The key of a pair's verdict: a hash over everything that can change the verdict."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from harness.domain import MEASUREMENT_VERSION, Options, Pair, to_json
from harness.machine.environment import torch_build
from harness.machine.gpus import find_gpus
from harness.pairs.local_files import READ_LIMIT_BYTES, local_files

SCHEDULING = frozenset({"jobs", "fail_fast", "cache_dir", "log_dir"})
"""Options that decide when and beside what a pair is evaluated: no verdict depends on them."""


def pair_key(pair: Pair, options: Options, devices: Sequence[str]) -> str | None:
    """Return the key of a pair's verdict; None where one of its files cannot be read.

    Args:
        pair: names its two files, which are read with every local file that they name.
        options: what the user asked for.
        devices: where the pair may run, e.g. ``cuda:1``; their kinds count, not their numbers.
    """
    matter = {
        field.name: to_json(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if field.name not in SCHEDULING | {"device"}  # the kind of device counts, see below
    }
    build = torch_build()
    try:
        content = [
            [_digest(path) for path in (main, *local_files(main))]
            for main in (pair.problem, pair.solution)
        ]
    except OSError:
        return None
    what = {
        "pair": pair.name,
        "content": content,
        "options": {**matter, "size": pair.size or options.size},
        "devices": sorted({_kind(device) for device in devices}),
        "torch": build.version if build else None,
        "measurement_version": MEASUREMENT_VERSION,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _kind(device: str) -> str:
    """Return ``cpu``, ``emulated`` or the GPU's name."""
    kind, _, number = device.partition(":")
    gpus = find_gpus().devices
    return gpus[int(number)].name if number.isdigit() and int(number) < len(gpus) else kind


def _digest(path: Path) -> str:
    """Return a digest of a file's content; reads at most as many bytes as the file claims.

    Reading a large file, such as weights, would take seconds: its size and date stand for it.
    """
    facts = path.stat()
    if facts.st_size > READ_LIMIT_BYTES:
        return f"{facts.st_size} bytes of {facts.st_mtime_ns}"
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(facts.st_size)).hexdigest()
