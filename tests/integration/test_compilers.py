"""The judge knows a compiler by the program that runs, whatever a process calls itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.judge.workers import processes


@contextlib.contextmanager
def running(*words: str, **more: object) -> Iterator[int]:
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **more)
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def within_a_second(found: object) -> bool:
    until = time.monotonic() + 5
    while not found() and time.monotonic() < until:  # type: ignore[operator]
        time.sleep(0.01)
    return bool(found())  # type: ignore[operator]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_compiler_is_known_by_its_program(tmp_path: Path) -> None:
    with running("g++", "-x", "c++", "-", "-fsyntax-only") as pid:
        assert within_a_second(lambda: processes.is_compiler(pid, None, tmp_path))


def test_a_program_that_only_says_so_is_no_compiler(tmp_path: Path) -> None:
    named = tmp_path / "nvcc"
    shutil.copy("/bin/sleep", named)
    with running(str(named), "60") as pid:
        assert within_a_second(lambda: str(Path(f"/proc/{pid}/exe").readlink()).endswith("/nvcc"))
        assert not processes.is_compiler(pid, None, tmp_path), "it lies in the worker's folder"
        assert not processes.is_compiler(pid, os.getuid(), Path("/none")), "the worker owns it"
        named.unlink()
        assert not processes.is_compiler(pid, None, Path("/none")), "it is gone"
    with running("cc1plus", "60", executable="/bin/sleep") as pid:
        assert within_a_second(lambda: str(Path(f"/proc/{pid}/exe").readlink()).endswith("sleep"))
        assert not processes.is_compiler(pid, None, tmp_path), "its name is only an argument"
    assert not processes.is_compiler(1 << 23, None, tmp_path)
    assert not processes.is_compiler(os.getpid(), None, tmp_path), sys.executable
