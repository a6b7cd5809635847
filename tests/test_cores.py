"""Where judge and workers sit while a GPU pair is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.judge import cores
from harness.judge.cores import Seats, seats

TWO_THREADS = {cpu: frozenset({cpu % 8, cpu % 8 + 8}) for cpu in range(16)}
ALONE = {cpu: frozenset({cpu}) for cpu in range(16)}


def test_judge_and_workers_have_cores_of_their_own_near_the_gpu() -> None:
    taken = seats(0, {4, 5, 6, 7, 12, 13, 14, 15}, set(range(16)), TWO_THREADS)
    assert taken == Seats(judge=7, workers=6)


def test_two_threads_of_a_core_are_one_core() -> None:
    assert seats(0, set(), {3, 11}, TWO_THREADS) is None
    assert seats(0, set(), {3, 11, 12}, TWO_THREADS) == Seats(judge=12, workers=3)


def test_pairs_on_several_gpus_sit_apart_while_there_are_cores() -> None:
    taken = [seats(index, set(), set(range(8)), ALONE) for index in range(5)]
    used = [core for t in taken[:4] if t for core in (t.judge, t.workers)]
    assert sorted(used) == list(range(8))
    assert taken[4] == taken[0]


def test_what_is_near_counts_only_as_far_as_it_may_be_used() -> None:
    assert seats(0, {20, 21}, {0, 1}, ALONE) == Seats(judge=1, workers=0)
    assert seats(0, {1, 20}, {0, 1}, ALONE) == Seats(judge=1, workers=0)
    assert seats(0, set(), {5}, ALONE) is None


@pytest.mark.parametrize("text", ["0-2,8\n", "0,1,2,8"])
def test_lists_of_cpus_are_read(tmp_path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    assert cores._numbers(tmp_path / "list") == {0, 1, 2, 8}
    assert cores._numbers(tmp_path / "none") == set()


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
    if len(everywhere) < 2:
        pytest.skip("needs two cores")
    try:
        core = max(everywhere)
        assert cores.sit(process.pid, core)
        tasks = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
        masks = {task: os.sched_getaffinity(task) for task in tasks}
        assert masks.pop(process.pid) == {core}
        assert list(masks.values()) == [everywhere]
    finally:
        process.kill()
        process.communicate()
    assert not cores.sit(process.pid, core)
