"""One page on this machine: what works, what does not, and the remedy."""

from __future__ import annotations


def main() -> int:
    """Print the page."""
    raise NotImplementedError
