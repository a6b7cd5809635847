"""Finds the files that a problem or a solution uses, from its source. Executes nothing."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

SOURCES = {".py", ".cu", ".cuh", ".cpp", ".cc", ".cxx", ".c", ".h", ".hpp", ".hxx", ".inc"}
READ_LIMIT_BYTES = 64 * 1024**2
"""The most that is read of a file: no source is larger, and some files have no end."""
_NAME_LIMIT = 200
"""The longest text of a source that may be a file's name, characters."""
_FILES_LIMIT = 2000
"""The most files of one pair."""


def local_files(main: Path) -> list[Path]:
    """Return the files that a file's source names, and those that these name.

    A source names a file by an import, an include or a string: ``import helpers``,
    ``#include "k.cuh"``, ``"csrc/k.cu"``. A folder's name stands for all sources in it.

    Raises:
        OSError: the file itself cannot be read.
    """
    return _reached(main, imports_only=False)


def imported_files(main: Path) -> list[Path]:
    """Return the Python files that a file imports, and those that these import.

    Raises:
        OSError: the file itself cannot be read.
    """
    return _reached(main, imports_only=True)


def _reached(main: Path, *, imports_only: bool) -> list[Path]:
    found: dict[Path, None] = {}
    waiting = [main]
    while waiting and len(found) < _FILES_LIMIT:
        source = waiting.pop()
        if source.suffix not in SOURCES:
            continue
        try:
            with source.open("rb") as stream:
                text = stream.read(READ_LIMIT_BYTES).decode("utf-8-sig", "replace")
        except OSError:
            if source == main:
                raise
            continue
        tree = _tree(source, text)
        names = list(_imports(tree))
        if not imports_only:
            names += [*re.findall(r'#\s*include\s*"([^"\n]+)"', text), *_texts(tree)]
        for name in names:
            for path in _files(source.parent, name):
                if path != main and path not in found:
                    found[path] = None
                    waiting.append(path)
    return sorted(found)


def _tree(path: Path, text: str) -> ast.AST:
    """Return the syntax tree of a Python file; an empty one for other files."""
    if path.suffix == ".py":
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            pass
    return ast.Module(body=[], type_ignores=[])


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield relative paths of the modules that a source may import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from _module_files(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from _module_files([base, *(f"{base}.{a.name}" for a in node.names)])


def _module_files(modules: Iterable[str]) -> Iterator[str]:
    for module in modules:
        stem = module.strip(".").replace(".", "/")
        if stem:
            yield f"{stem}.py"
            yield f"{stem}/__init__.py"


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield every string of a source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _files(folder: Path, name: str) -> list[Path]:
    """Return the files of a name: one file, or the sources of a folder below this one."""
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
            return sorted(p for p in inside if p.suffix in SOURCES and p.is_file())
    except (OSError, ValueError):
        return []
    return []
