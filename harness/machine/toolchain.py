"""Describes the tool chain of extensions, which is a part of their keys."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from harness.machine.environment import find_nvcc, nvcc_version


def toolchain(device: str) -> dict[str, str | None]:
    """Return the versions and architectures of a build.

    Judge and worker both look extensions up by it. If they differed, the candidate would compile
    its extensions anew in each run.

    Args:
        device: ``cuda``, ``emulated`` or ``cpu``.
    """
    return {
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": _nvcc() if device == "cuda" else "",
        "python": sys.implementation.cache_tag,
        "arch": _architectures() if device == "cuda" else "",
        "compiler": _compiler(),
    }


def _architectures() -> str:
    """Return nvcc's target architectures, whatever the number of GPUs of a kind."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if listed:
        return listed
    visible = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ",".join(f"{major}.{minor}" for major, minor in sorted(visible)) + "+PTX"


def _nvcc() -> str | None:
    nvcc = find_nvcc()
    return nvcc_version(nvcc) if nvcc else None


def _compiler() -> str:
    command = os.environ.get("CXX", "c++")
    try:
        output = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return output.stdout.splitlines()[0] if output.stdout else "none"
