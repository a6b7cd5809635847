"""Builds the run-time library and the precompiled header, once per machine.

Each lies in a folder whose name is a hash of everything that it depends on. So a new torch, another
compiler or a changed source never uses an old build. A builder works in a folder of its own and
renames it when it is done. The next builder removes the folder of a builder that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.domain import HarnessError

RUNTIME = Path(__file__).parent / "runtime"
LIBRARY = "libcuda_on_cpu.so"


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Where the built pieces are.

    Attributes:
        folder: the finished folder.
        runtime: the run-time library.
        prefix: header to include first; its precompiled form lies beside it.
        seconds: time of the build; 0 if it existed already.
        size_bytes: disk use of the folder.
    """

    folder: Path
    runtime: Path
    prefix: Path
    seconds: float
    size_bytes: int


@functools.cache
def compiler() -> str:
    """Return the host compiler: $CXX, or g++."""
    name = os.environ.get("CXX") or "g++"
    found = shutil.which(name)
    if found is None:
        raise HarnessError(
            f"no C++ compiler: {name!r} was not found. Next: install g++ 11 or newer"
        )
    return found


@functools.cache
def _compiler_version() -> str:
    return subprocess.run(
        [compiler(), "--version"], capture_output=True, text=True, check=True
    ).stdout.split("\n", 1)[0]


def torch_include_flags() -> list[str]:
    """Return -isystem flags for torch and Python."""
    root = Path(torch.__file__).parent / "include"
    folders = [root, root / "torch" / "csrc" / "api" / "include"]
    folders.append(Path(sysconfig.get_paths()["include"]))
    return [flag for f in folders for flag in ("-isystem", str(f))]


def torch_library_folder() -> Path:
    """Return the folder with libtorch and libc10."""
    return Path(torch.__file__).parent / "lib"


def base_flags() -> list[str]:
    """Return the flags that the precompiled header and its users must share."""
    version = tuple(int(p) for p in torch.__version__.split("+")[0].split(".")[:2])
    # torch 2.13's headers need C++20; the emulated headers themselves use __VA_OPT__.
    flags = ["-std=c++20", "-g1", "-fPIC", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}")
    if version < (2, 9):
        flags += _pybind_abi_flags()
    return flags


# The header is compiled with OpenMP. Else a solution that is compiled with OpenMP could not use it.
# toolchain.py says which other sources use it.
PREFIX_FLAGS = ["-fopenmp"]


def _pybind_abi_flags() -> list[str]:
    flags = []
    for name in ("COMPILER_TYPE", "STDLIB", "BUILD_ABI"):
        value = getattr(torch._C, f"_PYBIND11_{name}", None)
        if value is not None:
            flags.append(f'-DPYBIND11_{name}="{value}"')
    return flags


def _hash_of(paths: list[Path], extra: str) -> str:
    digest = hashlib.sha256(extra.encode())
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def library_key() -> str:
    """Return the content key of the run-time library."""
    sources = sorted(RUNTIME.glob("*.cpp")) + sorted(RUNTIME.glob("*.h"))
    return _hash_of(sources, f"{torch.__version__} {_compiler_version()} {base_flags()}")


def prefix_key() -> str:
    """Return the content key of the precompiled header, which includes no device header."""
    source = [RUNTIME / "include" / "emu" / "prefix.h"]
    location = f"{Path(torch.__file__).parent} {sysconfig.get_paths()['include']}"
    return _hash_of(
        source,
        f"{torch.__version__} {_compiler_version()} {base_flags() + PREFIX_FLAGS} {location}",
    )


@contextlib.contextmanager
def _one_builder(folder: Path) -> Iterator[None]:
    """Hold a lock: a second builder waits, and reuses the build. The lock ends with its process."""
    with (folder / ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().split("\n")[:15])
        raise HarnessError(f"building {what} of the CPU runner failed:\n{tail}")


def _build_library(folder: Path) -> None:
    sources = [str(p) for p in sorted(RUNTIME.glob("*.cpp"))]
    lib = torch_library_folder()
    command = [compiler(), *base_flags(), "-O2", "-shared", *torch_include_flags()]
    command += ["-o", str(folder / LIBRARY), *sources, f"-L{lib}", "-lc10"]
    _run([*command, f"-Wl,-soname,{LIBRARY}"], "the run-time library")


def _build_prefix(folder: Path) -> None:
    header = folder / "prefix.h"
    shutil.copy(RUNTIME / "include" / "emu" / "prefix.h", header)
    command = [compiler(), *base_flags(), *PREFIX_FLAGS, "-O2", *torch_include_flags()]
    _run([*command, "-x", "c++-header", str(header), "-o", f"{header}.gch"], "the header")


def _obtain(support: Path, name: str, build: Callable[[Path], None]) -> tuple[Path, float]:
    finished = support / name
    if (finished / "done").exists():
        return finished, 0.0
    support.mkdir(parents=True, exist_ok=True)
    with _one_builder(support):
        if (finished / "done").exists():
            return finished, 0.0
        _remove_stale(support)
        _keep_newest(support, name.split("-")[0])
        started = time.perf_counter()
        staging = Path(tempfile.mkdtemp(prefix="building-", dir=support))
        try:
            build(staging)
            seconds = time.perf_counter() - started
            (staging / "done").write_text(f"{seconds:.1f}\n")
            if finished.exists():  # it lacks its mark, so no process uses it
                shutil.rmtree(finished)
            staging.chmod(0o755)
            staging.rename(finished)
        finally:
            if staging.exists():
                shutil.rmtree(staging)
    return finished, seconds


def _remove_stale(support: Path) -> None:
    """Remove the folders of killed builders. This process holds the lock, so none is in use."""
    for path in support.glob("building-*"):
        shutil.rmtree(path)


def _keep_newest(support: Path, kind: str, keep: int = 2) -> None:
    """Remove builds of older versions of torch, compiler or source: a header takes 550 MB."""
    found = [p for p in support.glob(f"{kind}-*") if (p / "done").exists()]
    found.sort(key=lambda p: (p / "done").stat().st_mtime, reverse=True)
    for path in found[keep:]:
        shutil.rmtree(path)


def obtain(support_dir: Path) -> Support:
    """Build the missing parts in ``support_dir``; return their paths.

    Raises:
        HarnessError: the compiler is missing or cannot build our own sources.
    """
    library, first = _obtain(support_dir, f"runtime-{library_key()}", _build_library)
    prefix, second = _obtain(support_dir, f"header-{prefix_key()}", _build_prefix)
    size = sum(p.stat().st_size for d in (library, prefix) for p in d.iterdir())
    return Support(
        folder=support_dir,
        runtime=library / LIBRARY,
        prefix=prefix / "prefix.h",
        seconds=first + second,
        size_bytes=size,
    )
