"""Wrong answers on purpose: a problem that would accept one cannot tell right from wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from harness.usercode.modules import differentiable, mapped, tensors_of

Impostor = Callable[[Any, Any, Any], Any]
"""(expected output, inputs, previous expected output) -> what the impostor would return."""


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
            # No boolean index: it would make 8 bytes of each dimension of each element.
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
    "the previous output": _previous,
    "one wrong tile": _tile,
    "a bfloat16 downcast": _downcast,
}
"""By the name that the verdict gives them."""
