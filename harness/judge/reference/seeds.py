"""Derives every seed of an evaluation from its one secret seed."""

from __future__ import annotations

import hashlib


def derived(seed: int, *parts: object) -> int:
    """Return a 62-bit seed that depends on the master seed and on its purpose.

    A hash: a process that learns one derived seed (a worker is told its RNG seed) learns no other.
    """
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 2
