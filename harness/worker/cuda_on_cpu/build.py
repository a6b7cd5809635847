"""Builds extensions for the CPU runner: the CPU form of torch's load_inline and load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from harness.domain import BuildFailed, Unsupported
from harness.worker import inputs
from harness.worker.cuda_on_cpu import toolchain
from harness.worker.cuda_on_cpu.headers import Headers
from harness.worker.cuda_on_cpu.locate import locate
from harness.worker.cuda_on_cpu.nvcc import describe, nvcc_check
from harness.worker.cuda_on_cpu.rewrite import has_definitions
from harness.worker.cuda_on_cpu.support import Support, obtain
from harness.worker.cuda_on_cpu.unsupported import find_unsupported

_CUDA_PREFIX = (
    '#include "prefix.h"\n#include <emu/torch_device.h>\n'
    "#include <cfloat>\n#include <queue>\n"  # torch's headers include them under nvcc
    "#include <cuda.h>\n#include <cuda_runtime.h>\n#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
    # at::RestrictPtrTraits exists for nvcc only.
    "namespace at { template <typename T> struct RestrictPtrTraits "
    "{ typedef T* __restrict__ PtrType; }; }\n"
    "namespace torch { using at::RestrictPtrTraits; }\n"
)
_HOST_PREFIX = '#include "prefix.h"\n#include <emu/torch_device.h>\n#include <torch/extension.h>\n'
_FULL_TORCH = re.compile(r"\btorch::(nn|optim|data|jit|serialize)\b")


def _refuse_unsupported(source: str, file: str, first_line: int = 1) -> None:
    """Raise Unsupported if the source, which begins at a line of a file, cannot run here."""
    found = find_unsupported(source)
    if found:
        what, line = found
        raise Unsupported(
            f"{file}:{first_line + line - 1}: {what} cannot run on the CPU. "
            "Next: evaluate it on a GPU with --device cuda"
        )


def _bindings(
    functions: Mapping[str, str] | Sequence[str] | str | None, error_handling: bool
) -> str:
    """Return the pybind module as load_inline generates it, one function a line."""
    if functions is None:
        return ""
    if isinstance(functions, str):
        functions = [functions]
    if not isinstance(functions, Mapping):
        functions = {f: f for f in functions}
    lines = [toolchain.line_directive(1, "functions=").rstrip("\n")]
    lines.append("PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {")
    for function, doc in functions.items():
        target = f"torch::wrap_pybind_function({function})" if error_handling else function
        text = doc.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines.append(f'm.def("{function}", {target}, "{text}");')
    return "\n".join([*lines, "}"]) + "\n"


def _unit_flags(sources: Sequence[str]) -> list[str]:
    return ["-DEMU_FULL_TORCH"] if any(_FULL_TORCH.search(s) for s in sources) else []


def compile_inline(
    *,
    name: str,
    cpp_sources: Sequence[str] | str,
    cuda_sources: Sequence[str] | str | None,
    functions: Mapping[str, str] | Sequence[str] | str | None,
    build_dir: Path,
    support_dir: Path,
    extra_cflags: Sequence[str] = (),
    extra_cuda_cflags: Sequence[str] = (),
    extra_ldflags: Sequence[str] = (),
    extra_include_paths: Sequence[str] = (),
    with_pytorch_error_handling: bool = True,
    solution_file: str | None = None,
    source_files: Sequence[str] | None = None,
    nvcc: Sequence[str] = (),
) -> Path:
    """Build the extension of a ``load_inline`` call; return the library, a Python module ``name``.

    With architectures in ``nvcc``, nvcc compiles the CUDA source, too. ``nvcc.json`` beside the
    library then holds what each kernel uses.

    ``cpp_sources`` with the bindings and ``cuda_sources`` are two translation units, as on the
    real tool chain. The first is compiled without checks.

    Raises:
        BuildFailed: the compiler's first error, at the solution's own line if that is found.
        Unsupported: a construct that the CPU runner does not run, with its line.
    """
    cpp = [cpp_sources] if isinstance(cpp_sources, str) else list(cpp_sources)
    cuda = [cuda_sources] if isinstance(cuda_sources, str) else list(cuda_sources or [])
    for source in cuda:
        start = locate(source, solution_file)
        known = Path(solution_file).name if start and solution_file else f"{name} cuda_sources"
        _refuse_unsupported(source, known, start or 1)
    if source_files is None and not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise BuildFailed(f"load_inline(name={name!r}): Python cannot import such a name")
    support = obtain(support_dir)
    build_dir.mkdir(parents=True, exist_ok=True)
    cuda_words = toolchain.cuda_flags(extra_cuda_cflags) if cuda else []
    host_words = toolchain.words(extra_cflags)
    host = _headers(build_dir, extra_include_paths, host_words, host=True)
    device = _headers(build_dir, extra_include_paths, cuda_words, host=False)
    cpp_text = "".join(_rewritten(cpp, solution_file, f"{name} cpp_sources", host))
    cuda_text = "".join(_rewritten(cuda, solution_file, f"{name} cuda_sources", device))
    bindings = _bindings(functions, with_pytorch_error_handling)
    units: list[tuple[Path, bool, list[str]]] = []
    if (cpp_text + bindings).strip():
        unit = build_dir / "main.cpp"
        unit.write_text(_HOST_PREFIX + cpp_text + bindings)
        units.append((unit, False, _flags_of_main(cpp, host_words)))
    if cuda:
        unit = build_dir / "cuda.cpp"
        unit.write_text(_CUDA_PREFIX + cuda_text)
        units.append((unit, True, cuda_words))
    full = _unit_flags([*cpp, *cuda])
    units = [(u, c, [*full, *f]) for u, c, f in units]
    includes = list(extra_include_paths)
    library = _build(name, units, build_dir, support, includes, extra_ldflags, [host, device])
    if nvcc and cuda:
        units_of_nvcc = [(cuda, solution_file, True)]
        paths = extra_include_paths
        _ask_nvcc(units_of_nvcc, nvcc, build_dir, flags=extra_cuda_cflags, include_paths=paths)
    return library


def _ask_nvcc(
    units: Sequence[tuple[Sequence[str], str | None, bool]],
    architectures: Sequence[str],
    build_dir: Path,
    *,
    flags: Sequence[str],
    include_paths: Sequence[str],
) -> None:
    """Compile the CUDA sources with nvcc, too.

    Each unit is: sources, their file, whether load_inline's headers come first.

    Raises:
        BuildFailed: its first error.
    """
    notes: list[str] = []
    for number, (sources, file, inline) in enumerate(units):
        verdict = nvcc_check(
            sources,
            architectures=architectures,
            build_dir=build_dir / f"nvcc_{number}",
            extra_cuda_cflags=[*_unit_flags(sources), *flags],
            extra_include_paths=include_paths,
            solution_file=file,
            inline=inline,
        )
        shutil.rmtree(build_dir / f"nvcc_{number}")
        if not verdict.compiled:
            raise BuildFailed(verdict.errors[0], verdict.log)
        notes += describe(verdict)
    (build_dir / "nvcc.json").write_text(json.dumps(notes))


def _headers(
    build_dir: Path, include_paths: Sequence[str], flags: Sequence[str], *, host: bool
) -> Headers:
    """Return the copies of headers for units with these flags; none is made yet."""
    paths = [*(f[2:] for f in flags if f.startswith("-I") and len(f) > 2), *include_paths]
    kind = "host" if host else "cuda"
    return Headers(build_dir / f"headers_{kind}", paths, host=host)


def _rewritten(
    sources: Sequence[str], solution_file: str | None, fallback: str, headers: Headers
) -> list[str]:
    """Rewrite each source, below a #line that points at its place in the solution's file."""
    out = []
    for i, source in enumerate(sources):
        line = locate(source, solution_file)
        name = fallback if len(sources) == 1 else f"{fallback}[{i}]"
        file = Path(solution_file).name if line and solution_file else name
        out.append(toolchain.line_directive(line or 1, file) + headers.rewritten(source) + "\n")
    return out


