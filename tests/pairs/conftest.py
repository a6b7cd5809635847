"""Loads the shipped pairs' solutions for the devices at hand.

``device`` runs a test on ``cpu`` (the solution's own CPU path), ``emulated`` (its CUDA source, run
on the CPU) and, marked ``gpu``, on ``cuda``. ``pair`` gives the reference's and the solution's
modules for that device.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = "needs a CUDA device: torch.cuda.is_available() is False"


def import_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def load_reference(problem: str) -> ModuleType:
    return import_file(ROOT / "problems" / problem / "reference.py", f"reference_{problem}")


@functools.cache
def load_on_gpu(problem: str) -> ModuleType:
    """The solution as a user imports it, built by torch's own load_inline."""
    return import_file(ROOT / "solutions" / problem / "solution.py", f"gpu_{problem}")


class Bench:
    """One device, and how to run a solution on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.torch_device = torch.device("cuda" if name == "cuda" else "cpu")

    def reference(self, problem: str) -> ModuleType:
        return load_reference(problem)

    def solution(self, problem: str) -> ModuleType:
        if self.name == "cuda":
            return load_on_gpu(problem)
        from cpu_builds import load_on_cpu  # beside this file

        return load_on_cpu(problem, emulated=self.name == "emulated")

    def pair(self, problem: str, *init, dtype: torch.dtype = torch.float32, **more):
        """Return (reference, new) with one state, perturbed so that no part of it is trivial."""
        model = self.reference(problem).Model(*init, **more)
        new = self.solution(problem).ModelNew(*init, **more)
        perturb(model)
        new.load_state_dict(model.state_dict(), strict=True)
        return tuple(m.to(self.torch_device, dtype) for m in (model, new))


def perturb(model: torch.nn.Module, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if name.endswith("running_var"):
                t.copy_(torch.rand(t.shape, generator=generator) + 0.25)
            elif t.is_floating_point():
                t.add_(torch.randn(t.shape, generator=generator) * 0.5)


def oracle_of(model: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """Return the float64 output of a copy of `model`; the model itself is left alone."""
    import copy

    with torch.no_grad():
        return copy.deepcopy(model).double()(*(t.double() for t in inputs))


def assert_precise(got, reference, oracle, factor: float = 32.0) -> None:
    """Check the harness's error budget: at most `factor` times the reference's own error."""
    assert got.shape == reference.shape
    assert got.dtype == reference.dtype
    error = (got.double() - oracle).abs().max().item()
    own = (reference.double() - oracle).abs().max().item()
    floor = 8 * torch.finfo(got.dtype).eps * oracle.abs().max().item()
    assert error <= max(factor * own, floor), f"{error=:.3g} {own=:.3g} {floor=:.3g}"


@pytest.fixture(params=["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench(request) -> Bench:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return Bench(request.param)


@pytest.fixture
def gpu() -> Bench:
    """For tests that only a GPU can run; mark them `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return Bench("cuda")


@pytest.fixture
def checks() -> SimpleNamespace:
    return SimpleNamespace(oracle_of=oracle_of, assert_precise=assert_precise, perturb=perturb)
