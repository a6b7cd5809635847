"""Keeps built extensions, in one folder per solution file: no solution reaches another's.

A build worker writes into a build folder of its own. When it is done, the judge moves each
extension into the cache with one rename. A worker that runs the solution only reads the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from harness.domain import HarnessError
from harness.machine.environment import PACKAGE
from harness.machine.toolchain import toolchain

CACHE_VERSION = 2
_PREPARE = (
    "import sys; from pathlib import Path; from harness.worker.cuda_on_cpu import prepare; "
    "print(prepare(Path(sys.argv[1])))"
)


class ExtensionCache:
    """The part of the cache that belongs to one solution file on one device.

    Args:
        root: the cache's folder; created where missing.
        solution: the solution's file; its content names the folder.
        device: ``cuda``, ``emulated`` or ``cpu``.
        nvcc: architectures that nvcc is asked for too.
        fast_headers: whether CUDA sources may be built with headers cut to what they name.
    """

    def __init__(
        self,
        root: Path,
        solution: Path,
        device: str,
        nvcc: Iterable[str] = (),
        *,
        fast_headers: bool = False,
    ) -> None:
        try:
            digest = hashlib.sha256(solution.read_bytes()).hexdigest()[:24]
        except OSError as error:
            raise HarnessError(f"{solution}: {error}") from error
        self.support = root / "support"
        self.folder = root / f"v{CACHE_VERSION}" / f"{solution.stem}-{device}-{digest}"
        self._build_root = root / "staging"
        self._device = device
        self._nvcc = list(nvcc)
        self._fast_headers = fast_headers and device == "cuda"
        for folder in (self.support, self.folder, self._build_root):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def read_by_workers(self) -> list[Path]:
        """The existing files and folders that a solution's workers read under their user ids."""
        built = sorted(self.support.glob("*-*/*"))
        return [self.support, self.folder, self._build_root, *built]

    def complete(self) -> bool:
        """Return whether everything that the solution built last time is here and still valid."""
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError):
            return False
        if manifest.get("environment") != self._environment() or manifest.get("failed"):
            return False
        built = all((self.folder / key / "done").exists() for key in manifest["keys"])
        return built and all(_digest(Path(f)) == d for f, d in manifest["files"].items())

    def build_folder(self, uid: int | None) -> Path:
        """Return a new folder for a build worker with this user id; None is the judge's own id."""
        folder = Path(tempfile.mkdtemp(dir=self._build_root))
        if uid is not None:
            os.chown(folder, uid, uid)
        return folder

    def _environment(self) -> dict[str, Any]:
        """Return everything but the sources that identifies an extension."""
        return {
            **toolchain(self._device),
            "nvcc": self._nvcc,
            "fast_headers": self._fast_headers,
        }

    def adopt(
        self, build_folder: Path, keys: Iterable[str], files: Iterable[str], *, failed: bool
    ) -> None:
        """Move finished extensions out of a build folder into the cache, and remember them.

        Args:
            build_folder: where a build worker put them.
            keys: of those that it built or found.
            files: what went into them.
            failed: others could not be built: the next build worker is to try again.
        """
        known = []
        for key in dict.fromkeys(keys):
            source, target = build_folder / key, self.folder / key
            if Path(key).name != key:
                continue
            if not target.exists() and (source / "done").exists():
                _take_ownership(source)
                with contextlib.suppress(OSError):
                    # Another judge of the same solution may have been first, with the same content.
                    source.rename(target)
            if (target / "done").exists():
                known.append(key)
        manifest = {
            "environment": self._environment(),
            "keys": known,
            "failed": failed,
            "headers": {key: _headers(self.folder / key) for key in known},
            "files": {f: _digest(Path(f)) for f in files},
        }
        temporary = self.folder / f"manifest.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(manifest, indent=1))
        temporary.replace(self.folder / "manifest.json")

    def prepare_support(self, log: Path) -> str:
        """Build the CPU runner's library once; return why that is impossible, or an empty string.

        Another process does it, since the judge imports no code of the worker. The name of the
        marker file is a digest of the runner's sources, so each version builds its own library.
        The marker lists what was built.
        """
        runner = PACKAGE / "worker" / "cuda_on_cpu"
        digest = hashlib.sha256(f"{torch.__version__} {torch.__file__} {sys.version}".encode())
        for path in sorted(runner.rglob("*")):
            if path.is_file() and path.suffix in (".py", ".h", ".cpp", ".cuh", ""):
                digest.update(path.read_bytes())
        marker = self.support / f"ready-{digest.hexdigest()[:24]}"
        with contextlib.suppress(OSError):
            # Another version may have deleted it since, to make room.
            if all((self.support / name).exists() for name in marker.read_text().split()):
                return ""
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return "no C++ compiler: install g++, or set CXX"
        with log.open("ab") as out:
            done = subprocess.run(
                [sys.executable, "-c", _PREPARE, str(self.support)],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                cwd=PACKAGE.parent,
            )
        if done.returncode != 0:
            raise HarnessError(f"the CPU runner's library did not build; {log} has the output")
        built = [p.name for p in self.support.iterdir() if p.is_dir() and p.name[:8] != "building"]
        temporary = self.support / f"ready.{os.getpid()}.tmp"
        temporary.write_text("\n".join(built))
        temporary.replace(marker)
        return ""

    def discard(self, build_folder: Path) -> None:
        """Delete a build folder and what is left in it."""
        shutil.rmtree(build_folder, ignore_errors=True)


def _headers(built: Path) -> str:
    """Return which headers an extension was built with: ``fast`` or ``torch``.

    A build worker wrote the file, so it may be long, or no file at all.
    """
    note = built / "headers"
    if not note.is_file():
        return "torch"
    with note.open("rb") as file:
        return "fast" if file.read(5) == b"fast\n" else "torch"


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"


def _take_ownership(folder: Path) -> None:
    """Give a built folder to the judge's user, read-only for others; delete links in it."""
    if os.geteuid() == 0:
        os.chown(folder, 0, 0)
    folder.chmod(0o755)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            _take_ownership(path)
        else:
            if os.geteuid() == 0:
                os.chown(path, 0, 0)
            path.chmod(0o755 if path.suffix == ".so" else 0o644)
