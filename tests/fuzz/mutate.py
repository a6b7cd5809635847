"""Makes hostile variants of JSON and of bytes: the same seed gives the same case."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 5, 65, 1 << 31, 1 << 62, 1 << 63, 1 << 64, -(1 << 63), 10**300,
    0.5, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), "", "x", "nan", "float32",
    "0" * 4000,
    "\ud800", "\x00", "\x1b[2J", "../../x", "/dev/zero", "/etc/passwd", "-" * 24, "ab" * 64,
    "\u202e",
)  # fmt: skip


def junk(source: random.Random, depth: int = 0) -> Any:
    """Return any JSON value."""
    kind = source.randrange(7 if depth < 3 else 4)
    if kind < 4:
        return source.choice(SCALARS)
    if kind == 4:
        return [junk(source, depth + 1) for _ in range(source.choice((0, 1, 2, 3, 70)))]
    if kind == 5:
        names = ("v", "t", "l", "u", "d", "f", "x", "dtype", "shape", "strides", "offset", "a")
        return {source.choice(names): junk(source, depth + 1) for _ in range(source.randrange(4))}
    deep: Any = source.choice(SCALARS)
    for _ in range(source.choice((5, 40, 150))):
        deep = [deep] if source.random() < 0.5 else {source.choice(("l", "v", "d")): deep}
    return deep


def place(value: Any, source: random.Random) -> tuple[Any, ...]:
    """Return the path to some part of a JSON value."""
    path: tuple[Any, ...] = ()
    while isinstance(value, (dict, list)) and value and (not path or source.random() < 0.7):
        key = (
            source.choice(list(value)) if isinstance(value, dict) else source.randrange(len(value))
        )
        path, value = (*path, key), value[key]
    return path


def mutated(value: Any, source: random.Random) -> Any:
    """Return a JSON value in which one to three parts are others."""
    value = copy.deepcopy(value)
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        path = place(value, source)
        if not path:
            if source.random() < 0.1:
                return junk(source)
            continue
        *above, last = path
        holder = value
        for key in above:
            holder = holder[key]
        how = source.randrange(6)
        if how == 0 and isinstance(holder, dict):
            del holder[last]
        elif how == 1 and isinstance(holder, dict):
            holder[source.choice(("extra", "too_small", "event", "error", "values"))] = junk(source)
        elif how == 2 and isinstance(holder, list):
            holder.extend([copy.deepcopy(holder[last])] * source.choice((1, 9, 2000)))
        elif how == 3 and isinstance(holder[last], (int, float)):
            holder[last] = source.choice([s for s in SCALARS if isinstance(s, (int, float))])
        elif how == 4:
            other = place(value, source)
            part: Any = value
            for key in other:
                part = part[key]
            holder[last] = copy.deepcopy(part)
        else:
            holder[last] = junk(source)
    return value


def framed(value: Any, source: random.Random) -> bytes:
    """Return a message as it goes over the wire, now and then with a broken frame."""
    body = json.dumps(value).encode()
    how = source.randrange(40)
    if how == 0:
        body = body[: source.randrange(len(body) + 1)]
    elif how == 1:
        body = bytes(source.randrange(256) for _ in range(source.choice((1, 30, 3000))))
    elif how == 2:
        body = b"[" * source.choice((10, 100_000))
    elif how == 3:
        body = b'{"id":' + b"9" * source.choice((30, 5000)) + b"}"
    size = len(body) if how != 4 else source.choice((0, 1, 1 << 20, (16 << 20) + 1, (1 << 32) - 1))
    return struct.pack("<I", size) + body
