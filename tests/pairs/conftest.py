"""Loads the shipped pairs' solutions for the devices at hand.

``device`` runs a test on ``cpu`` (the solution's own CPU path), ``emulated`` (its CUDA source, run
on the CPU) and, marked ``gpu``, on ``cuda``. ``pair`` gives the reference's and the solution's
modules for that device.
"""

from __future__ import annotations

import copy
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.pairs import builds

NO_GPU = "needs a CUDA device: torch.cuda.is_available() is False"


class Bench:
    """One device, and how to run a solution on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.torch_device = torch.device("cuda" if name == "cuda" else "cpu")

    def reference(self, problem: str) -> ModuleType:
        return builds.reference(problem)

    def solution(self, problem: str) -> ModuleType:
        return builds.on_gpu(problem) if self.name == "cuda" else builds.on_cpu(problem)

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
def bench(request):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip(NO_GPU)
        yield Bench("cuda")
        return
    runner = builds.runner(emulated=request.param == "emulated")
    before = runner.launches
    yield Bench(request.param)
    findings = runner.take_findings()
    assert not findings, findings
    if request.param == "cpu":
        assert runner.launches == before, "the CPU path launched a kernel"


@pytest.fixture
def gpu() -> Bench:
    """For tests that only a GPU can run; mark them `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return Bench("cuda")


@pytest.fixture
def checks() -> SimpleNamespace:
    return SimpleNamespace(oracle_of=oracle_of, assert_precise=assert_precise, perturb=perturb)
