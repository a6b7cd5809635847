"""The C library's heap in a worker whose calls are timed on a CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""The largest that glibc allows on 64 bits."""
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Keep freed blocks of up to 32 MiB in this process.

    By default glibc may take a block of 128 KiB or more from the kernel and return it when it is
    freed; that depends on earlier frees. The kernel clears such a block page by page in the middle
    of a call. So the same code took 0.13 ms a call in one process and 0.4 ms in another (tanh of
    512 KiB, two cores, 2026-11-29). With another C library this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
