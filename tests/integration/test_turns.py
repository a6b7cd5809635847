"""Which pairs have a GPU at once: several check, one measures, and another run is not starved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.domain import Options, Pair, Verdict
from harness.fleet import Deadlines, devices, make_plan, run_pairs
from harness.fleet.slots import FileSlot
from harness.fleet.turns import CHECK, CLOCK, GpuTurn, SharedDevice
from harness.machine.environment import TorchBuild
from harness.machine.gpus import Gpu, Gpus
from tests.fake_judge import COMMAND as FAKE_JUDGE

GIB = 1 << 30


@pytest.fixture
def device(tmp_path: Path) -> SharedDevice:
    lock = FileSlot("gpu", shared=False, folder=tmp_path)
    return SharedDevice(lock, side_by_side=3, memory_bytes=100 * GIB)


def asking(device: SharedDevice, need_gib: int | None = 10, *, alone: bool = False) -> GpuTurn:
    turn = device.turn(alone=alone)
    turn.ask(CHECK, None if need_gib is None else need_gib * GIB)
    return turn


def test_pairs_check_side_by_side_up_to_the_limit(device: SharedDevice) -> None:
    turns = [asking(device) for _ in range(4)]
    assert [turn.try_take() for turn in turns] == [True, True, True, False]
    turns[0].release()
    assert turns[3].try_take()
    assert all(turn.was_shared for turn in turns)
    assert turns[3].room_bytes == 80 * GIB


def test_one_measures_when_none_checks_and_none_is_let_in_before(device: SharedDevice) -> None:
    first, second, late = (asking(device) for _ in range(3))
    assert first.try_take()
    assert second.try_take()
    first.ask(CLOCK, 10 * GIB)
    assert not first.try_take(), "another pair still checks"
    assert not late.try_take(), "a pair waits for the clock: it would wait for this one, too"
    second.ask(CLOCK, 10 * GIB)
    assert first.try_take()
    assert not second.try_take(), "two clocks on one device"
    assert not late.try_take()
    first.release()
    assert second.try_take()
    second.release()
    assert late.try_take()


@pytest.mark.parametrize("need_gib", [None, 85])
def test_a_pair_of_unknown_or_large_need_has_the_device_alone(
    device: SharedDevice, need_gib: int | None
) -> None:
    large, small = asking(device, need_gib), asking(device)
    assert large.try_take()
    assert not small.try_take()
    assert not large.was_shared
    large.release()
    assert small.try_take()
    assert not asking(device, need_gib).try_take()


def test_a_turn_alone_is_alone(device: SharedDevice) -> None:
    alone, other = asking(device, alone=True), asking(device)
    assert alone.try_take()
    assert not other.try_take()
    alone.ask(CLOCK, GIB)
    assert alone.try_take()
    alone.release()
    assert not alone.was_shared


def test_a_smaller_size_asks_again_and_keeps_what_it_has(device: SharedDevice) -> None:
    pair = asking(device)
    assert pair.try_take()
    pair.ask(CLOCK, 10 * GIB)
    assert pair.try_take()
    pair.ask(CHECK, 5 * GIB)
    assert pair.try_take()
    pair.ask(CLOCK, 5 * GIB)
    assert pair.try_take()
    assert not asking(device).try_take()


def test_another_run_gets_the_device_between(device: SharedDevice, tmp_path: Path) -> None:
    other_run = FileSlot("gpu", shared=False, folder=tmp_path)
    turns = [asking(device) for _ in range(3)]
    assert all(turn.try_take() for turn in turns)
    assert not other_run.try_take()
    for _ in range(10):  # a stream of pairs that never need the clock
        turns.append(asking(device))
        if not turns[-1].try_take():
            break
        turns.pop(0).release()
    for turn in turns:
        turn.release()
    assert other_run.try_take()
    assert not asking(device).try_take()
    other_run.release()


def test_a_pair_that_gives_up_waiting_leaves_the_queue(
    device: SharedDevice, tmp_path: Path
) -> None:
    holder = FileSlot("gpu", shared=False, folder=tmp_path)
    assert holder.try_take()
    waiting = asking(device)
    assert not waiting.try_take()
    waiting.release()
    holder.release()
    assert FileSlot("gpu", shared=False, folder=tmp_path).try_take()


@pytest.fixture
def run(
    tmp_path: Path, make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Verdict]]:
    """Return a function that runs parts of the fake judge on a GPU that is made up."""
    gpu = Gpu(index=0, name="made up", uuid="u", capability=(9, 0), memory_bytes=100 * GIB)
    monkeypatch.setattr(devices, "find_gpus", lambda: Gpus(devices=(gpu,), cuda="13.0"))
    monkeypatch.setattr(devices, "torch_build", lambda: TorchBuild(version="2.13", cuda="13.0"))
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(16)))

    def run_parts(*parts: str, **options: Any) -> dict[str, Verdict]:
        pairs = [make_pair(f"t/{part}") for part in parts]
        chosen = Options(device="cuda", jobs=4, log_dir=tmp_path / "logs", **options)
        verdicts = run_pairs(
            pairs,
            chosen,
            judge_command=FAKE_JUDGE,
            deadlines=Deadlines(silence_s=30, problem_code_s=30, total_s=60),
            plan=make_plan(chosen, len(pairs), lock_folder=tmp_path),
        )
        return dict(zip(parts, verdicts, strict=True))

    return run_parts


def moments(tmp_path: Path) -> list[tuple[str, str]]:
    lines = (tmp_path / "logs" / "journal").read_text().splitlines()
    return [(json.loads(line)[0], json.loads(line)[1]) for line in lines]


def test_a_fleet_checks_together_and_measures_one_by_one(
    run: Callable[..., dict[str, Verdict]], tmp_path: Path
) -> None:
    run(*(f"measures-{i}" for i in range(6)))
    checking: set[str] = set()
    measuring: set[str] = set()
    most = 0
    for pair, what in moments(tmp_path):
        if what == "device":
            checking.add(pair)
        elif what == "checked":
            checking.discard(pair)
        elif what == "clock":
            assert not checking
            assert not measuring
            measuring.add(pair)
        elif what == "end":
            measuring.discard(pair)
        most = max(most, len(checking))
    assert most > 1


@pytest.mark.parametrize(
    ("part", "status", "times"),
    [("out_of_memory_beside_others", "PASSED", 2), ("wrong", "WRONG_VALUES", 1)],
)
def test_what_another_pair_can_cause_is_seen_again_alone(
    run: Callable[..., dict[str, Verdict]], tmp_path: Path, part: str, status: str, times: int
) -> None:
    verdicts = run(part, "slow-1", "slow-2", size="full")
    assert verdicts[part].status.value == status
    assert moments(tmp_path).count((f"t/{part}", "device")) == times
