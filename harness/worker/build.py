"""Builds and loads a solution's extensions, through ``load_inline`` and ``load``.

The builder replaces both before the solution is imported. The key of an extension is a hash of
everything that goes into it. The builder looks it up in the cache, which is read-only here. If it
is missing, the builder builds it in this worker's build folder. The judge moves it into the cache
when the build worker is done. So two solutions with the same extension name never share one, and a
build that is killed leaves only a folder that is thrown away.

Within one solution, the second extension of a name becomes ``name_v1``, as with torch: pybind11
keeps one module per name and process, and would return the first one again.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from harness.domain import BuildFailed, Unsupported
from harness.machine.toolchain import toolchain
from harness.worker import fast_headers, inputs

Build = Callable[[Path, str, Sequence[str]], None]
"""Builds into a folder, under a name, with folders in front of torch's include folders."""

_KERNEL = re.compile(r"__global__|<<<")
_HEADERS = {".h", ".hpp", ".hxx", ".cuh", ".inl"}


class ExtensionBuildError(BuildFailed, RuntimeError):
    """A BuildFailed that is a RuntimeError, too, as cpp_extension raises."""


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, (str, os.PathLike)):
        return [os.fspath(value)]
    return [os.fspath(v) for v in value]


def _flags(cflags: Any, cuda_cflags: Any, ldflags: Any, include_paths: Any) -> dict[str, Any]:
    return {
        "extra_cflags": _strings(cflags),
        "extra_cuda_cflags": _strings(cuda_cflags),
        "extra_ldflags": _strings(ldflags),
        "extra_include_paths": _strings(include_paths),
    }


