"""Whatever a worker leaves on disk, the judge reads it within bounds, and removes it.

A quarter of ``test_wire``'s number of cases: each makes a folder full of files. One is run alone in
the same way.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import stat
import time
from pathlib import Path

import pytest

from harness import ipc
from harness.judge import own_kernels
from harness.judge.timing import ncu
from harness.judge.workers import replies
from harness.judge.workers.cache import ExtensionCache
from harness.machine import left_files
from tests.fuzz.test_wire import CASES, MOST_BYTES, MOST_S, ONLY

KEY = "name-" + "0" * 24
NAMES = (
    "findings.jsonl", "report.csv", "done", "headers", "nvcc.json", "manifest.json", "k.so", "a.cu",
    "b.py", "\n", "-rf", "..x", "\udcff", "x" * 255,
)  # fmt: skip
TEXTS = (b"", b"fast\n", b"{}", b"\0" * 5000, b"[" * 200_000, b'"ID","Kernel Name"\n', b"\xff\xfe")


def leave(folder: Path, source: random.Random, depth: int = 0) -> None:
    """Put something of any kind into a folder."""
    for _ in range(source.randrange(1, 5)):
        place = folder / source.choice(NAMES)
        kind = source.randrange(9)
        if os.path.lexists(place):  # to write there could wait for a reader, or follow a link
            continue
        with contextlib.suppress(OSError):  # it is there, or its name is too long
            if kind == 0:
                os.mkfifo(place)
            elif kind == 1:
                place.symlink_to(source.choice(("/dev/zero", "/etc", "..", place.name, "/none")))
            elif kind == 2:
                place.touch()
                os.truncate(place, source.choice((1, 1 << 33, 1 << 43)))
            elif kind == 3 and depth < 6:
                place.mkdir()
                leave(place, source, depth + 1)
            elif kind == 4 and os.geteuid() == 0:
                os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))
            elif kind == 5:
                os.link(folder / source.choice(NAMES), place)
            elif kind == 6:
                place.mkdir(mode=source.choice((0, 0o777)))
            else:
                place.write_bytes(source.choice(TEXTS))
    if source.random() < 0.1:
        folder.chmod(source.choice((0, 0o500, 0o4777)))


def test_whatever_is_left_is_read_and_removed(tmp_path: Path) -> None:
    solution = tmp_path / "solution.py"
    solution.write_text("")
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = 0
    for case in [int(ONLY)] if ONLY else range(CASES // 4):
        source = random.Random(case)
        cache = ExtensionCache(tmp_path / f"cache-{case}", solution, "cuda")
        folder = cache.build_folder(None)
        built = folder / KEY
        built.mkdir()
        if source.random() < 0.7:
            (built / "done").touch()
        leave(built, source)
        leave(folder, source)
        files = [str(path) for path in (*folder.iterdir(), *_inside(built))] + ["/dev/zero", "a\0"]
        began = time.monotonic()
        try:
            with contextlib.suppress(OSError, ipc.WireViolation):  # as RemoteWorker._dead does
                text = left_files.head_of(folder / "findings.jsonl", 1 << 20)
                replies.last_findings(text.decode("utf-8", "replace"))
            ncu.judged(0, ncu._text_of(folder / "report.csv"), 1.0)
            own_kernels.kernel_names(own_kernels.sources_of("", files))
            cache.adopt(folder, [KEY, "manifest.json", "..", KEY + "/x"], files, failed=False)
            cache.complete()
            kept += (cache.folder / KEY).exists()
            cache.discard(folder)
        except BaseException as error:
            raise AssertionError(f"FUZZ_ONLY={case}: {error!r}") from error
        took = time.monotonic() - began
        assert took < MOST_S, f"FUZZ_ONLY={case} took {took:.1f} s"
        assert not folder.exists(), f"FUZZ_ONLY={case}"
        for path in cache.folder.rglob("*"):
            plain = path.lstat().st_mode
            assert stat.S_ISREG(plain) or stat.S_ISDIR(plain), f"FUZZ_ONLY={case}: {path}"
        assert left_files.remove_tree(tmp_path / f"cache-{case}") == ""
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * 1024
    assert grown < MOST_BYTES, f"the judge took {grown >> 20} MiB"
    assert ONLY or kept > CASES // 20, "what a build leaves is kept"


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


@pytest.mark.parametrize("name", ["headers", "done", "k.so"])
def test_pipes_in_place_of_what_a_build_leaves(name: str, tmp_path: Path) -> None:
    solution = tmp_path / "solution.py"
    solution.write_text("")
    cache = ExtensionCache(tmp_path / "cache", solution, "cuda")
    folder = cache.build_folder(None)
    (folder / KEY).mkdir()
    for other in {"headers", "done", "k.so"} - {name}:
        (folder / KEY / other).write_text("fast\n")
    os.mkfifo(folder / KEY / name)
    cache.adopt(folder, [KEY], [], failed=False)
    assert not (cache.folder / KEY / name).exists()
    assert cache.complete()
    assert (KEY in (cache.folder / "manifest.json").read_text()) is (name != "done")
