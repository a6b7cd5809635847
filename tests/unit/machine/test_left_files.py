"""Whatever a solution leaves on disk is read within bounds and removed without an error."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from harness.machine.left_files import NotPlain, bytes_of, head_of, remove_tree

MOST = 1 << 16


def deep(folder: Path, levels: int = 1500) -> None:
    """Nest folders far beyond Python's recursion limit and the system's longest path."""
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for level in range(levels):
        os.mkdir("dd", dir_fd=here)
        (inner, here) = (here, os.open("dd", os.O_RDONLY, dir_fd=here))
        os.close(inner)
        if level % 400 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def endless_link(path: Path) -> None:
    path.symlink_to(path)


def listener(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 43)


KINDS = [pipe, link, link_to_a_device, endless_link, listener, sparse, Path.mkdir]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_what_is_no_plain_file_is_not_read(make, tmp_path: Path) -> None:
    place = tmp_path / "left"
    make(place)
    began = time.monotonic()
    with pytest.raises(OSError):
        bytes_of(place, MOST)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("make", [pipe, link_to_a_device, endless_link, listener])
def test_a_link_is_followed_to_plain_files_only(make, tmp_path: Path) -> None:
    make(tmp_path / "left")
    (tmp_path / "link").symlink_to(tmp_path / "left")
    with pytest.raises(OSError):
        head_of(tmp_path / "link", MOST, follow=True)


def test_a_plain_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    place = tmp_path / "plain"
    place.write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to(place)
    assert bytes_of(place, 10) == bytes_of(tmp_path / "link", 10, follow=True) == b"0123456789"
    assert head_of(place, 4) == b"0123"
    with pytest.raises(NotPlain):
        bytes_of(place, 9)
    with pytest.raises(FileNotFoundError):
        bytes_of(tmp_path / "none", 9)


@pytest.mark.parametrize("make", [*KINDS, deep], ids=lambda make: make.__name__)
def test_whatever_lies_in_a_folder_is_removed(make, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inner" / "closed").mkdir(parents=True)
    make(folder / "inner" / "left")
    make(folder / "inner" / "closed" / "left")
    (folder / "inner" / "closed").chmod(0)
    assert remove_tree(folder) == ""
    assert not folder.exists()
    assert Path("/etc/hostname").exists()


def test_a_link_in_the_folder_s_place_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "folder").symlink_to(tmp_path / "kept")
    assert remove_tree(tmp_path / "folder") == ""
    assert (tmp_path / "kept" / "file").exists()
    assert not (tmp_path / "folder").is_symlink()
    assert remove_tree(tmp_path / "none") == ""


def test_deep_folders_need_no_recursion(tmp_path: Path) -> None:
    deep(tmp_path / "folder")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        assert remove_tree(tmp_path / "folder") == ""
    finally:
        sys.setrecursionlimit(limit)