def _with_folders(flags: dict[str, Any], in_front: Sequence[str]) -> dict[str, Any]:
    return {**flags, "extra_include_paths": [*in_front, *flags["extra_include_paths"]]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extension:
    """An extension that a solution asks for.

    Attributes:
        name: as the solution gives it.
        content: everything that its key depends on.
        build: compiles it.
        as_module: whether it is a Python module, and not a library of operators.
        units: its sources.
        flags: the solution's compiler flags and include paths.
    """

    name: str
    content: dict[str, Any]
    build: Build
    as_module: bool
    units: tuple[fast_headers.Source, ...]
    flags: dict[str, Any]


class Builder:
    """Replaces the JIT entry points of torch.utils.cpp_extension in one worker.

    Args:
        device: ``cuda``, ``emulated`` or ``cpu``.
        cache: folder with finished extensions by key; only read.
        build_folder: folder of this worker for the builds of missing ones.
        support: folder of the CPU runner's run-time library and headers.
        solution: the solution's file, so that compiler errors name its lines.
        announce: called with (event, extension name) around each compilation.
        nvcc: off the GPU, nvcc compiles for these architectures, too.
        fast_headers: first try headers that hold only what the source names; ``cuda`` only.
        failed: message and log of builds that failed in the build worker, by key. A solution that
            hides a failed build tries it again in each process or call, for a minute each time.
    """

    def __init__(
        self,
        *,
        device: str,
        cache: Path,
        build_folder: Path,
        support: Path,
        solution: Path,
        announce: Callable[[str, str], None],
        nvcc: Sequence[str] = (),
        fast_headers: bool = False,
        failed: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self._device = device
        self._cache = cache
        self._build_folder = build_folder
        self._support = support
        self._solution = solution
        self._announce = announce
        self._nvcc = tuple(nvcc)
        self._fast_headers = fast_headers and device == "cuda"
        self.nvcc_notes: list[str] = []
        self.keys: list[str] = []
        self.files: set[str] = set()
        self.failures: list[str] = []
        self.failed = dict(failed or {})
        self.unsupported: list[str] = []
        self.ships_cuda = False
        self._names: dict[str, str] = {}

    def install(self) -> None:
        """Replace load_inline and load in torch.utils.cpp_extension for this process."""
        from torch.utils import cpp_extension

        self._torch_load_inline = cpp_extension.load_inline
        self._torch_load = cpp_extension.load
        cpp_extension.load_inline = self.load_inline
        cpp_extension.load = self.load

    def load_inline(  # the signature of torch.utils.cpp_extension.load_inline
        self,
        name: str,
        cpp_sources: Any,
        cuda_sources: Any = None,
        sycl_sources: Any = None,
        functions: Any = None,
        extra_cflags: Any = None,
        extra_cuda_cflags: Any = None,
        extra_sycl_cflags: Any = None,
        extra_ldflags: Any = None,
        extra_include_paths: Any = None,
        build_directory: Any = None,
        verbose: bool = False,
        with_cuda: bool | None = None,
        with_sycl: bool | None = None,
        is_python_module: bool = True,
        with_pytorch_error_handling: bool = True,
        keep_intermediates: bool = True,
        use_pch: bool = False,
        no_implicit_headers: bool = False,
    ) -> Any:
        """Build inline sources for this worker's device; see cpp_extension.load_inline."""
        if sycl_sources or with_sycl:
            raise Unsupported(f"extension {name!r} has SYCL sources")
        flags = _flags(extra_cflags, extra_cuda_cflags, extra_ldflags, extra_include_paths)
        request = {
            "cpp_sources": _strings(cpp_sources),
            "cuda_sources": _strings(cuda_sources),
            "functions": functions,
            "with_pytorch_error_handling": with_pytorch_error_handling,
            **flags,
        }
        headers = self._headers_in(flags["extra_include_paths"])
        self._look_for_kernels(request["cuda_sources"])

        def build(folder: Path, name: str, in_front: Sequence[str]) -> None:
            if self._device != "cuda":
                from harness.worker import cuda_on_cpu

                cuda_on_cpu.compile_inline(
                    name=name, solution_file=str(self._solution), **request, **self._to(folder)
                )
                return
            given = {**request, **_with_folders(flags, in_front)}
            for sources in ("cpp_sources", "cuda_sources"):  # copies: torch adds to both lists
                given[sources] = list(request[sources])
            if no_implicit_headers:
                given["no_implicit_headers"] = True
            self._torch_load_inline(  # type: ignore[no-untyped-call]
                name,
                build_directory=str(folder),
                with_cuda=with_cuda,
                is_python_module=is_python_module,
                **given,
            )

        bindings = "PYBIND11_MODULE wrap_pybind_function" if functions is not None else ""
        units = (
            fast_headers.Source(text="\n".join([*request["cpp_sources"], bindings]), cuda=False),
            fast_headers.Source(text="\n".join(request["cuda_sources"]), cuda=True),
        )
        return self._obtain(
            _Extension(
                name=name,
                content={"inline": request, "headers": headers},
                build=build,
                as_module=is_python_module,
                units=units,
                flags=flags,
            )
        )

    def load(  # the signature of torch.utils.cpp_extension.load
        self,
        name: str,
        sources: Any,
        extra_cflags: Any = None,
        extra_cuda_cflags: Any = None,
        extra_sycl_cflags: Any = None,
        extra_ldflags: Any = None,
        extra_include_paths: Any = None,
        build_directory: Any = None,
        verbose: bool = False,
        with_cuda: bool | None = None,
        with_sycl: bool | None = None,
        is_python_module: bool = True,
        is_standalone: bool = False,
        keep_intermediates: bool = True,
    ) -> Any:
        """Build source files for this worker's device; see cpp_extension.load."""
        files = [str(self._resolve(s)) for s in _strings(sources)]
        flags = _flags(extra_cflags, extra_cuda_cflags, extra_ldflags, extra_include_paths)
        beside = [str(Path(f).parent) for f in files]
        headers = self._headers_in([*flags["extra_include_paths"], *beside])
        contents = self._contents(files)
        self._look_for_kernels(Path(f).read_text(errors="replace") for f in [*files, *headers])

        def build(folder: Path, name: str, in_front: Sequence[str]) -> None:
            if self._device != "cuda":
                from harness.worker import cuda_on_cpu

                cuda_on_cpu.compile_files(name=name, sources=files, **flags, **self._to(folder))
                return
            self._torch_load(
                name,
                files,
                build_directory=str(folder),
                with_cuda=with_cuda,
                is_python_module=is_python_module,
                **_with_folders(flags, in_front),
            )

        units = tuple(
            fast_headers.Source(text=Path(f).read_text(errors="replace"), cuda=f.endswith(".cu"))
            for f in files
        )
        return self._obtain(
            _Extension(
                name=name,
                content={"files": contents, "headers": headers, "flags": flags},
                build=build,
                as_module=is_python_module,
                units=units,
                flags={**flags, "extra_include_paths": [*flags["extra_include_paths"], *beside]},
            )
        )

    def _to(self, folder: Path) -> dict[str, Any]:
        """Return what the CPU runner needs to build into a folder."""
        return {"build_dir": folder, "support_dir": self._support, "nvcc": self._nvcc}

    def _look_for_kernels(self, sources: Iterable[str]) -> None:
        """Note whether sources define or launch a kernel, rather than call libraries only."""
        self.ships_cuda = self.ships_cuda or any(_KERNEL.search(s) for s in sources)

    def _resolve(self, source: str) -> Path:
        path = Path(source)
        if not path.is_absolute() and not path.exists():
            path = self._solution.parent / path
        if not path.is_file():
            raise self._failed(
                f"{self._solution}: the source file {source!r} does not exist. "
                "Next: name an existing file in load(sources=...)",
                "",
            )
        return path.resolve()

    def _contents(self, files: Sequence[str]) -> dict[str, str]:
        """Return the hashes of the sources; note these files."""
        self.files |= set(files)
        return {f: hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files}

    def _headers_in(self, folders: Iterable[str]) -> list[str]:
        """Return the headers in folders: the compiler may read a new one in place of another."""
        found = (p for f in dict.fromkeys(folders) if Path(f).is_dir() for p in Path(f).iterdir())
        return sorted(str(p) for p in found if p.suffix in _HEADERS)

    def _obtain(self, extension: _Extension) -> Any:
        """Return the imported extension, from the cache or built now."""
        content = {**extension.content, "nvcc": self._nvcc} if self._nvcc else extension.content
        name = self._versioned(extension.name, content)
        keys = [content_key(name, content, self._device)]
        if self._fast_headers:
            fast = {**content, "fast_headers": fast_headers.version()}
            keys.insert(0, content_key(name, fast, self._device))
        finished = next((f for key in keys if (f := self._finished(key)) is not None), None)
        if finished is None and keys[-1] in self.failed:
            raise self._failed(*self.failed[keys[-1]])
        if finished is None:
            finished = self._build(name, keys, extension)
        self.keys.append(finished.name)
        self.files |= inputs.noted(finished).keys()
        library = next((p for p in finished.glob("*.so")), None)
        if library is None:
            raise self._failed(f"the build of extension {name!r} left no library", "")
        notes = finished / "nvcc.json"
        if notes.is_file():
            self.nvcc_notes += [str(n) for n in json.loads(notes.read_text())]
        if not extension.as_module:
            torch.ops.load_library(str(library))
            return str(library)
        return self._import(library.stem, library)

    def _finished(self, key: str) -> Path | None:
        places = (self._cache, self._build_folder)
        return next((f for p in places if (f := inputs.finished(p, key)) is not None), None)

    def _versioned(self, name: str, content: dict[str, Any]) -> str:
        """Return the name under which an extension is built: two extensions never share a name.

        The number follows from the order in which this process asks for extensions. The name is
        part of the key. So a process that asks in another order builds its own.
        """
        digest = content_key(name, content, self._device)
        number, own = 0, name
        while self._names.setdefault(own, digest) != digest:
            number += 1
            own = f"{name}_v{number}"
        return own

    def _build(self, name: str, keys: Sequence[str], extension: _Extension) -> Path:
        """Build under the first of the keys that works, and return the folder.

        Args:
            name: under which it is built.
            keys: the key of the build with fast headers, if it is tried, then the key without.
            extension: what to build.
        """
        self._announce("compiling", name)
        *fast, own = [self._build_folder / key for key in keys]
        try:
            why = "not asked for"
            for folder in fast:
                why = self._build_fast(name, folder, extension)
                if not why:
                    return inputs.finish(folder)
            own.mkdir(parents=True, exist_ok=True)
            extension.build(own, name, [])
            if self._device == "cuda":
                (own / "headers").write_text(f"torch\n{why}\n")
                inputs.note(own, inputs.known_to_ninja(own))
        except Unsupported as error:
            self.unsupported.append(str(error))
            raise
        except BuildFailed as error:
            self.failed[own.name] = str(error), error.log
            raise self._failed(str(error), error.log) from error
        except (RuntimeError, OSError, subprocess.SubprocessError, ImportError) as error:
            log = str(error)
            self.failed[own.name] = self._first_error(log, own), log
            raise self._failed(*self.failed[own.name]) from error
        finally:
            self._announce("compiled", name)
        return inputs.finish(own)

    def _build_fast(self, name: str, folder: Path, extension: _Extension) -> str:
        """Build with headers that hold only what the source names; return why that failed.

        After any failure the build with torch's own headers follows. Its message is the one that
        the user sees.
        """
        from torch.utils import cpp_extension

        headers, flags = folder / "fast_headers", extension.flags
        try:
            fast_headers.write(
                headers,
                extension.units,
                torch_include=Path(torch.__file__).parent / "include",
                include_paths=[Path(p) for p in flags["extra_include_paths"]],
                flags=[*flags["extra_cflags"], *flags["extra_cuda_cflags"]],
            )
            extension.build(folder, name, [str(headers)])
            inputs.note(folder, inputs.known_to_ninja(folder))
        except (
            fast_headers.NotFast,
            RuntimeError,
            OSError,
            ValueError,
            ImportError,
            subprocess.SubprocessError,
        ) as error:
            shutil.rmtree(folder, ignore_errors=True)
            # Else torch takes the next build of this name for a second version of it.
            cpp_extension.JIT_EXTENSION_VERSIONER.entries.pop(name, None)
            return str(error)
        (folder / "headers").write_text("fast\n")
        return ""

    def _import(self, name: str, library: Path) -> ModuleType:
        loader = importlib.machinery.ExtensionFileLoader(name, str(library))
        spec = importlib.util.spec_from_file_location(name, str(library), loader=loader)
        assert spec is not None
        try:
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
        except ImportError as error:
            raise self._failed(
                f"extension {name!r} cannot be loaded: {error}", str(error)
            ) from error
        return module

    def _failed(self, message: str, log: str) -> ExtensionBuildError:
        self.failures.append(message)
        print(log, file=sys.stderr)
        return ExtensionBuildError(message, log)

    def _first_error(self, log: str, folder: Path) -> str:
        """Return the tool chain's first error, at the solution's own line if that is found."""
        found = re.search(
            r"^(\S+?)[:(](\d+)\)?(?::\d+)?: (?:fatal )?error:? .*$", log, re.MULTILINE
        )
        if found is None:
            linker = re.search(
                r"^.*(?:undefined reference|undefined symbol|error:|Error).*$", log, re.MULTILINE
            )
            return (linker.group(0) if linker else log.strip().splitlines()[-1])[:400]
        message = found.group(0)
        source = Path(found.group(1))
        source = source if source.is_absolute() else folder / source
        if source.parent == folder and source.is_file():
            lines = source.read_text(errors="replace").splitlines()
            number = int(found.group(2))
            text = lines[number - 1].strip() if number <= len(lines) else ""
            own = self._solution.read_text(errors="replace").splitlines()
            hits = [i + 1 for i, line in enumerate(own) if text and line.strip() == text]
            if hits:
                what = message.split("error", 1)[1].lstrip(": ")
                return f"{self._solution}:{hits[0]}: error: {what}"
        return message


def content_key(name: str, content: dict[str, Any], device: str) -> str:
    """Return a hash of everything that the built library depends on.

    These are sources, flags, bindings and the tool chain.
    """
    everything = {**toolchain(device), "name": name, "content": content}
    text = json.dumps(everything, sort_keys=True, default=str)
    return f"{name[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
