"""Refuses pairs that cannot be evaluated, before any process starts for them."""

from __future__ import annotations

from harness.domain import Options, Pair, Refusal, Status, UsageError
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


def preflight(pair: Pair, options: Options) -> Settings:
    """Return a pair's settings.

    Args:
        pair: its files are read, never executed.
        options: with the device of this pair.

    Raises:
        Refusal: the pair cannot be evaluated.
    """
    try:
        settings = read_settings(pair.problem)
    except UsageError as error:
        raise Refusal(Status.INVALID_REFERENCE, str(error)) from None
    try:
        overrides_of(options.size or "full", settings)
    except UsageError as error:
        raise Refusal(Status.SKIPPED, str(error)) from None
    try:
        files = [pair.solution, *imported_files(pair.solution)]
        source = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    except OSError as error:
        raise Refusal(
            Status.SKIPPED,
            f"{error.filename}: cannot be read: {error.strerror}. Next: let the user who runs this "
            "read it",
        ) from None
    if "cpp_extension" in source:
        if find_compiler() is None:
            raise Refusal(Status.SKIPPED, NO_COMPILER)
        on_gpu = options.device.startswith("cuda")
        if on_gpu and ("cuda_sources" in source or ".cu" in source) and find_nvcc() is None:
            raise Refusal(Status.SKIPPED, no_nvcc())
    return settings
