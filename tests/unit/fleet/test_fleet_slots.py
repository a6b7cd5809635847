"""The right to build and the right to a device, and how a run is laid out on a machine."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from harness.domain import Options, UsageError
from harness.fleet import devices, make_plan
from harness.fleet.slots import AllSlots, CountSlot, FileSlot
from harness.machine.environment import TorchBuild
from harness.machine.gpus import Gpu, Gpus

H200 = {"name": "NVIDIA H200", "capability": (9, 0), "memory_bytes": 150_000_000_000}
TWO = Gpus(
    devices=tuple(Gpu(index=i, uuid=f"uuid-{i}", **H200) for i in range(2)),  # type: ignore[arg-type]
    cuda="13.0",
)


def test_device_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    first = FileSlot("gpu", shared=False, folder=tmp_path)
    second = FileSlot("gpu", shared=False, folder=tmp_path)
    assert first.try_take()
    assert first.try_take()
    assert not second.try_take()
    first.release()
    assert second.try_take()
    second.release()


def test_devices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    slots = [FileSlot(name, shared=False, folder=tmp_path) for name in ("a", "b")]
    assert all(slot.try_take() for slot in slots)
    for slot in slots:
        slot.release()


def test_sharers_share_but_queue_behind_whoever_wants_it_alone(tmp_path: Path) -> None:
    build = FileSlot("cpu", shared=True, folder=tmp_path)
    another = FileSlot("cpu", shared=True, folder=tmp_path)
    late = FileSlot("cpu", shared=True, folder=tmp_path)
    measure = FileSlot("cpu", shared=False, folder=tmp_path)
    assert build.try_take()
    assert another.try_take()
    assert not measure.try_take()
    assert not late.try_take(), "a new build got past a waiting measurement"
    build.release()
    another.release()
    assert measure.try_take()
    assert not late.try_take()
    measure.release()
    assert late.try_take()
    late.release()


def test_whoever_stops_waiting_leaves_the_queue(tmp_path: Path) -> None:
    holder = FileSlot("cpu", shared=True, folder=tmp_path)
    waiting = FileSlot("cpu", shared=False, folder=tmp_path)
    late = FileSlot("cpu", shared=True, folder=tmp_path)
    assert holder.try_take()
    assert not waiting.try_take()
    waiting.release()
    assert late.try_take()
    holder.release()
    late.release()


def test_all_slots_give_everything_back(tmp_path: Path) -> None:
    builds = threading.BoundedSemaphore(1)
    file = FileSlot("cpu", shared=True, folder=tmp_path)
    both = AllSlots(CountSlot(builds), file)
    assert both.try_take()
    assert not CountSlot(builds).try_take()
    both.release()
    both.release()
    assert CountSlot(builds).try_take()


def test_gpus_get_one_pair_each_and_builds_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "find_gpus", lambda: TWO)
    monkeypatch.setattr(devices, "torch_build", lambda: TorchBuild(version="2.13", cuda="13.0"))
    plan = make_plan(Options(device="auto", jobs=3), 10, lock_folder=tmp_path)
    assert plan.devices == ("cuda:0", "cuda:1")
    assert plan.alive == 5
    assert [plan.assign() for _ in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    plan.leave("cuda:1")
    assert plan.assign() == "cuda:1"
    first, second = (plan.turn("cuda:0", alone=True) for _ in range(2))
    assert first is not None
    assert second is not None
    first.ask("device", None)
    second.ask("device", None)
    assert first.try_take()
    assert not second.try_take()
    first.release()
    assert make_plan(Options(device="cuda:1"), 1, lock_folder=tmp_path).devices == ("cuda:1",)
    with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
        make_plan(Options(device="cuda:2"), 1)


def test_auto_is_emulated_where_torch_cannot_use_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_gpus", lambda: TWO)
    monkeypatch.setattr(devices, "torch_build", lambda: TorchBuild(version="2.13+cpu", cuda=None))
    assert make_plan(Options(device="auto"), 1).devices == ("emulated",)
    with pytest.raises(UsageError, match="built without CUDA"):
        make_plan(Options(device="cuda"), 1)


def test_jobs_follow_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(devices, "available_bytes", lambda: 64 * 1024**3)
    assert devices.default_jobs(on_gpu=False) == 16
    assert devices.default_jobs(on_gpu=True) == 8
    monkeypatch.setattr(devices, "available_bytes", lambda: 7 * 1024**3)
    assert devices.default_jobs(on_gpu=False) == 2
    monkeypatch.setattr(devices, "available_bytes", lambda: 0)
    assert devices.default_jobs(on_gpu=False) == 1
