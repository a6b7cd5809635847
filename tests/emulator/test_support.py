"""What is built once survives killed and concurrent builders.

The builders here are stand-ins that take no time; what is tested is the protocol around them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.worker.cuda_on_cpu import support as room

ROOT = Path(__file__).parents[2]
BUILDER = """
import os, sys, time
from pathlib import Path
from harness.worker.cuda_on_cpu.support import _obtain
folder, hang = Path(sys.argv[1]), sys.argv[2] == "hang"
def build(staging):
    (staging / "half").write_text("half")
    with (folder / "builds").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    print("building", flush=True)
    time.sleep(600 if hang else 0.5)
    (staging / "whole").write_text("whole")
finished, seconds = _obtain(folder, "thing-1", build)
print(finished, (finished / "whole").read_text(), flush=True)
"""


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUILDER, str(folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_killed_builder_leaves_nothing_that_the_next_would_use(tmp_path: Path) -> None:
    killed = start(tmp_path, "hang")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "building\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(list(tmp_path.glob("building-*"))) == 1
    started = time.monotonic()
    out, _ = start(tmp_path, "build").communicate(timeout=60)
    assert "whole" in out
    assert time.monotonic() - started < 60, "the lock of a killed builder is free"
    assert list(tmp_path.glob("building-*")) == []
    assert (tmp_path / "thing-1" / "done").exists()


def test_concurrent_builders_build_once_and_share(tmp_path: Path) -> None:
    builders = [start(tmp_path, "build") for _ in range(3)]
    said = [b.communicate(timeout=60)[0] for b in builders]
    assert all(f"{tmp_path / 'thing-1'} whole" in text for text in said)
    assert len((tmp_path / "builds").read_text().split()) == 1


def test_folder_without_its_mark_is_built_again(tmp_path: Path) -> None:
    (tmp_path / "thing-1").mkdir(parents=True)
    (tmp_path / "thing-1" / "half").write_text("left by a crash of the machine")
    out, _ = start(tmp_path, "build").communicate(timeout=60)
    assert "whole" in out


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fails(staging: Path) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        room._obtain(tmp_path, "thing-1", fails)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_only_the_two_newest_builds_are_kept(tmp_path: Path) -> None:
    for number in range(4):
        finished, _ = room._obtain(tmp_path, f"thing-{number}", lambda staging: None)
        os.utime(finished / "done", (number, number))
    kept = sorted(p.name for p in tmp_path.glob("thing-*"))
    assert kept == ["thing-1", "thing-2", "thing-3"], "two older ones beside the new one"
