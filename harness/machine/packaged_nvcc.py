"""Installs nvcc from PyPI on a machine with a GPU's driver and without a CUDA toolkit.

``python -m harness.machine.packaged_nvcc`` installs it into this environment if it is needed, and
with ``--anyway`` in any case. ``make`` does that when it fills ``.venv``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.machine.environment import driver_version, find_nvcc, packaged_toolkit, torch_build

_USUAL_CUDA = "13.0"
"""The version for ``--nvcc`` with a torch without CUDA."""
_FIRST_MAJOR = 13
"""The packages of older versions lack nvcc itself."""


def requirement() -> str:
    """Return pip's requirement for the nvcc of torch's CUDA version; empty if PyPI has none."""
    build = torch_build()
    cuda = (build.cuda if build else None) or _USUAL_CUDA
    if int(cuda.split(".")[0]) < _FIRST_MAJOR:
        return ""
    return f"cuda-toolkit[nvcc,cudart,cccl]=={cuda}.*"


def remedy() -> str:
    """Return what a user without nvcc can do, as one line."""
    if not requirement():
        build = torch_build()
        return f"install the CUDA toolkit {build.cuda if build else ''}".strip()
    return f"{sys.executable} -m pip install '{requirement()}' (or make nvcc), 271 MB"


def linked_home(cache: Path) -> Path | None:
    """Return a CUDA_HOME for the packaged nvcc; None if another nvcc comes first.

    torch links with ``-L$CUDA_HOME/lib64 -lcudart``. The packages have ``lib`` and
    ``libcudart.so.13``, so a folder of links in the cache adds the usual names. It holds a copy of
    nvcc, because nvcc searches its libraries beside the target of a link.

    Raises:
        OSError: the cache cannot be written.
    """
    toolkit, nvcc = packaged_toolkit(), find_nvcc()
    if toolkit is None or nvcc is None or Path(nvcc).parent.parent != toolkit:
        return None
    libraries = sorted((toolkit / "lib").iterdir())
    told = hashlib.sha256("\n".join(map(str, [toolkit, *libraries])).encode()).hexdigest()[:16]
    home = cache / f"cuda-home-{told}"
    if home.is_dir():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=cache))
    for name in ("include", "nvvm"):
        (staging / name).symlink_to(toolkit / name)
    for name in ("bin", "lib64"):
        (staging / name).mkdir()
    for tool in (toolkit / "bin").iterdir():
        if tool.name.startswith("nvcc"):  # and its profile
            shutil.copy2(tool, staging / "bin" / tool.name)
        else:
            (staging / "bin" / tool.name).symlink_to(tool)
    (staging / "lib").symlink_to("lib64")
    for library in libraries:
        plain = library.name.partition(".so.")[0]
        for name in {library.name, plain + ".so" if ".so." in library.name else library.name}:
            (staging / "lib64" / name).symlink_to(library)
    for path in (staging, staging / "lib64", staging / "bin", *(staging / "bin").glob("nvcc*")):
        path.chmod(0o755)  # if we are root, a solution runs as another user and must read it
    try:
        staging.rename(home)
    except OSError:
        shutil.rmtree(staging)
        if not home.is_dir():  # else another run has created it
            raise
    return home


def needed() -> bool:
    """Return whether nvcc is all that is missing here for builds for a GPU."""
    build = torch_build()
    on_gpu = (build is not None and build.cuda is not None) or driver_version() is not None
    return on_gpu and find_nvcc() is None


def main(arguments: Sequence[str]) -> int:
    """Install nvcc if it is needed; a failure returns 1 only with ``--anyway``."""
    anyway = "--anyway" in arguments
    if find_nvcc() is not None or not (anyway or needed()):
        if anyway:
            print(f"nvcc is installed already: {find_nvcc()}")
        return 0
    wanted = requirement()
    if wanted:
        print(f"Installing nvcc from PyPI: {wanted} (271 MB)", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet"]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", wanted],
            env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
        )
        if done.returncode == 0:
            return 0
    print(f"nvcc is missing, so no pair can run on a GPU. Next: {remedy()}", file=sys.stderr)
    return 1 if anyway else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
