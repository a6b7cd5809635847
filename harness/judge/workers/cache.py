"""Keeps built extensions, in one folder per solution file: no solution reaches another's.

A build worker writes into a build folder of its own. When it is done, the judge moves each
extension into the cache with one rename. A worker that runs the solution only reads the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from harness.domain import HarnessError
from harness.machine import left_files
from harness.machine.environment import PACKAGE
from harness.machine.toolchain import toolchain

CACHE_VERSION = 2
_KEY = re.compile(r"[^/\0]{1,40}-[0-9a-f]{24}")
"""What a worker names a built extension (``content_key`` in worker/build.py)."""
_MOST_MANIFEST_BYTES = 64 << 20
_MOST_SOURCE_BYTES = 1 << 30
"""Of all files of one solution: CUTLASS has 40 MB of headers."""
_MOST_BUILT = 10_000
"""Files and folders of one extension."""
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
            read = left_files.bytes_of(self.folder / "manifest.json", _MOST_MANIFEST_BYTES)
            manifest = json.loads(read)
            if manifest["environment"] != self._environment() or manifest["failed"]:
                return False
            built = all((self.folder / key / "done").exists() for key in manifest["keys"])
            files = {str(path): str(digest) for path, digest in manifest["files"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False  # none, or one that somebody else wrote there
        return built and _digests(files) == files

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
            if _KEY.fullmatch(key) is None:
                continue
            if not target.exists() and (source / "done").exists():
                with contextlib.suppress(OSError):
                    # Another judge of the same solution may have been first: the same content. Or
                    # there is something that no build leaves behind, and nothing is kept.
                    _take_ownership(source)
                    source.rename(target)
            if (target / "done").exists():
                known.append(key)
        manifest = {
            "environment": self._environment(),
            "keys": known,
            "failed": failed,
            "headers": {key: _headers(self.folder / key) for key in known},
            "files": _digests(files),
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
        left_files.remove_tree(build_folder)


def _headers(built: Path) -> str:
    """Return which headers an extension was built with: ``fast`` or ``torch``.

    A build worker wrote the file, so it may be long, or no file at all.
    """
    try:
        return "fast" if left_files.head_of(built / "headers", 5) == b"fast\n" else "torch"
    except OSError:
        return "torch"


def _digests(files: Iterable[str]) -> dict[str, str]:
    """Return a digest of each file that went into a build, as a worker names them.

    A file that is no plain one, or that is left when so many bytes have been read, has none. What
    was built from it is then built again.
    """
    found, left = {}, _MOST_SOURCE_BYTES
    for name in dict.fromkeys(files):
        try:
            content = left_files.bytes_of(Path(name), left, follow=True)
        except (OSError, ValueError):  # a zero byte in its name
            found[name] = "missing"
        else:
            left -= len(content)
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def _take_ownership(folder: Path) -> None:
    """Make a built folder ours and read-only to others.

    Only plain files are kept that have no second name, which may lie where others write.

    Raises:
        OSError: it is deeper, or holds more, than what a build leaves.
    """
    waiting, seen = [folder], 0
    while waiting:
        here = waiting.pop()
        _make_ours(here, 0o755)
        for path in sorted(here.iterdir()):
            seen += 1
            if seen > _MOST_BUILT:
                raise OSError(f"{folder} holds more than {_MOST_BUILT} files")
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode):
                waiting.append(path)
            elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                _make_ours(path, 0o755 if path.suffix == ".so" else 0o644)
            else:
                path.unlink()


def _make_ours(path: Path, mode: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, 0, 0, follow_symlinks=False)
    path.chmod(mode)
