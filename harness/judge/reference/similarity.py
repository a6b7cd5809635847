"""Compares two outputs: same form, same bits, near, finite in the same places."""

from __future__ import annotations

import math
from typing import Any

import torch

from harness.usercode.modules import differentiable, tensors_of

_CHUNK = 1 << 25
_NEAR, _NEAR_LOW = 1e-4, 2e-2
"""Far above the rounding of float32 (6e-8) and above that of bfloat16 (4e-3), far below 1."""


def triples(
    got: Any, reference: Any, oracle: Any, path: str
) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return (name, got, reference, oracle) for each tensor of three equal structures."""
    if isinstance(reference, torch.Tensor):
        return [(path, got, reference, oracle)]
    if isinstance(reference, dict):
        keys = [(k, f"{path}[{k!r}]") for k in sorted(reference, key=repr)]
    elif isinstance(reference, (list, tuple)):
        keys = [(i, f"{path}[{i}]") for i in range(len(reference))]
    else:
        return []
    return [t for k, p in keys for t in triples(got[k], reference[k], oracle[k], p)]


def plain(value: Any) -> Any:
    """Return a value with named tuples as tuples, as they come over the wire."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    return [plain(v) for v in value] if isinstance(value, list) else value


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of one shape hold the same bits; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    if not differentiable(a):
        return False
    return bool(((a == b) | (torch.isnan(a) & torch.isnan(b))).all())


def same_shapes(a: Any, b: Any) -> bool:
    """Return whether two values hold as many tensors, of the same shapes in order."""
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) and all(
        x.shape == y.shape for x, y in zip(left, right, strict=False)
    )


def near(a: Any, b: Any, relative: float = _NEAR) -> bool:
    """Return whether two outputs are the same up to a rounding-sized part of the largest value."""
    left, right = tensors_of(a), tensors_of(b)
    if not same_shapes(a, b):
        return False
    for x, y in zip(left, right, strict=False):
        if not differentiable(x):
            if not torch.equal(x, y):
                return False
            continue
        if x.numel() == 0 or (x.dtype is y.dtype and torch.equal(x, y)):
            continue
        x, y = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (x, y))
        low = min(x.element_size(), y.element_size()) < 4
        bound = max(relative, _NEAR_LOW) if low else relative
        gap = size = 0.0
        for a, b in zip(x.reshape(-1).split(_CHUNK), y.reshape(-1).split(_CHUNK), strict=False):
            if not (all_finite(a) and all_finite(b)):
                finite = torch.isfinite(b)
                if not torch.equal(torch.isfinite(a), finite):
                    return False
                a, b = (torch.where(finite, t, 0) for t in (a, b))
            size = max(size, largest(b))
            gap = max(gap, largest(a.double() - b))
        if gap > bound * max(size, 1e-30):
            return False
    return True


def largest(t: torch.Tensor) -> float:
    """Return the largest absolute value, in one pass; NaN where there is a NaN."""
    return float(torch.linalg.vector_norm(t, math.inf)) if t.numel() else 0.0


def all_finite(t: torch.Tensor) -> bool:
    """Return whether a floating or complex tensor holds neither NaN nor infinity, in one pass."""
    return math.isfinite(largest(t))


def equally_finite(a: Any, b: Any) -> bool:
    """Return whether two outputs are finite in the same places."""
    return all(
        (all_finite(x) and all_finite(y)) or torch.equal(torch.isfinite(x), torch.isfinite(y))
        for x, y in zip(tensors_of(a), tensors_of(b), strict=False)
        if differentiable(x)
    )


def has_infinity(output: Any) -> bool:
    """Return whether any floating tensor holds an infinity."""
    return any(
        not all_finite(t) and bool(torch.isinf(t).any())
        for t in tensors_of(output)
        if differentiable(t)
    )


def as_finite(output: Any, infinite_is_normal: bool) -> bool:
    """Return whether output has NaN nowhere, and infinities only where they are normal."""
    for t in tensors_of(output):
        if differentiable(t) and not all_finite(t):
            if bool(torch.isnan(t).any()):
                return False
            if not infinite_is_normal and not bool(torch.isfinite(t).all()):
                return False
    return True
