"""The key of a pair's verdict: a hash over everything that can change the verdict."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.domain import MEASUREMENT_VERSION, Options, Pair, to_json
from harness.environment import torch_build
from harness.fleet.gpus import find_gpus

_NO_MATTER = {"device", "jobs", "fail_fast", "cache_dir", "log_dir"}
"""Options that decide where and when a pair is evaluated, and nothing about its verdict."""
_SOURCES = {".py", ".cu", ".cuh", ".cpp", ".cc", ".cxx", ".c", ".h", ".hpp", ".hxx", ".inc"}
_NAME_LIMIT = 200
"""Longest text in a source that is looked up as the name of a file, characters."""
_FILES_LIMIT = 2000
"""Most files that are looked at for one pair."""
_READ_LIMIT_BYTES = 64 * 1024**2
"""A larger file, such as weights, is known by its size and date: it would be read for seconds."""


def pair_key(pair: Pair, options: Options, device: str) -> str | None:
    """Return the key of a pair's verdict; None where one of its files cannot be read.

    Args:
        pair: names its two files, which are read with every local file that they name.
        options: what the user asked for.
        device: what the pair runs on, e.g. ``cuda:1``; its kind counts, not its number.
    """
    matter = {
        field.name: to_json(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if field.name not in _NO_MATTER
    }
    build = torch_build()
    try:
        content = [
            [_digest(path) for path in (main, *_local_files(main))]
            for main in (pair.problem, pair.solution)
        ]
    except OSError:
        return None
    what = {
        "pair": pair.name,
        "content": content,
        "options": {**matter, "size": pair.size or options.size},
        "device": _kind(device),
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
    """Return what stands for a file's content; never reads on and on, as some of /proc would."""
    facts = path.stat()
    if facts.st_size > _READ_LIMIT_BYTES:
        return f"{facts.st_size} bytes of {facts.st_mtime_ns}"
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(facts.st_size)).hexdigest()


def _local_files(main: Path) -> list[Path]:
    """Return the files beside a file that its source names, and those that these name.

    A source names what it imports, includes or spells in a text: ``import helpers``,
    ``#include "k.cuh"``, ``"csrc/k.cu"``. A folder that is named counts with all sources in it.
    """
    found: dict[Path, None] = {}
    waiting = [main]
    while waiting and len(found) < _FILES_LIMIT:
        source = waiting.pop()
        if source.suffix not in _SOURCES:
            continue
        with source.open("rb") as stream:
            text = stream.read(_READ_LIMIT_BYTES).decode("utf-8", "replace")
        for name in _names(source, text):
            for path in _sources(source.parent, name):
                if path != main and path not in found:
                    found[path] = None
                    waiting.append(path)
    return sorted(found)


def _names(path: Path, text: str) -> Iterator[str]:
    """Yield relative paths that a source may mean."""
    yield from re.findall(r'#\s*include\s*"([^"\n]+)"', text)
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from _module_files(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from _module_files([base, *(f"{base}.{a.name}" for a in node.names)])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _module_files(modules: Iterable[str]) -> Iterator[str]:
    for module in modules:
        stem = module.strip(".").replace(".", "/")
        if stem:
            yield f"{stem}.py"
            yield f"{stem}/__init__.py"


def _sources(folder: Path, name: str) -> list[Path]:
    """Return the files that a name means: one file, or the sources of a folder below this one."""
    plain = name.strip()
    if not plain.strip("./") or len(plain) > _NAME_LIMIT or not plain.isprintable():
        return []
    path = folder / plain
    try:
        if path.is_file():
            return [path]
        below = path.is_dir() and folder.resolve() in path.resolve().parents
        if below and not Path(plain).is_absolute():
            inside = itertools.islice(path.rglob("*"), _FILES_LIMIT)
            return sorted(p for p in inside if p.suffix in _SOURCES and p.is_file())
    except (OSError, ValueError):
        return []
    return []
