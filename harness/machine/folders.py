"""Where the harness keeps what it makes: in the checkout, or with the user where that is read-only.

No other room could take this: fleet, doctor and outputs all ask, and must get the same answer.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from harness.machine.environment import PROJECT_ROOT


def cache_folder() -> Path:
    """Return the folder for built extensions: ``.cache`` of the checkout where it is writable."""
    return kept(PROJECT_ROOT, ".cache")


def results_folder(root: Path) -> Path:
    """Return the folder for stored runs and logs: ``results`` of root where it is writable."""
    return kept(root, "results")


def kept(root: Path, name: str) -> Path:
    """Return a folder that can be written, made where it is missing.

    In this order: root's own, the user's cache (XDG's base directory specification), a temporary
    one that later runs of this user find again.

    Args:
        root: the checkout, or what ``--root`` names.
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


def _users_cache() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor an account
        return Path("/nonexistent")


def _is_writable(folder: Path) -> bool:
    """Return whether a file can be made in a folder, which is made where it is missing.

    Tried, not asked: a read-only file system and root's rights differ from what modes say.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            if os.geteuid() == 0:
                folder.chmod(0o755)  # as root, a solution reads it as another user
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
