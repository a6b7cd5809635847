"""Finds pairs on disk, without importing a user's file.

``problems/<problem>/reference.py`` is matched with every ``solutions/<problem>/<solution>.py``
that defines ``ModelNew``. ``solution.py`` comes first.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.domain import Pair, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The pairs below one root.

    Attributes:
        pairs: in alphabetical order of problems, each problem's ``solution`` first.
        warnings: one sentence per folder that has only half a pair.
    """

    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...] = ()


def discover(root: Path) -> Catalogue:
    """Return every pair under ``root/problems`` and ``root/solutions``.

    Raises:
        UsageError: root has no problems folder.
    """
    problems = root / "problems"
    if not problems.is_dir():
        raise UsageError(
            f"{problems}: no such folder. Next: write a first pair with "
            f"run_eval.py --new NAME --root {shlex.quote(str(root))}"
        )
    pairs: list[Pair] = []
    warnings: list[str] = []
    for folder in sorted(path for path in problems.iterdir() if path.is_dir()):
        if folder.name.startswith((".", "_")):
            continue
        reference = folder / "reference.py"
        if not reference.is_file():
            warnings.append(f"{folder}: has no reference.py, so it is no pair")
            continue
        found = _solutions(root / "solutions" / folder.name)
        if not found:
            warnings.append(f"{folder}: has no solution in solutions/{folder.name}/")
        pairs += [
            Pair(name=f"{folder.name}/{path.stem}", problem=reference, solution=path)
            for path in found
        ]
    known = {pair.problem.parent.name for pair in pairs}
    solutions = root / "solutions"
    for folder in sorted(solutions.iterdir()) if solutions.is_dir() else []:
        orphan = folder.is_dir() and folder.name not in known and bool(_solutions(folder))
        if orphan and not (problems / folder.name / "reference.py").is_file():
            warnings.append(f"{folder}: has no problems/{folder.name}/reference.py")
    return Catalogue(pairs=tuple(pairs), warnings=tuple(warnings))


def select(pairs: Sequence[Pair], patterns: Iterable[str]) -> tuple[Pair, ...]:
    """Return the pairs that the patterns name, each once; all pairs if there is no pattern.

    The pairs keep the order of the patterns. Pairs of one pattern keep their own order.

    Args:
        pairs: those to choose from.
        patterns: globs over ``problem/solution``. One without a slash names problems.

    Raises:
        UsageError: a pattern matches no pair; the message has the nearest names.
    """
    wanted = list(patterns)
    if not wanted:
        return tuple(pairs)
    chosen: dict[str, Pair] = {}
    for pattern in wanted:
        matched = {pair.name: pair for pair in pairs if _matches(pair.name, pattern)}
        if not matched:
            names = {pair.name for pair in pairs} | {p.name.split("/")[0] for p in pairs}
            close = difflib.get_close_matches(pattern, sorted(names), n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(close)}?" if close else "--list prints all pairs"
            raise UsageError(f"no pair matches {pattern!r}; {hint}")
        chosen.update(matched)
    return tuple(chosen.values())


def pair_from_files(problem: Path, solution: Path) -> Pair:
    """Return the pair of two files, named after them.

    Raises:
        UsageError: a file does not exist, or is a folder.
    """
    for role, path in (("problem", problem), ("solution", solution)):
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; --{role} takes a Python file")
        if not path.is_file():
            raise UsageError(f"{path}: no such {role} file")
    problem, solution = problem.resolve(), solution.resolve()
    stem = problem.parent.name if problem.stem == "reference" else problem.stem
    return Pair(name=f"{_plain(stem)}/{_plain(solution.stem)}", problem=problem, solution=solution)


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern names the pair, as in ``select``."""
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    if "/" in pattern.rstrip("/"):
        return fnmatch.fnmatchcase(name, pattern)
    return fnmatch.fnmatchcase(name.split("/")[0], pattern.rstrip("/"))


def _plain(stem: str) -> str:
    """Return a stem with characters for names of pairs and log files only."""
    return re.sub(r"[^\w.+-]+", "_", stem) or "unnamed"


def _solutions(folder: Path) -> list[Path]:
    """Return the files of a solution folder that define ModelNew, solution.py first."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.glob("*.py") if not path.name.startswith((".", "_"))]
    found = [path for path in files if path.name == "solution.py" or _defines_model_new(path)]
    return sorted(found, key=lambda path: (path.name != "solution.py", path.name))


def _defines_model_new(path: Path) -> bool:
    """Return whether a file binds ModelNew; if it cannot be parsed, whether it mentions it."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return True
    if "ModelNew" not in text:
        return False
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return True
    return any(
        (isinstance(node, ast.ClassDef) and node.name == "ModelNew")
        or (isinstance(node, ast.alias) and (node.asname or node.name) == "ModelNew")
        or (isinstance(node, ast.Name) and node.id == "ModelNew" and _is_store(node))
        for node in ast.walk(tree)
    )


def _is_store(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)
