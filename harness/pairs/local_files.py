"""Finds the files beside a problem or a solution that its source names. Executes nothing."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

SOURCES = {".py", ".cu", ".cuh", ".cpp", ".cc", ".cxx", ".c", ".h", ".hpp", ".hxx", ".inc"}
READ_LIMIT_BYTES = 64 * 1024**2
"""No more of a file is read: no source is larger, and some files never end."""
_NAME_LIMIT = 200
"""Longest text in a source that is looked up as the name of a file, characters."""
_FILES_LIMIT = 2000
"""Most files that are looked at for one pair."""


def local_files(main: Path) -> list[Path]:
    """Return the files beside a file that its source names, and those that these name.

    A source names what it imports, includes or spells in a text: ``import helpers``,
    ``#include "k.cuh"``, ``"csrc/k.cu"``. A folder that is named counts with all sources in it.

    Raises:
        OSError: the file itself cannot be read.
    """
    return _reached(main, imports_only=False)


def imported_files(main: Path) -> list[Path]:
    """Return the Python files beside a file that it imports, and those that these import.

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
    """Return the syntax tree of a Python file; an empty one of any other."""
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
    """Yield every text in a source that may be a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _files(folder: Path, name: str) -> list[Path]:
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
            return sorted(p for p in inside if p.suffix in SOURCES and p.is_file())
    except (OSError, ValueError):
        return []
    return []
