"""Wrong answers on purpose: a problem that accepts one cannot tell right from wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from harness.domain import Status
from harness.judge.check import compare
from harness.judge.check.precision import Standard
from harness.judge.check.structure import same_bits, structure
from harness.judge.reference import similarity
from harness.usercode.modules import differentiable, mapped, tensors_of

PREVIOUS, _DOWNCAST = "the previous output", "a bfloat16 downcast"
REDUCED = ("tf32", "bf16", "fp16")
_SAMPLE = 1 << 20
"""Elements of a tensor, evenly spread, on which most impostors are exposed."""

Impostor = Callable[[Any, Any, Any], Any]
"""(expected output, inputs, previous expected output) -> the impostor's output."""


def _zeros(expected: Any, inputs: Any, previous: Any) -> Any:
    return mapped(expected, torch.zeros_like)


def _first_input(expected: Any, inputs: Any, previous: Any) -> Any:
    candidates = tensors_of(inputs)

    def pick(t: torch.Tensor) -> torch.Tensor:
        for x in candidates:
            if x.shape == t.shape:
                return x.to(t.dtype)
        return torch.zeros_like(t)

    return mapped(expected, pick)


def _mean(expected: Any, inputs: Any, previous: Any) -> Any:
    def fill(t: torch.Tensor) -> torch.Tensor:
        if not t.is_floating_point() or t.numel() < 2:
            return torch.zeros_like(t)  # the mean of one number is that number: no impostor
        finite = torch.isfinite(t)
        mean = torch.where(finite, t, 0).double().mean()
        return torch.where(finite, mean.to(t.dtype), t)

    return mapped(expected, fill)


def _previous(expected: Any, inputs: Any, previous: Any) -> Any:
    return previous


def _tile(expected: Any, inputs: Any, previous: Any) -> Any:
    def spoil(t: torch.Tensor) -> torch.Tensor:
        flat = t.clone().reshape(-1)
        count = max(1, flat.numel() // 64)
        part = flat[-count:]
        if t.dtype is torch.bool:
            flat[-count:] = ~part
        elif differentiable(t):
            finite = torch.isfinite(t)
            # A boolean index would take 8 bytes per dimension of each element.
            size = torch.where(finite, t.abs(), 0.0).max() if bool(finite.any()) else 1.0
            del finite
            flat[-count:] = part + 0.05 * size + 0.01
        else:
            flat[-count:] = part + 1
        return flat.view(t.shape)

    return mapped(expected, lambda t: spoil(t) if t.numel() else t)


def _downcast(expected: Any, inputs: Any, previous: Any) -> Any:
    def round_(t: torch.Tensor) -> torch.Tensor:
        lower = torch.bfloat16 if t.dtype is torch.float32 else torch.float32
        if t.dtype not in (torch.float32, torch.float64):
            return torch.zeros_like(t)
        return t.to(lower).to(t.dtype)

    return mapped(expected, round_)


IMPOSTORS: dict[str, Impostor] = {
    "zeros": _zeros,
    "its first input": _first_input,
    "the mean": _mean,
    PREVIOUS: _previous,
    "one wrong tile": _tile,
    _DOWNCAST: _downcast,
}
"""By the name that the verdict gives them."""


def expose(
    survivors: set[str],
    expected: Any,
    oracle: Any,
    inputs: Any,
    previous: Any,
    standard: Standard,
    phase: str,
) -> None:
    """Take every impostor out of the survivors that the comparison refuses in one call.

    Args:
        survivors: names of impostors that no call has exposed so far.
        expected: the reference's output.
        oracle: the oracle's.
        inputs: of the call.
        previous: the reference's output in the call before; None where it says nothing.
        standard: bounds of the comparison.
        phase: mode and trial, for the record.
    """
    for name in sorted(survivors):
        if name == PREVIOUS and previous is None:
            continue
        fake = IMPOSTORS[name](expected, inputs, previous)
        # The solution may compute in fewer bits, or the reference itself rounds to bfloat16.
        right = name == _DOWNCAST and (standard.precision in REDUCED or same_bits(fake, expected))
        if right or _is_refused(fake, expected, oracle, standard, phase):
            survivors.discard(name)


def _is_refused(fake: Any, expected: Any, oracle: Any, standard: Standard, phase: str) -> bool:
    if structure(fake, similarity.plain(expected)) is not None:
        return True
    triples = similarity.triples(fake, expected, oracle, "output")
    return any(is_grossly_wrong(g, r, o, standard) for _, g, r, o in triples) or any(
        compare.tensor(g, r, o, standard, phase, what).mismatch is not None
        for what, g, r, o in triples
    )


def is_grossly_wrong(
    fake: torch.Tensor, reference: torch.Tensor, oracle: torch.Tensor, standard: Standard
) -> bool:
    """Return whether a few elements of a large tensor are enough to refuse it.

    A comparison of the whole tensor reads gigabytes some fifty times. An element that is refused
    here is too far off for any slack that the whole tensor's rounding errors could give.
    """
    step = fake.numel() // _SAMPLE
    if step < 2 or standard.precision in REDUCED:
        return False
    got, want, exact = (t.reshape(-1)[::step] for t in (fake, reference, oracle))
    found = compare.tensor(got, want, exact, standard, "sample", "output").mismatch
    if found is None or found.got is None or found.expected is None:
        return False
    if found.status is Status.NOT_FINITE or not differentiable(reference):
        return True
    largest = float(torch.where(torch.isfinite(exact), exact.abs(), 0.0).max())
    gross = standard.policy.gross_part * largest
    return found.status is Status.WRONG_VALUES and abs(found.got - found.expected) > gross
