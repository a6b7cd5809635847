"""Finds a solution's inline source in its own file, so that errors name that file's lines."""

from __future__ import annotations

import ast
from pathlib import Path


def locate(source: str, solution_file: str | None) -> int | None:
    """Return the 1-based line of ``solution_file`` on which ``source`` starts, or None.

    The source may stand in the file as it is, or as a string literal with escapes.
    """
    if not solution_file or not source.strip():
        return None
    path = Path(solution_file)
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    at = text.find(source)
    if at >= 0:
        return text.count("\n", 0, at) + 1
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
            inside = node.value.find(source) if len(node.value) >= len(source) else -1
            if inside >= 0:
                return node.lineno + node.value.count("\n", 0, inside)
    return _by_lines(source, text)


def _by_lines(source: str, text: str) -> int | None:
    """Find formatted source (an f-string, a replaced constant) by its unique lines.

    Each line that occurs once in both votes for an offset. An offset with a majority is the answer.
    """
    where: dict[str, list[int]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        where.setdefault(line.strip(), []).append(number)
    votes: dict[int, int] = {}
    for number, line in enumerate(source.split("\n")):
        found = where.get(line.strip(), [])
        if len(line.strip()) > 8 and len(found) == 1:
            votes[found[0] - number] = votes.get(found[0] - number, 0) + 1
    if not votes:
        return None
    best = max(votes, key=lambda k: votes[k])
    return best if best > 0 and votes[best] * 2 > sum(votes.values()) else None
