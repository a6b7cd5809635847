"""Facts about one call of the reference, found before it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from harness.judge.reference.problem import Problem
from harness.judge.reference.seeds import derived
from harness.judge.timing import roofline
from harness.judge.timing.clock import ClockPolicy
from harness.judge.timing.timed_outputs import alike
from harness.usercode.modules import differentiable, tensors_of, values_of, write_state

_LARGE_BYTES = 1 << 30
_SETTLE_S = 0.3
"""Pause after memory was freed. For some 20 ms after 100 GiB had been freed, copies ran at 3.8
instead of 4.25 TB/s (H200, driver 580.159.04, 2026-11-21). So nothing is freed between batches."""

DrawGrads = Callable[[int], list[torch.Tensor | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Facts about one call.

    Attributes:
        poison: sizes of the tensors that a call returns, bytes.
        large: whether a call's tensors take gigabytes.
        repeats: whether a second process gives the same outputs for the same inputs: nothing is
            carried over from the call before, and random numbers come from seeded generators.
        draws: whether the reference draws random numbers: then each timed call gets a seed.
        moving: names of the tensors of the state that a call changes.
        values: how many values of an output are no tensors.
        draw_grads: draws output gradients for a seed; None without gradients.
        work: passes with their bytes and flops; empty without a GPU.
        peaks: what the device can do, None without a GPU.
    """

    poison: tuple[int, ...]
    large: bool
    repeats: bool
    draws: bool
    moving: frozenset[str]
    values: int
    draw_grads: DrawGrads | None
    work: tuple[roofline.Pass, ...]
    peaks: roofline.Peaks | None


def probe(problem: Problem, mode: str, seed: int, precision: str, policy: ClockPolicy) -> Probe:
    """Call the reference a few times and measure the device's peaks.

    Args:
        problem: on its device.
        mode: forward, eval or train.
        seed: of the inputs.
        precision: what the candidate is held to: decides which matrix rate counts.
        policy: says when two outputs are the same.
    """
    inputs = problem.inputs(derived(seed, "timed", 0, 0))
    outcome = problem.call(problem.reference, mode, inputs, 0, None)
    outputs = tensors_of(outcome.output)
    forms = [(tuple(o.shape), o.dtype) if differentiable(o) else None for o in outputs]
    poison = [t.numel() * t.element_size() for t in outputs]
    into = [t.numel() * t.element_size() for t in tensors_of(inputs)]
    large = sum(poison) + sum(into) > _LARGE_BYTES
    before = {n: t.detach().clone() for n, t in problem.state().items()}
    calling = partial(_outputs, problem, mode, inputs, private=large)
    calling(1)  # a state that is carried over moves on
    state_now = problem.state()
    moving = frozenset(n for n, t in before.items() if not torch.equal(t, state_now[n]))
    draws = not _same(outputs, calling(2), policy)
    repeats = not draws or _same(outputs, calling(0), policy)
    write_state(problem.reference, before)
    values = len(values_of(outcome.output))
    del outputs, outcome, calling
    draw = _drawing(problem.device, forms) if mode == "train" else None
    on_gpu = problem.device.type == "cuda"
    work = roofline.passes(problem, mode, inputs, draw(0) if draw else None) if on_gpu else []
    write_state(problem.reference, before)
    floating = [t.dtype for t in tensors_of(inputs) if t.is_floating_point()]
    dtype = max(floating, key=lambda d: d.itemsize) if floating else torch.float32
    del inputs
    peaks = None
    if on_gpu:
        torch.cuda.empty_cache()
        settle(problem.device)
        matrix = any(p.flops for p in work)
        peaks = roofline.peaks(problem.device, dtype, precision, matrix=matrix)
        torch.cuda.empty_cache()
    return Probe(
        # A gradient call returns the gradients of its inputs beside its outputs.
        poison=tuple(poison + (into if draw else [])),
        large=large,
        repeats=repeats,
        draws=draws and repeats,
        moving=moving,
        values=values,
        draw_grads=draw,
        work=tuple(work),
        peaks=peaks,
    )


def _outputs(
    problem: Problem, mode: str, inputs: list[Any], rng: int, *, private: bool
) -> list[torch.Tensor]:
    called = problem.call(problem.reference, mode, inputs, rng, None, private=private)
    return tensors_of(called.output)


def _same(outputs: list[torch.Tensor], others: list[torch.Tensor], policy: ClockPolicy) -> bool:
    pairs = zip(outputs, others, strict=True)
    return all(alike(a, b, policy) for a, b in pairs if differentiable(a))


def settle(device: torch.device) -> None:
    """Wait until freed memory no longer costs bandwidth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        time.sleep(_SETTLE_S)


def _drawing(
    device: torch.device, forms: list[tuple[tuple[int, ...], torch.dtype] | None]
) -> DrawGrads:
    def one(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator(device=device).manual_seed(seed)
        wide = dtype if dtype is torch.float64 else torch.float32
        return torch.randn(shape, generator=generator, device=device, dtype=wide).to(dtype)

    return lambda seed: [
        None if form is None else one(derived(seed, "timed grad", i), *form)
        for i, form in enumerate(forms)
    ]
