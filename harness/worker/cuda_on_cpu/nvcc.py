"""Compiles the CUDA source with nvcc, without a GPU: ``--nvcc`` asks for this second check.

``nvcc -cubin`` compiles kernels for any architecture on any machine. PyTorch's CPU wheels lack a
generated header, and nvcc's CUDA headers may lack libraries. Stub headers take their place.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.domain import UsageError
from harness.machine.environment import find_nvcc
from harness.machine.packaged_nvcc import remedy
from harness.worker.cuda_on_cpu.locate import locate
from harness.worker.cuda_on_cpu.support import base_flags, torch_include_flags
from harness.worker.cuda_on_cpu.toolchain import line_directive

_BLAS = (
    "Create", "Destroy", "SetStream", "SetMathMode", "Sgemm", "Dgemm", "SgemmStridedBatched",
    "DgemmStridedBatched", "Sgemv", "Dgemv", "Sger", "Dger",
)  # fmt: skip
# Opaque handles that torch's headers name. Kernels never use them.
_STUBS = {
    "c10/cuda/impl/cuda_cmake_macros.h": "#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n",
    "cublas_v2.h": "#pragma once\ntypedef struct cublasContext* cublasHandle_t;\n"
    "enum cublasStatus_t { CUBLAS_STATUS_SUCCESS };\n"
    "enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C };\n"
    "enum cublasMath_t { CUBLAS_DEFAULT_MATH, CUBLAS_TF32_TENSOR_OP_MATH = 3 };\n"
    + "".join(f"template <class... A> cublasStatus_t cublas{name}(A...);\n" for name in _BLAS),
    "cublasLt.h": "#pragma once\ntypedef struct cublasLtContext* cublasLtHandle_t;\n",
    "cusparse.h": "#pragma once\ntypedef struct cusparseContext* cusparseHandle_t;\n"
    "typedef int cusparseStatus_t;\n",
    "cusolverDn.h": "#pragma once\ntypedef struct cusolverDnContext* cusolverDnHandle_t;\n"
    "typedef int cusolverStatus_t;\n",
    "cusolver_common.h": "#pragma once\ntypedef int cusolverStatus_t;\n",
    "nvtx3/nvtx3.hpp": "#pragma once\n",
    # Without torch's C++ neural networks nvcc takes half the time, and 2 GB of memory instead of 3.
    "torch/extension.h": "#pragma once\n#ifdef EMU_FULL_TORCH\n#include_next <torch/extension.h>\n"
    "#else\n#include <torch/types.h>\n#include <torch/csrc/Exceptions.h>\n"
    "#include <torch/csrc/utils/pybind.h>\n#include <torch/library.h>\n"
    "namespace torch { namespace py = pybind11; }\n#endif\n",
}
_TORCH_DEFINES = (
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
)
_ERROR = re.compile(
    r"^(?P<file>[^\s(]+)\((?P<line>\d+)\): (?:catastrophic )?error.*?: (?P<text>.*)$"
)
_GCC_ERROR = re.compile(r"^(?P<file>[^\s:]+):(?P<line>\d+):\d+: (?:fatal )?error: (?P<text>.*)$")
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelUse:
    """What one kernel uses on one architecture, as ptxas reports it.

    Attributes:
        kernel: demangled name.
        architecture: e.g. ``sm_90``.
        registers: per thread.
        shared_bytes: static shared memory per block.
        spill_bytes: stores and loads of spilled registers, per thread.
    """

    kernel: str
    architecture: str
    registers: int
    shared_bytes: int
    spill_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NvccVerdict:
    """The result of compiling a CUDA source with nvcc.

    Attributes:
        compiled: whether every architecture compiled.
        errors: the first error of each architecture, as ``file:line: message``.
        kernels: one per kernel and architecture that compiled.
        log: everything nvcc printed.
    """

    compiled: bool
    errors: tuple[str, ...]
    kernels: tuple[KernelUse, ...]
    log: str


def nvcc_check(
    cuda_sources: Sequence[str],
    *,
    architectures: Sequence[str],
    build_dir: Path,
    extra_cuda_cflags: Sequence[str] = (),
    extra_include_paths: Sequence[str] = (),
    solution_file: str | None = None,
    inline: bool = True,
) -> NvccVerdict:
    """Compile CUDA source with nvcc for each architecture; nothing runs, no GPU is needed.

    Args:
        cuda_sources: as given to ``load_inline``.
        architectures: e.g. ``["sm_75", "sm_90a"]``.
        build_dir: folder for the source and the stubs.
        extra_cuda_cflags: as given to ``load_inline``; architecture flags among them are dropped.
        extra_include_paths: as given to ``load_inline``.
        solution_file: to point errors at the solution's own lines.
        inline: whether the headers that ``load_inline`` puts in front are wanted.

    Raises:
        UsageError: nvcc is not installed here.
    """
    tool = find_nvcc()
    if tool is None:
        raise UsageError(f"--nvcc: nvcc was not found. Next: {remedy()}, or leave out --nvcc")
    stubs = build_dir / "stubs"
    toolkit = Path(tool).resolve().parents[1]
    for name, text in _STUBS.items():
        if (toolkit / "include" / name).exists():
            continue
        path = stubs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    source = build_dir / "cuda.cu"
    head = "#include <torch/types.h>\n#include <cuda.h>\n#include <cuda_runtime.h>\n"
    source.write_text(head * inline + "".join(_labelled(s, solution_file) for s in cuda_sources))
    flags = [f for f in extra_cuda_cflags if not re.search(r"arch|gencode|code=", f)]
    flags += [f"-I{p}" for p in extra_include_paths]
    errors: list[str] = []
    kernels: list[KernelUse] = []
    logs: list[str] = []

    def compiled(architecture: str) -> tuple[list[str], int, str]:
        host = [f for f in base_flags() if f.startswith(("-std", "-D"))]
        command = [tool, "-cubin", f"-arch={architecture}", "-Xptxas", "-v", *host]
        command += [*_TORCH_DEFINES, "--expt-relaxed-constexpr", "-DTORCH_EXTENSION_NAME=check"]
        command += ["-I", str(stubs), *torch_include_flags(), *flags]
        command += ["-o", str(build_dir / f"{architecture}.cubin"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        return command, done.returncode, done.stdout + done.stderr

    for architecture in architectures:  # one at a time: each takes 2 GB of memory
        command, code, text = compiled(architecture)
        logs.append(" ".join(command) + "\n" + text)
        if code != 0:
            errors.append(f"{_first_error(text)} (nvcc, {architecture})")
        else:
            kernels += parse_usage(text)
    return NvccVerdict(
        compiled=not errors, errors=tuple(errors), kernels=tuple(kernels), log="\n".join(logs)
    )


def describe(verdict: NvccVerdict) -> list[str]:
    """Return one sentence per kernel on what it uses on each architecture."""
    uses: dict[str, list[str]] = {}
    for use in verdict.kernels:
        spills = f"{use.spill_bytes} B spilled" if use.spill_bytes else "no spills"
        uses.setdefault(use.kernel, []).append(
            f"{use.architecture} {use.registers} registers, {use.shared_bytes} B shared, {spills}"
        )
    return [f"nvcc: {kernel}: {'; '.join(said)}" for kernel, said in uses.items()]


def _labelled(source: str, solution_file: str | None) -> str:
    line = locate(source, solution_file)
    file = Path(solution_file).name if line and solution_file else "cuda_sources"
    return line_directive(line or 1, file) + source + "\n"


def _first_error(text: str) -> str:
    for line in text.splitlines():
        match = _ERROR.match(line) or _GCC_ERROR.match(line)
        if match:
            return f"{match.group('file')}:{match.group('line')}: {match.group('text')}"
    return text.strip()[:300] or "nvcc failed without a message"


def parse_usage(text: str) -> list[KernelUse]:
    """Return what ``ptxas -v`` printed, one record per kernel."""
    found: list[KernelUse] = []
    name, architecture, spill = "", "", 0
    for line in text.splitlines():
        entry = _ENTRY.search(line)
        if entry:
            name, architecture, spill = entry.group(1), entry.group(2), 0
        frame = _FRAME.search(line)
        if frame:
            spill = int(frame.group(2)) + int(frame.group(3))
        used = _USED.search(line)
        if used and name:
            shared = _SHARED.search(line)
            found.append(
                KernelUse(
                    kernel=name,
                    architecture=architecture,
                    registers=int(used.group(1)),
                    shared_bytes=int(shared.group(1)) if shared else 0,
                    spill_bytes=spill,
                )
            )
            name = ""
    return _demangled(found)


def _demangled(uses: list[KernelUse]) -> list[KernelUse]:
    tool = shutil.which("c++filt")
    if tool is None or not uses:
        return uses
    names = "\n".join(u.kernel for u in uses)
    done = subprocess.run([tool], input=names, capture_output=True, text=True, check=True)
    demangled = zip(uses, done.stdout.splitlines(), strict=True)
    return [dataclasses.replace(use, kernel=name) for use, name in demangled]
