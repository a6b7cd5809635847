"""``--doctor`` names each problem with its remedy, with and without a GPU."""

from __future__ import annotations

import pytest

from harness.cli import doctor
from harness.machine.environment import TorchBuild, describe_environment
from harness.machine.gpus import Gpu, Gpus, find_gpus

H200 = Gpu(index=0, name="NVIDIA H200", uuid="x", capability=(9, 0), memory_bytes=150_000_000_000)


def page(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = doctor.main()
    return code, capsys.readouterr().out


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds of importing torch."""
    monkeypatch.setattr(doctor, "_error_of", lambda *command: "")
    said = doctor.said
    asked = doctor._SHARED_USER
    monkeypatch.setattr(doctor, "said", lambda *words: "" if asked in words else said(*words))


def test_page_covers_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = page(capsys)
    assert code == 0
    for what in ("python", "torch", "C++ compiler", "nvcc", "GPU", "cache", "memory", "sandbox"):
        assert what in text
    assert "pairs can be evaluated here on:" in text


def test_missing_compiler_is_a_fault_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "find_compiler", lambda: None)
    code, text = page(capsys)
    assert code == 1
    assert "FAULT  C++ compiler" in text
    assert "apt-get install g++" in text


def test_missing_torch_is_a_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "torch_build", lambda: None)
    code, text = page(capsys)
    assert code == 1
    assert "pip install torch" in text


def test_toolkit_of_another_major_version_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "torch_build", lambda: TorchBuild(version="2.11", cuda="13.0"))
    monkeypatch.setattr(doctor, "find_nvcc", lambda: "/usr/bin/nvcc")
    monkeypatch.setattr(doctor, "nvcc_version", lambda nvcc: "12.4")
    _, text = page(capsys)
    assert "set CUDA_HOME to CUDA 13.0" in text


def test_gpu_is_described_and_what_hinders_its_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpus(devices=(H200,), cuda="12.8")
    monkeypatch.setattr(doctor, "find_gpus", lambda: gpus)
    monkeypatch.setattr(doctor, "torch_build", lambda: TorchBuild(version="2.11", cuda="13.0"))
    _, text = page(capsys)
    assert "NVIDIA H200, sm_90, 140 GiB" in text
    assert "a newer driver, or a torch built for CUDA 12.8" in text


def test_architecture_that_torch_lacks_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpus(devices=(H200,), cuda="13.0")
    monkeypatch.setattr(doctor, "find_gpus", lambda: gpus)
    monkeypatch.setattr(doctor, "torch_build", lambda: TorchBuild(version="2.11", cuda="13.0"))
    monkeypatch.setattr(doctor, "said", lambda *command: "True sm_75 sm_80 sm_120")
    _, text = page(capsys)
    assert "it lacks sm_90" in text
    monkeypatch.setattr(doctor, "said", lambda *command: "True sm_80 sm_90")
    _, text = page(capsys)
    assert "it lacks" not in text


def test_gpus_are_asked_for_without_touching_this_process() -> None:
    gpus = find_gpus()
    assert bool(gpus.devices) != bool(gpus.problem)


def test_environment_names_what_a_record_needs() -> None:
    environment = describe_environment(("NVIDIA H200",))
    assert environment["gpu"] == ["NVIDIA H200"]
    assert environment["torch"]
    assert environment["cpu"]
    assert {"driver", "cuda", "compiler", "commit", "nvcc", "python"} <= environment.keys()


def test_candidate_that_shares_the_judges_user_is_said_with_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "said", lambda *words: "root lacks CAP_SETUID here\n")
    _, text = page(capsys)
    assert "note  sandbox" in text
    assert "root lacks CAP_SETUID here" in text
