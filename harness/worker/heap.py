"""The C library's heap in a worker whose calls are timed on a CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""That glibc takes on 64 bits."""
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Have freed memory stay with the process, blocks of up to 32 MiB.

    glibc decides by what was freed before whether a block of 128 KiB or more comes from the kernel,
    which clears it page by page in the middle of a call, and goes back there when it is freed. So
    the same code took 0.13 ms a call in one process and 0.4 in another (tanh of 512 KiB, two cores,
    2026-11-29). Where the C library is another one, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
