"""Writes the skeleton of a pair."""

from __future__ import annotations

from pathlib import Path


def write_pair(name: str, root: Path) -> str:
    """Write a pair."""
    raise NotImplementedError
