"""Drives the host compiler: from an extension's sources to a Python module."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.domain import BuildFailed, Unsupported
from harness.worker.cuda_on_cpu.nvcc_options import read_flags
from harness.worker.cuda_on_cpu.support import (
    PREFIX_FLAGS,
    RUNTIME,
    Support,
    base_flags,
    compiler,
    torch_include_flags,
    torch_library_folder,
)
from harness.worker.cuda_on_cpu.unsupported import CUDA_HEADER
from harness.worker.inputs import of_the_tool_chain

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
_FROM = re.compile(r"^(?:In file included from |\s+from )?([^\s:][^:]*):(\d+)[:,]")
# Headers of torch that need CUDA, and those of a CUDA toolkit.
_OF_CUDA = re.compile(
    r"/torch/include/.*(?:cuda|cudnn|cublas)|/cuda[^/]*/(?:.*/)?include/", re.IGNORECASE
)
_LINK_ERROR = re.compile(r"(undefined reference to .*|multiple definition of .*)")


# nvcc's options that a host compiler has too.
_KEPT = {
    "define-macro": "-D",
    "undefine-macro": "-U",
    "include-path": "-I",
    "system-include": "-isystem",
    "pre-include": "-include",
}


def words(flags: Sequence[str]) -> list[str]:
    """Return flags as the shell splits them that runs a build file's line; "" is nothing.

    Raises:
        BuildFailed: a quote is not closed.
    """
    try:
        return shlex.split(" ".join(flags))
    except ValueError as error:
        raise BuildFailed(f"compiler flags {flags!r}: {error}") from error


def cuda_flags(flags: Sequence[str]) -> list[str]:
    """Return those of nvcc's flags that a host compiler can use.

    Raises:
        BuildFailed: nvcc refuses one of them.
    """
    kept = list(_TORCH_CUDA_DEFINES)
    for flag in read_flags(words(flags)):
        if flag.name == "compiler-options":
            kept += [v for v in flag.value.split(",") if re.match(r"-[DUI].|-fopenmp$", v)]
        elif flag.name in _KEPT:
            spelling = _KEPT[flag.name]
            for value in flag.value.split(","):
                kept += [spelling + value] if len(spelling) == 2 else [spelling, value]
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
    command += [*torch_include_flags(), *flags, "-MD", "-c", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    log = " ".join(command) + "\n" + done.stdout + done.stderr
    if done.returncode != 0:
        missing = missing_cuda_header(done.stderr, source)
        if missing:
            raise Unsupported(
                f"{missing}, which the CPU runner lacks; "
                "next: evaluate it on a GPU with --device cuda"
            )
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
    found = _first_error(text)
    if found is None:
        return f"{source.name}: the compiler failed: {text.strip()[:300]}"
    file, number, message, around = found
    # An error inside our headers: what led there is the solution's line.
    if not _is_own(file):
        file, number = _required_from(around) or (file, number)
    return f"{file}:{number}: {message}"


def missing_cuda_header(text: str, source: Path) -> str:
    """Return which header of CUDA the first error is about, after ``file:line: ``, or "".

    A header that is not found, or one of torch's or the toolkit's for CUDA that does not compile
    without the rest of CUDA.
    """
    found = _first_error(text)
    if found is None:
        return ""
    file, number, message, around = found
    absent = re.match(r"(\S+): No such file or directory", message)
    if absent and _is_own(file):
        name = absent.group(1)
        return f"{file}:{number}: <{name}> is a part of CUDA" * bool(CUDA_HEADER.fullmatch(name))
    # What the solution itself includes comes last before its own line.
    chain = [file, *(m.group(1) for line in around if (m := _FROM.match(line)))]
    theirs = list(itertools.takewhile(lambda f: not _is_own(f), chain))
    for header in reversed(theirs):
        name = re.sub(r".*/include/", "", header)
        if _OF_CUDA.search(header):
            file, number = _required_from(around) or (source.name, "1")
            return f"{file}:{number}: <{name}> needs a part of CUDA"
    return ""


def _first_error(text: str) -> tuple[str, str, str, list[str]] | None:
    """Return file, line and message of the first error, and the lines around it."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        match = _ERROR.match(line)
        if match:
            around = lines[max(0, i - 40) : i + 12]
            return match.group("file"), match.group("line"), match.group("text"), around
    return None


def _is_own(file: str) -> bool:
    parts = (str(RUNTIME), "/torch/include/", "/include/c++/")
    return not any(part in file for part in parts) and not of_the_tool_chain(Path(file))


def _required_from(lines: list[str]) -> tuple[str, str] | None:
    for line in lines:
        match = _FROM.match(line)
        if match and _is_own(match.group(1)):
            return match.group(1), match.group(2)
    return None


def line_directive(line: int, file: str) -> str:
    """Return a #line directive for what follows on the next line."""
    quoted = file.replace("\\", "\\\\").replace('"', '\\"')
    return f'#line {line} "{quoted}"\n'
