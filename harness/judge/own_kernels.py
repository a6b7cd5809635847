"""Finds the kernels that a solution ships in its source, and counts which of them were launched."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.machine import left_files

_MOST_SOURCE_BYTES = 16 << 20
_SHIPS_CUDA = re.compile(r"__global__|<<<")
_KERNEL_NAME = re.compile(
    r"__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*|__cluster_dims__\s*\([^)]*\)\s*|static\s+|"
    r"inline\s+)*void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^)]*\))*\)\s*)?(\w+)"
)


def ships_cuda(sources: Iterable[str]) -> bool:
    """Return whether there is CUDA in any of these sources."""
    return any(_SHIPS_CUDA.search(s) for s in sources)


def sources_of(text: str, files: Iterable[str]) -> list[str]:
    """Return the texts that may hold a solution's CUDA: string literals, and files that it built.

    Args:
        text: the solution's file.
        files: paths of the files that its build read, and of modules that it imports.
    """
    found = _strings(text)
    for path in map(Path, files):
        if path.suffix in (".cu", ".cuh", ".py"):
            # A worker names these files: there may be anything in their place.
            with contextlib.suppress(OSError):
                read = left_files.bytes_of(path, _MOST_SOURCE_BYTES, follow=True)
                text = read.decode("utf-8", "replace")
                found += _strings(text) if path.suffix == ".py" else [text]
    return found


def kernel_names(sources: Iterable[str]) -> set[str]:
    """Return the names of the kernels that sources define."""
    return {n for s in sources for n in _KERNEL_NAME.findall(s)}


def launches_of(own: Iterable[str], launched: Mapping[str, int]) -> int:
    """Return how many launches are of own kernels; names may be mangled."""
    names = list(own)
    return sum(n for kernel, n in launched.items() if any(_names(kernel, o) for o in names))


def _names(launched: str, own: str) -> bool:
    return re.search(rf"\b{re.escape(own)}\b", launched) is not None


def _strings(text: str) -> list[str]:
    """Return a file's string literals without docstrings: a solution keeps its sources there.

    A comment that quotes a kernel does not count. A text that is not Python is returned whole.
    """
    try:
        tree = ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError):
        return [text]
    prose = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    return [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in prose
    ]
