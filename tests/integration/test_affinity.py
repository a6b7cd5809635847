"""Cores of judges and workers that are processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.judge.timing import affinity

TAKE = """
import os, sys
from pathlib import Path
import torch
from harness.judge.timing import affinity
class Properties: pci_domain_id = 0; pci_bus_id = 0xfe; pci_device_id = 0x1f
torch.cuda.get_device_properties = lambda device: Properties
os.sched_getaffinity = lambda pid: {0, 1, 2, 3, 4}
affinity._CPUS = Path("/nowhere")
print(affinity.claim_cores(torch.device("cuda", 0), Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_judges_that_see_one_gpu_each_sit_apart(tmp_path: Path) -> None:
    """Each sees its GPU as the first; cores are taken, and given back when a judge ends."""
    said, judges = [], []
    for turn in range(4):
        if turn == 3:
            judges[0].communicate()
        judge = subprocess.Popen(
            [sys.executable, "-c", TAKE, str(tmp_path / "locks")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert judge.stdout is not None
        said.append(judge.stdout.readline().strip())
        judges.append(judge)
    for judge in judges[1:]:
        judge.communicate()
    first, second = "CorePair(judge=4, workers=3)", "CorePair(judge=2, workers=1)"
    assert said == [first, second, "None", first]


WAITS_FOR_NOBODY = """
import os, sys, time
import torch
from harness.judge.timing import affinity
torch.set_num_threads(2)
def spent():
    a, b = torch.zeros(2, 1 << 16, dtype=torch.uint8)
    began = time.perf_counter()
    for _ in range(40):
        a.copy_(b)
    return time.perf_counter() - began
with affinity.affinity_restored():
    assert affinity.pin(0, max(os.sched_getaffinity(0)))
    print(spent(), torch.get_num_threads())
print(torch.get_num_threads())
"""


def test_who_sits_on_one_core_waits_for_no_helper_there() -> None:
    """Small inputs of 40 calls took a third of a second to copy, those of 5 rounds a minute."""
    said = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_NOBODY], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(said[0]) < 0.1, "40 copies of 64 KiB take a millisecond"
    assert said[1:] == ["1", "2"]


def test_only_the_main_thread_sits_down() -> None:
    script = (
        "import os, threading, time\n"
        "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
        "print(flush=True)\ntime.sleep(30)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    everywhere = os.sched_getaffinity(process.pid)
    try:
        core = max(everywhere)
        assert affinity.pin(process.pid, core)
        tasks = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
        masks = {task: os.sched_getaffinity(task) for task in tasks}
        assert masks.pop(process.pid) == {core}
        assert list(masks.values()) == [everywhere]
    finally:
        process.kill()
        process.communicate()
    assert not affinity.pin(process.pid, core)
