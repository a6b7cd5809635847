"""Multiplies pairs by sizes: a speedup at one size may not hold at others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.domain import Pair, UsageError
from harness.pairs.settings import read_settings

ALL = "all"


def at_sizes(pairs: Sequence[Pair], wanted: str, *, full: bool) -> tuple[Pair, ...]:
    """Return each pair once per size, named ``problem/solution@size``.

    Args:
        pairs: chosen pairs.
        wanted: names with commas, or ``all``: every size of the problem.
        full: whether ``all`` includes the full size, which takes too long off the GPU.

    Raises:
        UsageError: no chosen problem has a size of that name.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    found: list[Pair] = []
    met: set[str] = set()
    for pair in pairs:
        own = list(read_settings(pair.problem).sizes)
        known = dict.fromkeys(["full", "small", *own])
        if names == [ALL]:
            sizes = (["full"] if full else []) + (own or ["small"])
        else:
            sizes = [name for name in names if name in known]
        met |= set(sizes)
        found += [dataclasses.replace(pair, name=f"{pair.name}@{s}", size=s) for s in sizes]
    unknown = [name for name in names if name not in met and name != ALL]
    if unknown or not found:
        what = repr(unknown[0]) if unknown else repr(wanted)
        raise UsageError(
            f"--sizes: no chosen problem has a size {what}. "
            'Next: add it to the problem\'s SETTINGS["sizes"], or choose full or small'
        )
    return tuple(found)
