"""Loads the shipped pairs' solutions for the devices at hand.

``bench`` runs a test on ``emulated`` (the solution's CUDA source, run on the CPU) and, marked
``gpu``, on ``cuda``. ``off_gpu`` is a solution on plain CPU tensors, where it calls PyTorch and
launches nothing. ``pair`` gives the reference's and the solution's modules for that device.
"""

from __future__ import annotations

import copy
from types import ModuleType, SimpleNamespace

import pytest
import torch

from harness.usercode.pretend_cuda import pretend
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
                t.add_((torch.randn(t.shape, generator=generator) * 0.5).to(t.device))


def oracle_of(model: torch.nn.Module, *inputs: torch.Tensor):
    """Return (output, state after it) of a float64 copy of `model`, which is left alone."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        output = exact(*(t.double() for t in inputs))
    return output, exact.state_dict()


def assert_precise(got, reference, oracle, what: str = "output") -> None:
    """Check the harness's error budget: at most 32 times the reference's own error, or 8 eps."""
    assert got.shape == reference.shape
    assert got.dtype == reference.dtype
    error = (got.double() - oracle).abs().max().item()
    own = (reference.double() - oracle).abs().max().item()
    # The oracle is no more precise than float64 itself: leave room for the order of a sum.
    epsilons = 1024 if got.dtype == torch.float64 else 8
    floor = epsilons * torch.finfo(got.dtype).eps * oracle.abs().max().item()
    assert error <= max(32 * own, floor), f"{what}: {error=:.3g} {own=:.3g} {floor=:.3g}"


def assert_call(model, new, *inputs: torch.Tensor) -> None:
    """Call both from the reference's state and check the output and the state after it."""
    new.load_state_dict(model.state_dict(), strict=True)  # its rounding is not the solution's
    oracle, exact = oracle_of(model, *inputs)
    with torch.no_grad():
        want, got = model(*inputs), new(*inputs)
    if want.numel():
        assert_precise(got, want, oracle)
    ours = new.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert_precise(ours[name], value, exact[name], name)
        else:
            assert torch.equal(ours[name], value), name


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench(request):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip(NO_GPU)
        yield Bench("cuda")
        return
    runner = builds.runner(emulated=True)
    with pretend(answer_cuda=True):
        yield Bench("emulated")
    findings = runner.take_findings()
    assert not findings, findings


@pytest.fixture
def off_gpu():
    """A bench of CPU tensors that are what they seem; a kernel launch fails the test."""
    runner = builds.runner(emulated=False)
    before = runner.launches
    yield Bench("cpu")
    assert not runner.take_findings()
    assert runner.launches == before, "off the GPU the solution launched a kernel"


@pytest.fixture
def gpu() -> Bench:
    """For tests that only a GPU can run; mark them `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return Bench("cuda")


@pytest.fixture
def checks() -> SimpleNamespace:
    return SimpleNamespace(assert_call=assert_call, assert_precise=assert_precise, perturb=perturb)
