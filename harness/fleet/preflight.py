"""What can be said about a pair before any process is started for it."""

from __future__ import annotations

from harness.domain import Options, Pair, Status, UsageError
from harness.fleet.judge_process import Failure
from harness.machine.environment import find_compiler, find_nvcc
from harness.machine.packaged_nvcc import remedy
from harness.pairs.local_files import imported_files
from harness.pairs.settings import Settings, constants_of, read_settings

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
    sizes = {"full", "small", *settings.sizes}
    size = options.size
    if size is not None and size not in sizes and constants_of(size) is None:
        return Failure(
            status=Status.SKIPPED,
            message=f"no size {size!r}; this problem has: {', '.join(sorted(sizes))}. "
            "Next: one of these, or its constants as NAME=VALUE,...",
        )
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
