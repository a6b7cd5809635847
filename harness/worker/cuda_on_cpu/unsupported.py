"""Finds CUDA that the CPU runner cannot run, with its line, before anything is compiled."""

from __future__ import annotations

import re

from harness.worker.cuda_on_cpu.tokens import Token, next_solid, tokenize

_INCLUDES = (
    (r"mma\.h", "tensor-core instructions (mma.h)"),
    (r"cublas(?!_v2)\w*\.h", "cuBLAS"),
    (r"ATen/cuda/CUDABlas\.h", "cuBLAS (ATen/cuda/CUDABlas.h)"),
    (r"cudnn\w*\.h|ATen/cudnn/.*", "cuDNN"),
    (r"cusparse\w*\.h|cusolver\w*\.h|cufft\w*\.h|curand\w*\.h", "a CUDA library"),
    (r"cub/.*", "CUB"),
    (r"thrust/.*", "Thrust"),
    (r"cuda/.*", "libcu++"),
    (r"cutlass/.*|cute/.*", "CUTLASS"),
    (r"cuda_fp8\.h|cuda_fp4\.h|cuda_fp6\.h", "8-bit and smaller floats"),
    (r"cudaTypedefs\.h|cudaGL\w*\.h|nvrtc\.h", "the CUDA driver API"),
)

# The CUDA toolkit's headers: of these the CPU runner has what most solutions use. One that it lacks
# is found by the compiler, which knows whether the include counts.
CUDA_HEADER = re.compile(
    r"(?:cuda_(?:awbarrier|pipeline|egl|gl|vdpau|device|occupancy|profiler|runtime)\w*"
    r"|cuda(?:_stdint|_bf16|_fp16|_fp8|_fp6|_fp4|Typedefs|Profiler|rt_platform|EGL|GL|VDPAU)?"
    r"|cuda(?:EGL|GL|VDPAU|Profiler)Typedefs|cuComplex|cupti|cooperative_groups|mma"
    r"|(?:cupti|nvperf|generated|texture|surface|host|vector|device|driver|math)_\w+|sm_\d\d_\w+"
    r"|channel_descriptor|common_functions|builtin_types|fatbinary_section|library_types|nv_decode"
    r"|nvvm|nvml|nccl|nvToolsExt\w*)\.(?:h|hpp)"
    r"|(?:Openacc|Openmp|cccl|cooperative_groups|crt|nv|nvtx3|cuda|cub|thrust)/.+"
)

# The functions of our cublas_v2.h.
_BLAS = (
    "Create|Destroy|SetStream|SetMathMode|GetStatusString|(?:Handle|Status|Operation|Math)_t|"
    "[SD](?:gemm|gemmStridedBatched|gemv|ger)"
)
_NAMES = (
    (r"asm|__asm__|__asm", "inline PTX (asm)"),
    (r"wmma|nvcuda", "tensor-core instructions (wmma)"),
    (rf"cublas(?!(?:{_BLAS})$)[A-Z]\w*", "cuBLAS"),
    (r"cudnn[A-Z]\w*|getCudnnHandle", "cuDNN"),
    (r"curand\w*", "cuRAND"),
    (r"cudaGraph\w*|cudaStreamBeginCapture", "CUDA graphs"),
    (r"cudaTextureObject_t|tex[123]D\w*|cudaSurfaceObject_t", "textures"),
    (r"cudaLaunchKernelEx\w*|cudaLaunchAttribute\w*", "extended launches (clusters)"),
    (r"cluster_group|this_cluster", "thread block clusters"),
    (r"CUtensorMap|cuTensorMap\w*", "tensor maps (TMA)"),
    (r"cub", "CUB"),
    (r"thrust", "Thrust"),
    (r"cutlass|cute", "CUTLASS"),
    (r"__nv_fp8\w*", "8-bit floats"),
)
_INCLUDE_PATTERNS = tuple((re.compile(p), what) for p, what in _INCLUDES)
_NAME_PATTERNS = tuple((re.compile(p), what) for p, what in _NAMES)
_SCOPED = {"CUB", "Thrust", "CUTLASS"}


def find_unsupported(source: str) -> tuple[str, int] | None:
    """Return the first construct that cannot run here and its 1-based line, or None.

    Comments and strings do not count. Neither does code under ``#if 0``, or under a condition on
    ``__CUDA_ARCH__`` that is false for the emulated architecture (8.0).
    """
    tokens = tokenize(source)
    dead = dead_lines(source)
    for i, token in enumerate(tokens):
        if token.line in dead or token.blank:
            continue
        if token.text == "#" and token.kind == "punctuation":
            what = _include(tokens, i)
            if what:
                return what, token.line
        if token.kind == "name":
            for pattern, what in _NAME_PATTERNS:
                if pattern.fullmatch(token.text):
                    if what in _SCOPED and not _is_scope(tokens, i):
                        continue
                    return what, token.line
    return None


def _is_scope(tokens: list[Token], index: int) -> bool:
    after = next_solid(tokens, index + 1)
    return after < len(tokens) and tokens[after].text == "::"


def _include(tokens: list[Token], index: int) -> str | None:
    word = next_solid(tokens, index + 1)
    if word >= len(tokens) or tokens[word].text != "include":
        return None
    line = "".join(t.text for t in tokens[word + 1 : word + 24]).split("\n", 1)[0]
    match = re.match(r'\s*[<"]([^>"]+)[>"]', line)
    if not match:
        return None
    for pattern, what in _INCLUDE_PATTERNS:
        if pattern.fullmatch(match.group(1)):
            return what
    return None


def dead_lines(source: str) -> set[int]:
    """Return the lines that the preprocessor removes for certain."""
    dead: set[int] = set()
    stack: list[bool] = []
    for number, line in enumerate(source.split("\n"), start=1):
        match = re.match(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)", line)
        if match:
            word, condition = match.group(1), match.group(2)
            if word in ("if", "ifdef", "ifndef"):
                stack.append(word == "if" and _is_false(condition))
            elif word == "elif" and stack:
                stack[-1] = _is_false(condition)
            elif word == "else" and stack:
                stack[-1] = False
            elif word == "endif" and stack:
                stack.pop()
        if any(stack):
            dead.add(number)
    return dead


def _is_false(condition: str) -> bool:
    if condition.strip() == "0":
        return True
    match = re.search(r"__CUDA_ARCH__\s*(>=|>)\s*(\d+)", condition)
    if not match or "||" in condition:
        return False
    wanted = int(match.group(2)) + (1 if match.group(1) == ">" else 0)
    return wanted > 800
