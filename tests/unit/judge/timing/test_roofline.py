"""Bytes, flops and the bound that follows; and what is said of a GPU that NVML watches."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from harness.judge.reference.problem import Problem
from harness.judge.timing import nvml, roofline
from harness.judge.timing.roofline import Pass, Peaks

LINEAR = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32, 16)
    def forward(self, x):
        return self.linear(x)
def get_inputs():
    return [torch.randn(8, 32)]
"""
PEAKS = Peaks(copy_gb_s=4000.0, rate_tflop_s=100.0, rate_name="3 x float16")


@pytest.fixture
def linear(tmp_path: Path) -> Problem:
    path = tmp_path / "linear.py"
    path.write_text(LINEAR)
    return Problem(path, {}, torch.device("cpu"), 1)


def test_forward_counts_each_tensor_once(linear: Problem) -> None:
    (forward,) = roofline.passes(linear, "eval", linear.inputs(1), None)
    assert forward.moved_bytes == 4 * (8 * 32 + 16 * 32 + 16 + 8 * 16)
    assert forward.flops == 2 * 8 * 16 * 32


def test_backward_is_a_pass_of_its_own(linear: Problem) -> None:
    forward, backward = roofline.passes(linear, "train", linear.inputs(1), [torch.randn(8, 16)])
    assert forward.flops == 2 * 8 * 16 * 32
    assert backward.flops == 2 * forward.flops  # gradients of x and of the weight
    read = 8 * 32 + (16 * 32 + 16) + 8 * 16
    written = 8 * 32 + (16 * 32 + 16)
    assert backward.moved_bytes == 4 * (read + written)


def test_expanded_input_counts_its_own_bytes_only(linear: Problem) -> None:
    (forward,) = roofline.passes(linear, "eval", [torch.randn(1, 32).expand(8, 32)], None)
    assert forward.moved_bytes == 4 * (32 + 16 * 32 + 16 + 8 * 16)


def test_bound_adds_the_larger_term_of_each_pass() -> None:
    moving = Pass(moved_bytes=4_000_000_000, flops=0)  # 1 ms at 4 TB/s
    computing = Pass(moved_bytes=4_000_000, flops=300_000_000_000)  # 3 ms at 100 TFLOP/s
    bound = roofline.bound([moving, computing], PEAKS, candidate_ms=8.0)
    assert bound.bound_ms == pytest.approx(4.0)
    assert bound.share == pytest.approx(0.5)
    assert bound.limited_by == "3 x float16"
    assert roofline.bound([moving], PEAKS, 1.0).limited_by == "bandwidth"
    assert roofline.bound([moving], PEAKS, 1.0).rate_tflop_s is None


class FakeNvml(types.ModuleType):
    """An NVML whose answers the test sets."""

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.reasons = 0
        self.users: list[int] = []
        self.forbidden = False

    def nvmlInit(self) -> None:
        if self.forbidden:
            raise self.NVMLError("Insufficient Permissions")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-1234"
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:
        return {1: 1980, 2: 3201}[which]

    def nvmlDeviceGetTemperature(self, handle: str, which: int) -> int:
        return 40

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 300_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(pid=pid) for pid in self.users]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    module = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = types.SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return module


GPU = torch.device("cuda", 0)


def test_quiet_gpu_has_no_reason_to_discard(fake: FakeNvml) -> None:
    watch = nvml.GpuWatch(GPU)
    assert watch.condition() == ""
    record = watch.record()
    assert record["sm_clock_mhz"] == [1980, 1980]
    assert record["power_w"] == [300, 300]
    assert record["other_processes"] == 0
    assert watch.blind == ""


def test_a_card_is_told_from_others_of_its_kind(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = nvml.GpuWatch(GPU).card
    assert len(one) == 12 and "1234" not in one
    assert nvml.GpuWatch(GPU).card == one
    other = types.SimpleNamespace(uuid="1235")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: other)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # NVML is not needed for it
    assert nvml.GpuWatch(GPU).card not in ("", one)


def test_a_card_that_torch_does_not_name_is_said(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: object())
    watch = nvml.GpuWatch(GPU)
    assert watch.card == "" and "which GPU" in watch.blind


@pytest.mark.parametrize(
    ("reasons", "said"),
    [(0x40, "hardware thermal slowdown"), (0x80, "hardware power brake"), (0x04, ""), (0x01, "")],
)
def test_throttled_block_is_told(fake: FakeNvml, reasons: int, said: str) -> None:
    fake.reasons = reasons
    watch = nvml.GpuWatch(GPU)
    assert watch.condition() == said
    assert watch.record()["power_capped"] is (reasons == 0x04)


def test_other_processes_are_counted_and_ours_are_not(fake: FakeNvml) -> None:
    import os

    stranger = (1 << 22) - 1  # no process of this machine, and none of this run
    fake.users = [os.getpid(), os.getppid(), stranger]
    watch = nvml.GpuWatch(GPU)
    watch.condition()
    assert watch.record()["other_processes"] == 1


def test_without_permission_it_says_so_and_goes_on(fake: FakeNvml) -> None:
    fake.forbidden = True
    watch = nvml.GpuWatch(GPU)
    assert watch.condition() == ""
    assert "Insufficient Permissions" in watch.blind
    assert watch.record() == {"blind": watch.blind}


def test_without_nvml_it_says_so_and_goes_on(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    watch = nvml.GpuWatch(GPU)
    assert watch.condition() == ""
    assert "nvidia-ml-py is not installed" in watch.blind


def test_cpu_has_nothing_to_watch() -> None:
    watch = nvml.GpuWatch(torch.device("cpu"))
    assert watch.condition() == ""
    assert watch.record() == {}
