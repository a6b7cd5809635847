"""The right to a device, between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness.fleet.slots import FileSlot


def test_device_is_had_by_one_process_at_a_time(tmp_path: Path) -> None:
    mine = FileSlot("gpu", shared=False, folder=tmp_path)
    assert mine.try_take()
    program = (
        "import sys; from pathlib import Path; from harness.fleet.slots import FileSlot; "
        "print(FileSlot('gpu', shared=False, folder=Path(sys.argv[1])).try_take())"
    )

    def asked() -> str:
        command = [sys.executable, "-c", program, str(tmp_path)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert asked() == "False"
    mine.release()
    assert asked() == "True"
