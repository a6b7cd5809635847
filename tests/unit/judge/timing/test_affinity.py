"""Where judge and workers sit while a GPU pair is timed."""

from __future__ import annotations

import os

import pytest

from harness.judge.timing import affinity
from harness.judge.timing.affinity import CorePair, pairs_of_cores

TWO_THREADS = {cpu: frozenset({cpu % 8, cpu % 8 + 8}) for cpu in range(16)}
ALONE = {cpu: frozenset({cpu}) for cpu in range(16)}


def test_judge_and_workers_have_cores_of_their_own_near_the_gpu() -> None:
    near = {4, 5, 6, 7, 12, 13, 14, 15}
    taken = pairs_of_cores(near, set(range(16)), TWO_THREADS)
    assert taken == [CorePair(judge=7, workers=6), CorePair(judge=5, workers=4)]


def test_two_threads_of_a_core_are_one_core() -> None:
    assert pairs_of_cores(set(), {3, 11}, TWO_THREADS) == []
    assert pairs_of_cores(set(), {3, 11, 12}, TWO_THREADS) == [CorePair(judge=12, workers=3)]


def test_what_is_near_counts_only_as_far_as_it_may_be_used() -> None:
    assert pairs_of_cores({20, 21}, {0, 1}, ALONE) == [CorePair(judge=1, workers=0)]
    assert pairs_of_cores(set(), {5}, ALONE) == []


def test_all_sit_down_or_none() -> None:
    everywhere = os.sched_getaffinity(0)
    core = max(everywhere)
    assert not affinity.pin_all([os.getpid(), 2**22 + 1], core)
    assert os.sched_getaffinity(0) == everywhere
    with affinity.affinity_restored():
        assert affinity.pin_all([os.getpid()], core)
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == everywhere


@pytest.mark.parametrize("text", ["0-2,8\n", "0,1,2,8"])
def test_lists_of_cpus_are_read(tmp_path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    assert affinity._numbers(tmp_path / "list") == {0, 1, 2, 8}
    assert affinity._numbers(tmp_path / "none") == set()
