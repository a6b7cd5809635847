"""Refuses pairs that cannot be evaluated, before any process starts for them."""

from __future__ import annotations

from harness.domain import Options, Pair, Status, UsageError
from harness.fleet.judge_process import Failure
from harness.machine.environment import find_compiler, find_nvcc
from harness.machine.packaged_nvcc import remedy
from harness.pairs.local_files import imported_files
from harness.pairs.settings import Settings, read_settings
from harness.pairs.sizes import overrides_of

NO_COMPILER = "no C++ compiler found (c++, g++ or $CXX). Next: apt-get install g++, then run again"


def no_nvcc() -> str:
    """Return why nothing can be built for a GPU, and what to do about it."""
    return (
        "no nvcc found (CUDA_HOME, PATH, /usr/local/cuda, this environment). "
        f"Next: {remedy()}, or --device emulated; --doctor says more"
    )


def preflight(pair: Pair, options: Options) -> Settings | Failure:
    """Return a pair's settings, or why it cannot be evaluated.

    Args:
        pair: its files are read, never executed.
        options: with the device resolved to what this pair runs on.
    """
    try:
        settings = read_settings(pair.problem)
    except UsageError as error:
        return Failure(status=Status.INVALID_REFERENCE, message=str(error))
    try:
        overrides_of(options.size or "full", settings)
    except UsageError as error:
        return Failure(status=Status.SKIPPED, message=str(error))
    try:
        files = [pair.solution, *imported_files(pair.solution)]
        source = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    except OSError as error:
        return Failure(
            status=Status.SKIPPED,
            message=f"{error.filename}: cannot be read: {error.strerror}. Next: let the user who "
            "runs this read it",
        )
    if "cpp_extension" in source:
        if find_compiler() is None:
            return Failure(status=Status.SKIPPED, message=NO_COMPILER)
        on_gpu = options.device.startswith("cuda")
        if on_gpu and ("cuda_sources" in source or ".cu" in source) and find_nvcc() is None:
            return Failure(status=Status.SKIPPED, message=no_nvcc())
    return settings
