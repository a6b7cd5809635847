"""Writes the parts that several solutions share into each of them.

A solution is one file that a reader can follow and copy on its own, so it includes no other. Where
solutions need the same text, it stands once, in this folder, and every solution holds a copy
between two marker lines:

    // >>> shared: pack
    ...
    // <<< shared: pack

The copy is ``pack.cuh`` of this folder; in Python the markers begin with ``#`` and the source is
``pack.py.txt``. ``PROBLEM`` in a source stands for the name of the solution's folder.

A solution that is another one with a switch holds that one's text. Between ``# >>> shared:
hopper.py`` and ``# <<< shared: hopper.py``, tf32.py has what stands between the same two lines of
hopper.py, which is the source; the switch stands above them, in each file its own.

    python -m solutions._shared.stamp            writes all copies anew
    python -m solutions._shared.stamp --check    names the copies that differ; exit code 1
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
SUFFIXES = {"//": ".cuh", "#": ".py.txt"}
MARKER = re.compile(r"(?P<comment>//|#) (?P<edge>>>>|<<<) shared: (?P<name>[\w.]+)")


class StampError(Exception):
    """The markers of a file are wrong; says where and what to do."""


def stamp(text: str, *, problem: str, where: str, sources: Path = SOURCES) -> str:
    """Return a solution's text with every shared part copied from its source.

    Args:
        text: of the solution.
        problem: name of its folder; replaces PROBLEM.
        where: the file's name, for errors.
        sources: folder with the shared parts.

    Raises:
        StampError: a marker has no partner, or names a part that does not exist.
    """
    lines: list[str] = []
    inside: re.Match[str] | None = None
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        found = MARKER.fullmatch(line.rstrip("\n"))
        if found is not None and found["name"] == Path(where).name:
            found = None  # this file is the source
        if inside is not None and inside["name"].endswith(".py") and found is not None:
            found = found if found["name"] == inside["name"] else None  # a part of that file
        if found is None:
            if inside is None:
                lines.append(line)
            continue
        opens, name = found["edge"] == ">>>", found["name"]
        if opens is (inside is not None) or (inside is not None and name != inside["name"]):
            raise StampError(
                f"{where}:{number}: this marker of {name!r} has no partner. "
                "Next: pair each '>>> shared' with a '<<< shared' of the same name"
            )
        lines.append(line)
        if not opens:
            inside = None
            continue
        inside = found
        if name.endswith(".py"):
            lines.append(_region(Path(where).with_name(name), found, problem, sources))
            continue
        source = sources / (name + SUFFIXES[found["comment"]])
        if not source.is_file():
            raise StampError(f"{where}:{number}: {source} does not exist. Next: write it")
        lines.append(source.read_text(encoding="utf-8").replace("PROBLEM", problem))
    if inside is not None:
        raise StampError(f"{where}: the part {inside['name']!r} is never closed. Next: close it")
    return "".join(lines)


def _region(source: Path, opening: re.Match[str], problem: str, sources: Path) -> str:
    """Return what stands between a solution's own markers, stamped."""
    if not source.is_file():
        raise StampError(f"{source} does not exist. Next: write it")
    text = stamp(
        source.read_text(encoding="utf-8"), problem=problem, where=str(source), sources=sources
    )
    first, last = f"{opening[0]}\n", opening[0].replace(">>>", "<<<") + "\n"
    if text.count(first) != 1 or text.count(last) != 1:
        raise StampError(f"{source}: Next: put {opening[0]!r} and its end around what is shared")
    return text[text.index(first) + len(first) : text.index(last)]


def stale(root: Path, sources: Path) -> dict[Path, str]:
    """Return the solutions under ``root`` whose copies differ, with the text they should have."""
    result = {}
    for path in sorted(root.glob("*/*.py")):
        if path.parent == sources:
            continue
        text = path.read_text(encoding="utf-8")
        wanted = stamp(text, problem=path.parent.name, where=str(path), sources=sources)
        if wanted != text:
            result[path] = wanted
    return result


def main(arguments: list[str] | None = None) -> int:
    """Write the copies or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if copies differ")
    check = parser.parse_args(arguments).check
    try:
        found = stale(SOURCES.parent, SOURCES)
    except StampError as error:
        print(error, file=sys.stderr)
        return 2
    for path, text in found.items():
        if check:
            print(f"{path}: a shared part differs from its source in {SOURCES}")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path}: stamped")
    if check and found:
        print("Next: edit the source, not the copy, then python -m solutions._shared.stamp")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
