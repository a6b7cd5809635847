"""Counts GPU kernel launches of one call, by kernel name, through torch's profiler (CUPTI)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def counted(device: torch.device, wanted: bool) -> Iterator[dict[str, int]]:
    """Fill the yielded dict with launches by kernel name when the block ends.

    Args:
        device: nothing is counted unless it is a GPU.
        wanted: profiling costs host time, so only calls that ask for it pay.
    """
    kernels: dict[str, int] = {}
    if device.type != "cuda" or not wanted:
        yield kernels
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        yield kernels
        torch.cuda.synchronize(device)
    for event in profiler.events() or []:
        if event.device_type.name == "CUDA":
            kernels[event.name] = kernels.get(event.name, 0) + 1


@contextlib.contextmanager
def durations(device: torch.device) -> Iterator[list[float]]:
    """Fill the yielded list with the milliseconds of each kernel and copy when the block ends."""
    spent: list[float] = []
    if device.type != "cuda":
        yield spent
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        yield spent
        torch.cuda.synchronize(device)
    spent += [
        e.device_time_total / 1e3 for e in profiler.events() or [] if e.device_type.name == "CUDA"
    ]
