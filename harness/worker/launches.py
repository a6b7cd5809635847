"""Counts GPU kernel launches of one call, by kernel name, through torch's profiler (CUPTI)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.profiler import profile


@contextlib.contextmanager
def counted(device: torch.device, wanted: bool) -> Iterator[dict[str, int]]:
    """Fill the yielded dict with launches by kernel name when the block ends.

    Args:
        device: nothing is counted unless it is a GPU.
        wanted: profiling costs host time, so only some calls ask for it.
    """
    kernels: dict[str, int] = {}
    if device.type != "cuda" or not wanted:
        yield kernels
        return
    with gpu_profiler() as profiler:
        yield kernels
        torch.cuda.synchronize(device)
    for event in _gpu_events(profiler):
        kernels[event.name] = kernels.get(event.name, 0) + 1


@contextlib.contextmanager
def durations(device: torch.device) -> Iterator[list[float]]:
    """Fill the yielded list with the milliseconds of each kernel and copy when the block ends."""
    spent: list[float] = []
    if device.type != "cuda":
        yield spent
        return
    with gpu_profiler() as profiler:
        yield spent
        torch.cuda.synchronize(device)
    spent += [event.device_time_total / 1e3 for event in _gpu_events(profiler)]


def gpu_profiler() -> Any:
    """Return torch's profiler for the work of the GPU, not yet started.

    torch.profiler.profile around it would import torch's compiler, to read a setting of it. That
    took 4 to 5 s in a worker's first profiled call (torch 2.11, H200, 2026-11-28).
    """
    return profile(use_cpu=False, use_device="cuda", use_kineto=True)


def _gpu_events(profiler: Any) -> list[Any]:
    return [e for e in profiler.function_events or [] if e.device_type.name == "CUDA"]
