"""Reads and removes what a process of a solution left on disk.

A solution can put anything where the judge looks for a file: a pipe that never has a writer, a
link, a device, a file of terabytes without content, a folder that is thousands deep. The judge
opens such places here only. Nothing here waits, follows a link that is not asked for, reads more
than it is told to, or recurses.

No other room could take this: judge and fleet both need it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_REMOVAL_S = 60.0
"""For a folder with a million files."""


class NotPlain(OSError):
    """What lies there is no regular file, or a longer one than it may be."""


@contextlib.contextmanager
def opened(path: Path, *, follow: bool = False) -> Iterator[int]:
    """Yield a descriptor that reads a regular file.

    The file is looked at before it is opened: to open a device can do something already.

    Args:
        path: of the file.
        follow: take the file that a link points to. Without it a link is not plain.

    Raises:
        NotPlain: it is something else.
        OSError: there is nothing, or it may not be read.
    """
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    place = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise NotPlain(f"{path} is no regular file")
        reader = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(place)
    try:
        yield reader
    finally:
        os.close(reader)


def head_of(path: Path, most_bytes: int, *, follow: bool = False) -> bytes:
    """Return the first bytes of a regular file; all of a shorter one.

    Args:
        path: of the file.
        most_bytes: how many at most.
        follow: take the file that a link points to.

    Raises:
        NotPlain: it is no regular file.
        OSError: there is nothing, or it may not be read.
    """
    with opened(path, follow=follow) as reader:
        parts: list[bytes] = []
        while most_bytes > 0 and (part := os.read(reader, min(most_bytes, 1 << 20))):
            parts.append(part)
            most_bytes -= len(part)
    return b"".join(parts)


def bytes_of(path: Path, most_bytes: int, *, follow: bool = False) -> bytes:
    """Return a regular file's content.

    Args:
        path: of the file.
        most_bytes: a longer file is not plain.
        follow: take the file that a link points to.

    Raises:
        NotPlain: it is no regular file, or a longer one.
        OSError: there is nothing, or it may not be read.
    """
    found = head_of(path, most_bytes + 1, follow=follow)
    if len(found) > most_bytes:
        raise NotPlain(f"{path} has more than {most_bytes} bytes")
    return found


def remove_tree(folder: Path) -> str:
    """Remove a folder with all that lies in it, and never raise.

    The way down and up again goes from folder to folder. So no path gets long, nothing recurses,
    and two descriptors are enough, however deep a solution has nested its folders. Links are
    removed, not followed.

    Returns:
        Why something is left; an empty string where nothing is.
    """
    try:
        if not folder.is_dir() or folder.is_symlink():
            folder.unlink(missing_ok=True)
            return ""
        why = _empty(_open_folder(str(folder), None))
        folder.rmdir()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error)
    return why


def _empty(top: int) -> str:
    """Remove all that lies in an open folder, and close it; return why something is left.

    Raises:
        OSError: the way up from a folder leads elsewhere than the way down did.
    """
    until = time.monotonic() + _REMOVAL_S
    here, why = top, ""
    below: list[list[str]] = []
    way: list[tuple[str, tuple[int, int]]] = []
    try:
        inside, why = _unlinked(here, why)
        below.append(inside)
        while True:
            if time.monotonic() > until:
                return f"its removal took more than {_REMOVAL_S:.0f} s"
            if below[-1]:
                name = below[-1].pop()
                try:
                    deeper = _open_folder(name, here)
                except OSError as error:
                    why = str(error)
                    continue
                way.append((name, _identity(here)))
                os.close(here)
                here = deeper
                inside, why = _unlinked(here, why)
                below.append(inside)
            elif not way:
                return why
            else:
                below.pop()
                name, parent = way.pop()
                above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
                os.close(here)
                here = above
                if _identity(here) != parent:
                    raise OSError(f"{name!r} was moved while it was removed")
                try:
                    os.rmdir(name, dir_fd=here)
                except OSError as error:
                    why = str(error)
    finally:
        os.close(here)


def _unlinked(folder: int, why: str) -> tuple[list[str], str]:
    """Remove all but the folders in a folder; return their names, and why something is left."""
    folders = []
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=folder)
        except OSError as error:
            why = str(error)
    return folders, why


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino


def _open_folder(name: str, within: int | None) -> int:
    """Open a folder that its owner may have closed to everybody, and may not want emptied."""
    flags = os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
    place = os.open(name, flags | os.O_PATH, dir_fd=within)
    try:
        if os.fstat(place).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            with contextlib.suppress(PermissionError):  # another's folder: it may be open as it is
                os.chmod(f"/proc/self/fd/{place}", 0o700)  # noqa: PTH101 - of what was opened
        return os.open(".", flags | os.O_RDONLY, dir_fd=place)
    finally:
        os.close(place)
