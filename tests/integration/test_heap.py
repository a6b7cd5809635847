"""Freed memory stays with a worker whose calls are timed on a CPU."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource
import torch
from harness.worker import heap
torch.set_num_threads(1)
x = torch.randn(1 << 17)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        torch.tanh(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
ctypes.CDLL(None).mallopt(heap._MMAP_THRESHOLD, 1 << 17)  # as some processes happen to have it
print(faults())
heap.keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's heap")
def test_blocks_of_half_a_mebibyte_are_not_new_in_each_call() -> None:
    """Each was 128 page faults in the one process, and none in the other."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert before > 10_000
    assert after < 128
