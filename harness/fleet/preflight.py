"""What can be said about a pair before any process is started for it."""

from __future__ import annotations

from harness.beside import imported_files
from harness.domain import Options, Pair, Status, UsageError
from harness.environment import find_compiler, find_nvcc
from harness.fleet.judge_process import Failure
from harness.settings import Settings, read_settings

NO_COMPILER = "no C++ compiler found (c++, g++ or $CXX). Next: apt-get install g++, then run again"
NO_NVCC = (
    "no nvcc found (CUDA_HOME, PATH, /usr/local/cuda). Next: install the CUDA toolkit that "
    "torch was built for, or --device emulated; --doctor says more"
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
    if options.size is not None and options.size not in sizes:
        return Failure(
            status=Status.SKIPPED,
            message=f"no size {options.size!r}; this problem has: {', '.join(sorted(sizes))}",
        )
    try:
        files = [pair.solution, *imported_files(pair.solution)]
        source = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    except OSError as error:
        return Failure(
            status=Status.LOAD_FAILED,
            message=f"{error.filename}: cannot be read: {error.strerror}",
        )
    if "cpp_extension" in source:
        if find_compiler() is None:
            return Failure(status=Status.SKIPPED, message=NO_COMPILER)
        on_gpu = options.device.startswith("cuda")
        if on_gpu and ("cuda_sources" in source or ".cu" in source) and find_nvcc() is None:
            return Failure(status=Status.SKIPPED, message=NO_NVCC)
    return settings
