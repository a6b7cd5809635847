"""Chooses the folders for cache and results: in the checkout, or the user's if that is read-only.

Fleet, doctor and outputs use it, and so get the same folders.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from harness.machine.environment import PROJECT_ROOT


def cache_folder() -> Path:
    """Return the folder for built extensions: ``.cache`` of the checkout if it is writable."""
    return kept(PROJECT_ROOT, ".cache")


def results_folder(root: Path) -> Path:
    """Return the folder for stored runs and logs: ``results`` of root if it is writable."""
    return kept(root, "results")


def kept(root: Path, name: str) -> Path:
    """Return a writable folder, and create it if it is missing.

    It is the first of these that can be written: root's own, the user's cache (XDG's base directory
    specification), a temporary one that later runs of this user find again.

    Args:
        root: the checkout, or the folder of ``--root``.
        name: of the folder in it.
    """
    plain = name.strip(".")
    for folder in (root / name, _users_cache() / "kernel-eval" / plain):
        if _is_writable(folder):
            return folder
    own = Path(tempfile.gettempdir()) / f"kernel-eval-files-{os.getuid()}"
    if _is_writable(own) and own.lstat().st_uid == os.getuid() and not own.is_symlink():
        last = own / plain
        last.mkdir(parents=True, exist_ok=True)
        return last
    return Path(tempfile.mkdtemp(prefix=f"kernel-eval-{plain}-"))


_for_a_while: list[Path] = []


def keep_temporary_in(folder: Path) -> None:
    """Make temporary folders of this process in one that whoever started it removes."""
    _for_a_while[:] = [folder]


def temporary(prefix: str) -> Path:
    """Return a new temporary folder. A process that is killed does not remove its own."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=_for_a_while[0] if _for_a_while else None))


def _users_cache() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor an account
        return Path("/nonexistent")


def _is_writable(folder: Path) -> bool:
    """Return whether a file can be created in a folder, which is created if it is missing.

    It creates one: on a read-only file system, and for root, the folder's mode does not tell.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            if os.geteuid() == 0:
                folder.chmod(
                    0o755
                )  # if we are root, a solution runs as another user and must read it
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
