"""The sizes of a problem by name; turns pairs into pairs at several sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from harness.domain import Pair, UsageError
from harness.pairs.settings import Settings, constants_of, read_settings

ALL = "all"


def names_of(settings: Settings) -> list[str]:
    """Return the names of a problem's sizes: ``full``, ``small``, and those in its settings."""
    return list(dict.fromkeys(["full", "small", *settings.sizes]))


def overrides_of(size: str, settings: Settings) -> Mapping[str, Any] | None:
    """Return the module-level constants that a size replaces.

    Args:
        size: what ``--size`` takes: a name, or constants as ``NAME=VALUE,...``.
        settings: of the problem.

    Returns:
        None for ``small`` where the settings do not say what it is: the judge finds out.

    Raises:
        UsageError: the problem has no such size.
    """
    if size == "full":
        return {}
    if size in settings.sizes or size == "small":
        return settings.sizes.get(size)
    constants = constants_of(size)
    if constants is None:
        raise UsageError(
            f"no size {size!r}; this problem has: {', '.join(sorted(names_of(settings)))}. "
            "Next: one of these, or its constants as NAME=VALUE,..."
        )
    return constants


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
        settings = read_settings(pair.problem)
        own = list(settings.sizes)
        if names == [ALL]:
            sizes = (["full"] if full else []) + (own or ["small"])
        else:
            sizes = [name for name in names if name in names_of(settings)]
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
