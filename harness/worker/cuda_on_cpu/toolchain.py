"""Drives the host compiler: from an extension's sources to a Python module."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.domain import BuildFailed
from harness.worker.cuda_on_cpu.support import (
    PREFIX_FLAGS,
    RUNTIME,
    Support,
    base_flags,
    compiler,
    torch_include_flags,
    torch_library_folder,
)

# Instrumentation without libtsan: the run-time library supplies the callbacks. The option defines a
# macro, with which the compiler would reject the precompiled header.
CHECKED = [
    "-O1",
    "-fsanitize=thread",
    "-U__SANITIZE_THREAD__",
    "--param=tsan-distinguish-volatile=1",
    "--param=tsan-instrument-func-entry-exit=0",
    # A callback's or atomic's return address must be the line of the access.
    "-fno-optimize-sibling-calls",
    # A float4 moves as one access, so that the checks see its alignment.
    "-fno-tree-sra",
    "-fno-ipa-sra",
    # Two extensions may have a kernel template of the same name. Each has its own shared memory.
    "-fno-gnu-unique",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
]
NATIVE = ["-O2", "-ftree-vectorize"]

# torch gives these to nvcc for every extension. -U in extra_cuda_cflags undoes them.
_TORCH_CUDA_DEFINES = [
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
]

# A source without these words means the same with and without OpenMP. A source with them is
# compiled as its flags say: a loop that is serial on the real tool chain is serial, and timed so,
# here.
_OPENMP_MATTERS = re.compile(
    r"\bparallel_for\b|\bparallel_reduce\b|#\s*pragma\s+omp|\b_OPENMP\b|omp\.h"
)

_ERROR = re.compile(
    r"^(?P<file>[^\s:][^:\n]*):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<text>.*)$"
)
_CUDA_LIBRARY = re.compile(
    r"-l(cuda|cudart|cublas|cublasLt|cudnn|c10_cuda|torch_cuda|nvToolsExt)\b"
)
_LINK_ERROR = re.compile(r"(undefined reference to .*|multiple definition of .*)")


def words(flags: Sequence[str]) -> list[str]:
    """Return flags split at blanks, as a line of a build file would be."""
    return [word for flag in flags for word in flag.split()]


def cuda_flags(flags: Sequence[str]) -> list[str]:
    """Return those of nvcc's flags that a host compiler can use.

    Raises:
        BuildFailed: an option that nvcc does not know either.
    """
    kept = list(_TORCH_CUDA_DEFINES)
    takes_value = {
        "-gencode", "-arch", "-code", "-Xptxas", "-Xcompiler", "-Xcudafe", "-Xlinker", "-Xnvlink",
        "-maxrregcount", "--maxrregcount", "-ccbin", "--threads", "-t", "-diag-suppress",
        "--generate-code", "--gpu-architecture", "--compiler-options", "--ptxas-options",
    }  # fmt: skip
    known = re.compile(
        r"-O[0-3]|-lineinfo|--generate-line-info|-G|-g|--?use_fast_math|--?expt-\S+|--?extended-lambda"
        r"|--?relaxed-constexpr|-w|-v|--verbose|--?fmad=\S+|--?ftz=\S+|--?prec-\S+|--?std=\S+|-rdc=\S+"
        r"|--?restrict|--?diag-suppress=?\S*|-diag-error\S*|-W\S*|--?maxrregcount=\S+|-arch=\S+"
        r"|--gpu-architecture=\S+|-gencode=\S+|--generate-code=\S+|-code=\S+|-Xptxas=\S+"
        r"|-Xcompiler=\S+|--ptxas-options=\S*|--compiler-options=\S*|--threads=?\S*|-t=?\d+|-dc|-c"
        r"|--?keep\S*|--?source-in-ptx|--?resource-usage|-res-usage|--?default-stream\S*|-Xcudafe=\S+"
        r"|--?forward-unknown-\S+|--?Wno-\S+|-m64|-l\S+|-L\S+|-f\S+|--?allow-unsupported-compiler"
        r"|--?split-compile\S*|--?Ofast-compile\S*|--?extra-device-vectorization|--?optimize\S*"
    )
    i = 0
    flags = words(flags)
    while i < len(flags):
        flag = flags[i]
        if flag.startswith(("-D", "-U", "-I", "-isystem", "--define-macro", "-include")):
            kept.append(flag)
            if flag in ("-D", "-U", "-I", "-isystem", "-include") and i + 1 < len(flags):
                i += 1
                kept.append(flags[i])
        elif flag in takes_value:
            i += 1
        elif not known.fullmatch(flag):
            raise BuildFailed(f"nvcc does not know the option {flag!r} in extra_cuda_cflags")
        i += 1
    return kept


def compile_object(
    source: Path,
    output: Path,
    *,
    name: str,
    support: Support,
    instrument: bool,
    flags: Sequence[str],
    include_paths: Sequence[str],
) -> str:
    """Compile one translation unit; return the compiler's output.

    Raises:
        BuildFailed: with the first error; its file and line are the source's own (#line).
    """
    command = [compiler(), *base_flags(), *(CHECKED if instrument else NATIVE)]
    if "-fopenmp" not in flags and not _OPENMP_MATTERS.search(source.read_text()):
        command += PREFIX_FLAGS
    command += [f"-DTORCH_EXTENSION_NAME={name}", "-w", "-fdiagnostics-color=never"]
    command += ["-I", str(support.prefix.parent), "-I", str(RUNTIME / "include")]
    command += [f"-I{p}" for p in include_paths]
    command += [*torch_include_flags(), *flags, "-c", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    log = " ".join(command) + "\n" + done.stdout + done.stderr
    if done.returncode != 0:
        raise BuildFailed(first_error(done.stderr, source), log)
    return log


def link(
    objects: Sequence[Path], output: Path, *, support: Support, flags: Sequence[str], python: bool
) -> str:
    """Link objects into a shared library; return the linker's output.

    Raises:
        BuildFailed: with the linker's first complaint.
    """
    lib = torch_library_folder()
    command = [compiler(), "-shared", "-o", str(output), *map(str, objects), str(support.runtime)]
    command += [f"-L{lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
    command += ["-ltorch_python"] if python else []
    kept = []
    for flag in words(flags):
        if _CUDA_LIBRARY.match(flag):
            continue  # a library of CUDA, which the run-time library replaces
        kept.append(flag)
    done = subprocess.run([*command, *kept], capture_output=True, text=True)
    log = " ".join([*command, *kept]) + "\n" + done.stdout + done.stderr
    if done.returncode != 0:
        found = _LINK_ERROR.search(done.stderr)
        raise BuildFailed(f"link: {found.group(1) if found else done.stderr.strip()[:300]}", log)
    return log


def first_error(text: str, source: Path) -> str:
    """Return the compiler's first error as ``file:line: message``."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        match = _ERROR.match(line)
        if not match:
            continue
        file, number = match.group("file"), match.group("line")
        # An error inside a header: name the line of the solution that led there.
        if str(RUNTIME) in file or "/torch/include/" in file or "/include/c++/" in file:
            own = _required_from(lines[max(0, i - 40) : i + 12], source)
            if own:
                file, number = own
        return f"{file}:{number}: {match.group('text')}"
    return f"{source.name}: the compiler failed: {text.strip()[:300]}"


def _required_from(lines: list[str], source: Path) -> tuple[str, str] | None:
    for line in lines:
        match = re.match(r"^(?:In file included from |\s+from )?([^\s:][^:]*):(\d+):", line)
        if match and not any(
            part in match.group(1) for part in (str(RUNTIME), "/torch/include/", "/include/c++/")
        ):
            return match.group(1), match.group(2)
    return None


def line_directive(line: int, file: str) -> str:
    """Return a #line directive for what follows on the next line."""
    quoted = file.replace("\\", "\\\\").replace('"', '\\"')
    return f'#line {line} "{quoted}"\n'
