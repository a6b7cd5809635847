"""nvcc from PyPI: when it is fetched, in which version, and what torch needs around it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.machine import environment, packaged_nvcc
from harness.machine.environment import TorchBuild


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip's packages leave: lib, no lib64, no unversioned library."""
    folder = tmp_path / "nvidia" / "cu13"
    for name in ("bin/nvcc", "bin/nvcc.profile", "bin/ptxas", "include/cuda.h", "nvvm/bin/cicc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "lib").mkdir()
    (folder / "lib" / "libcudart.so.13").write_text("runtime")
    (folder / "lib" / "libcudart_static.a").write_text("static")
    monkeypatch.setattr(packaged_nvcc, "packaged_toolkit", lambda: folder)
    monkeypatch.setattr(packaged_nvcc, "find_nvcc", lambda: str(folder / "bin" / "nvcc"))
    return folder


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: str | None, driver: str | None, nvcc: str | None
) -> None:
    build = TorchBuild(version="2.13.0", cuda=cuda)
    monkeypatch.setattr(packaged_nvcc, "torch_build", lambda: build)
    monkeypatch.setattr(packaged_nvcc, "driver_version", lambda: driver)
    monkeypatch.setattr(packaged_nvcc, "find_nvcc", lambda: nvcc)


def test_home_has_the_names_that_torch_links_with(toolkit: Path, tmp_path: Path) -> None:
    home = packaged_nvcc.linked_home(tmp_path)
    assert home is not None
    for name in ("libcudart.so", "libcudart.so.13"):
        assert (home / "lib64" / name).read_text() == "runtime"
    assert (home / "lib64" / "libcudart_static.a").read_text() == "static"
    assert (home / "include" / "cuda.h").is_file()
    assert (home / "nvvm" / "bin" / "cicc").is_file()
    assert not (home / "bin" / "nvcc").is_symlink(), "it would look for lib64 where it comes from"
    assert packaged_nvcc.linked_home(tmp_path) == home


def test_home_follows_another_version(toolkit: Path, tmp_path: Path) -> None:
    before = packaged_nvcc.linked_home(tmp_path)
    (toolkit / "lib" / "libcudart.so.13").rename(toolkit / "lib" / "libcudart.so.14")
    after = packaged_nvcc.linked_home(tmp_path)
    assert after is not None
    assert after != before
    assert (after / "lib64" / "libcudart.so").read_text() == "runtime"


def test_installed_toolkit_comes_first(
    toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged_nvcc, "find_nvcc", lambda: "/usr/local/cuda/bin/nvcc")
    assert packaged_nvcc.linked_home(tmp_path) is None


@pytest.mark.parametrize(
    ("cuda", "driver", "nvcc", "needed"),
    [
        ("13.0", None, None, True),
        (None, "580.65.06", None, True),
        (None, None, None, False),
        ("13.0", "580.65.06", "/usr/bin/nvcc", False),
    ],
)
def test_nvcc_is_fetched_where_only_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    driver: str | None,
    nvcc: str | None,
    needed: bool,
) -> None:
    machine(monkeypatch, cuda=cuda, driver=driver, nvcc=nvcc)
    asked: list[list[str]] = []

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert packaged_nvcc.main([]) == 0
    assert bool(asked) is needed
    if needed:
        assert asked[0][-1] == "cuda-toolkit[nvcc,cudart,cccl]==13.0.*"


def test_version_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda="13.2", driver=None, nvcc=None)
    assert packaged_nvcc.requirement() == "cuda-toolkit[nvcc,cudart,cccl]==13.2.*"


def test_version_that_pypi_has_no_nvcc_of_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, cuda="12.8", driver="580.65.06", nvcc=None)
    assert packaged_nvcc.main([]) == 0, "make goes on: the CPU runner needs no nvcc"
    assert "Next: install the CUDA toolkit 12.8" in capsys.readouterr().err
    assert packaged_nvcc.main(["--anyway"]) == 1


def test_failed_installation_says_the_command_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, cuda="13.0", driver=None, nvcc=None)
    monkeypatch.setattr(subprocess, "run", lambda c, **more: subprocess.CompletedProcess(c, 1))
    assert packaged_nvcc.main([]) == 0
    assert "-m pip install 'cuda-toolkit[nvcc,cudart,cccl]==13.0.*'" in capsys.readouterr().err


def test_nvcc_of_a_package_is_found_last(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "packaged_toolkit", lambda: toolkit)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert environment.find_nvcc() == str(toolkit / "bin" / "nvcc")
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvcc")
    assert environment.find_nvcc() == "/usr/bin/nvcc"
