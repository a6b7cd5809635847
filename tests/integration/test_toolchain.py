"""A built extension is found again by whoever looks for it, judge or worker, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.judge.workers.cache import ExtensionCache
from harness.machine.toolchain import toolchain
from harness.worker.build import content_key


def _machine(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])


def test_four_gpus_of_a_kind_build_what_one_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, (9, 0))
    one, key = toolchain("cuda"), content_key("x", {}, "cuda")
    _machine(monkeypatch, (9, 0), (9, 0), (9, 0), (9, 0))
    assert toolchain("cuda") == one
    assert content_key("x", {}, "cuda") == key
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")  # what torch makes of what it sees
    assert toolchain("cuda") == one


def test_another_gpu_is_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, (9, 0))
    one, key = toolchain("cuda"), content_key("x", {}, "cuda")
    _machine(monkeypatch, (8, 0), (9, 0))
    assert toolchain("cuda") != one
    assert content_key("x", {}, "cuda") != key
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    assert toolchain("cuda")["arch"] == "9.0a"


def test_what_another_tool_chain_built_does_not_count_as_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the candidate's worker would compile at every run: what it builds is thrown away."""
    _machine(monkeypatch, (9, 0))
    solution = tmp_path / "solution.py"
    solution.write_text("")
    cache = ExtensionCache(tmp_path / "cache", solution, "cuda")
    build_folder = cache.build_folder(None)
    key = content_key("x", {}, "cuda")
    (build_folder / key).mkdir()
    (build_folder / key / "done").touch()
    assert not cache.complete()
    cache.adopt(build_folder, [key], [], failed=False)
    assert cache.complete()
    _machine(monkeypatch, (8, 0))
    assert not cache.complete()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    assert cache.complete()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert not cache.complete()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    assert not ExtensionCache(tmp_path / "cache", solution, "cuda", ["sm_90"]).complete()