def _flags_of_main(sources: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return the C++ flags of load_inline's first unit.

    Declarations and bindings need only what changes the text: -march=native would make the
    precompiled header useless, and the optimiser has nothing to do.
    """
    if any(has_definitions(s) for s in sources):
        return list(flags)
    return ["-O1", *(w for w in flags if w.startswith(("-D", "-U", "-I")))]


def compile_files(
    *,
    name: str,
    sources: Sequence[str],
    build_dir: Path,
    support_dir: Path,
    extra_cflags: Sequence[str] = (),
    extra_cuda_cflags: Sequence[str] = (),
    extra_ldflags: Sequence[str] = (),
    extra_include_paths: Sequence[str] = (),
    nvcc: Sequence[str] = (),
) -> Path:
    """Build the extension of a ``load(sources=[...])`` call from .cpp and .cu files.

    The files bring their own bindings (PYBIND11_MODULE or TORCH_LIBRARY).

    Raises:
        BuildFailed: the compiler's first error, at the file's own line.
        Unsupported: a construct that the CPU runner does not run, with its line.
    """
    support = obtain(support_dir)
    build_dir.mkdir(parents=True, exist_ok=True)
    cuda_words = toolchain.cuda_flags(extra_cuda_cflags)
    host_words = toolchain.words(extra_cflags)
    host = _headers(build_dir, extra_include_paths, host_words, host=True)
    device = _headers(build_dir, extra_include_paths, cuda_words, host=False)
    units: list[tuple[Path, bool, list[str]]] = []
    for i, source in enumerate(sources):
        path = Path(source)
        if not path.is_file():
            raise BuildFailed(f"{source}: no such source file")
        text = path.read_text(encoding="utf-8", errors="replace")
        unit = build_dir / f"{i}_{path.stem}.cpp"
        directive = toolchain.line_directive(1, str(path))
        beside = path.resolve().parent
        full = [*_unit_flags([text]), "-iquote", str(beside)]
        if path.suffix in (".cu", ".cuh"):
            _refuse_unsupported(text, str(path))
            unit.write_text(_CUDA_PREFIX + directive + device.rewritten(text, beside))
            units.append((unit, True, [*full, *cuda_words]))
        else:
            # The file sees only what it includes, as on the real tool chain. The precompiled prefix
            # holds what <torch/extension.h> would include.
            head = '#include "prefix.h"\n#include <emu/torch_device.h>\n'
            unit.write_text(head + directive + host.rewritten(text, beside))
            units.append((unit, False, [*full, *host_words]))
    includes = list(extra_include_paths)
    library = _build(name, units, build_dir, support, includes, extra_ldflags, [host, device])
    kernels = [Path(s) for s in sources if Path(s).suffix == ".cu"]
    if nvcc and kernels:
        own_folders = list(dict.fromkeys(str(p.parent) for p in kernels))
        texts = [([p.read_text(errors="replace")], str(p), False) for p in kernels]
        folders = [*own_folders, *extra_include_paths]
        _ask_nvcc(texts, nvcc, build_dir, flags=extra_cuda_cflags, include_paths=folders)
    return library


def _build(
    name: str,
    units: Sequence[tuple[Path, bool, list[str]]],
    build_dir: Path,
    support: Support,
    include_paths: Sequence[str],
    ldflags: Sequence[str],
    headers: Sequence[Headers],
) -> Path:
    objects = [unit.with_suffix(".o") for unit, _, _ in units]
    logs: list[str] = []
    # Two units are compiled side by side, as with ninja.
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures: list[Future[str]] = [
            pool.submit(
                toolchain.compile_object,
                unit,
                output,
                name=name,
                support=support,
                instrument=instrument,
                flags=flags,
                include_paths=include_paths,
            )
            for (unit, instrument, flags), output in zip(units, objects, strict=True)
        ]
        failures = [f.exception() for f in futures]
    for failure in failures:
        if failure is not None:
            raise failure
    logs += [f.result() for f in futures]
    output = build_dir / f"{name}.so"
    logs.append(toolchain.link(objects, output, support=support, flags=ldflags, python=True))
    (build_dir / "build.log").write_text("\n".join(logs))
    originals = {str(copy): str(path) for h in headers for path, copy in h.copies.items()}
    read = {name for o in objects for name in inputs.in_rule(o.with_suffix(".d").read_text())}
    read = {name for name in read if not Path(name).is_relative_to(support.folder)}
    inputs.note(build_dir, {originals.get(name, name) for name in read})
    for path in objects:
        path.unlink()
        path.with_suffix(".d").unlink()
    for folder in build_dir.glob("headers_*"):
        shutil.rmtree(folder)
    return output
