"""Decides whether what a candidate returned is what the reference computes.

Two bounds on every floating tensor, and both must hold: torch.allclose at the pair's tolerance,
and an error budget against the float64 oracle, relative to the error that the reference itself
makes. The first is what users know; the second sees TF32 and float16 inside a float32 problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from harness.domain import Check, HarnessError, Status
from harness.judge.precision import (
    CHUNK,
    PRECISION_OF,
    UNIT_ROUNDOFF,
    Sensitivity,
    Standard,
    budget_of,
    effective,
    looks_like_rounding,
    lost_slice,
    rms_within,
    spoken,
    stream,
    unit_roundoff,
)
from harness.wire import Untransferable


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """The first reason why a value is not accepted.

    Attributes:
        status: what it means for the candidate.
        message: one sentence.
        what: name of the tensor.
        index: of the worst element, None where there is none.
        got, expected: the worst element's values.
        wrong: boolean tensor of elements beyond the tolerance, on the CPU where small enough.
        precision: effective precision seen, None where values were not compared.
    """

    status: Status
    message: str
    what: str = "output"
    index: tuple[int, ...] | None = None
    got: float | None = None
    expected: float | None = None
    wrong: torch.Tensor | None = None
    precision: str | None = None


def structure(got: Any, expected: Any, path: str = "output") -> Mismatch | None:
    """Return the first difference of nesting, shape or dtype, or None.

    Args:
        got: the candidate's value, as it came over the wire.
        expected: the reference's value.
        path: how messages name it.
    """
    if isinstance(got, Untransferable):
        return Mismatch(
            status=Status.WRONG_STRUCTURE,
            message=f"{path} is a {got.kind}, not a plain tensor",
            what=path,
        )
    if isinstance(expected, torch.Tensor):
        return _tensor_structure(got, expected, path)
    plain = tuple if isinstance(expected, tuple) else type(expected)
    if isinstance(got, torch.Tensor) or type(got) is not plain:
        return Mismatch(
            status=Status.WRONG_STRUCTURE,
            message=f"{path} is {_kind(got)}, the reference returns {_kind(expected)}",
            what=path,
        )
    if isinstance(expected, dict):
        if set(got) != set(expected):
            return Mismatch(
                status=Status.WRONG_STRUCTURE,
                message=f"{path} has keys {sorted(map(str, got))}, the reference's are "
                f"{sorted(map(str, expected))}",
                what=path,
            )
        pairs = [(got[k], expected[k], f"{path}[{k!r}]") for k in expected]
    elif isinstance(expected, (list, tuple)):
        if len(got) != len(expected):
            return Mismatch(
                status=Status.WRONG_STRUCTURE,
                message=f"{path} has {len(got)} entries, the reference's has {len(expected)}",
                what=path,
            )
        pairs = [
            (g, e, f"{path}[{i}]") for i, (g, e) in enumerate(zip(got, expected, strict=False))
        ]
    else:
        return _scalar(got, expected, path)
    for g, e, p in pairs:
        found = structure(g, e, p)
        if found:
            return found
    return None


def _scalar(got: Any, expected: Any, path: str) -> Mismatch | None:
    if got == expected or (got != got and expected != expected):
        return None
    if isinstance(expected, float) and math.isclose(got, expected, rel_tol=1e-4, abs_tol=1e-4):
        return None
    return Mismatch(
        status=Status.WRONG_VALUES, message=f"{path} is {got!r}, expected {expected!r}", what=path
    )


def _tensor_structure(got: Any, expected: torch.Tensor, path: str) -> Mismatch | None:
    if not isinstance(got, torch.Tensor):
        return Mismatch(
            status=Status.WRONG_STRUCTURE,
            message=f"{path} is {_kind(got)}, the reference returns {_kind(expected)}",
            what=path,
        )
    if got.shape != expected.shape:
        return Mismatch(
            status=Status.WRONG_SHAPE,
            message=f"{path} has shape {list(got.shape)}, expected {list(expected.shape)}",
            what=path,
        )
    if got.dtype != expected.dtype:
        return Mismatch(
            status=Status.WRONG_DTYPE,
            message=f"{path} is {got.dtype}, expected {expected.dtype}",
            what=path,
        )
    return None


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a tensor"
    return "None" if value is None else f"a {type(value).__name__}"


def tensor(
    got: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    standard: Standard,
    phase: str,
    what: str,
    sensitivity: Sensitivity | None = None,
) -> tuple[Check, Mismatch | None]:
    """Compare one tensor of equal shape and dtype with the reference's and the oracle's.

    Args:
        got: candidate, any dtype.
        reference: same shape and dtype, computed by the reference in its own precision.
        oracle: same shape, float64 where floating. NaN here is no wildcard: non-finite values
            must match in place wherever reference and oracle agree on them.
        standard: bounds.
        phase: mode and trial, for the record.
        what: name of the tensor, for the record.
        sensitivity: how far the oracle moves when its inputs are rounded once more.

    Returns:
        The figures, and the reason for refusal or None.

    Source: the allclose bound is |got - expected| <= atol + rtol * |expected|.
    """
    if got.is_complex():
        got, reference, oracle = (
            torch.view_as_real(t.resolve_conj()) for t in (got, reference, oracle)
        )
    if got.shape != reference.shape or got.shape != oracle.shape:
        raise HarnessError(f"{what}: comparing shapes {got.shape} and {oracle.shape}")
    if not reference.is_floating_point():
        return _exact(got, reference, oracle, phase, what)
    policy = standard.policy
    atol, rtol = policy.tolerance(reference.dtype)
    atol = atol if standard.atol is None else standard.atol
    rtol = rtol if standard.rtol is None else standard.rtol
    flat = (got.reshape(-1), reference.reshape(-1), oracle.reshape(-1))
    not_finite = _non_finite(flat, tuple(got.shape), what)
    if not_finite:
        return Check(
            phase=phase, what=what, max_abs_diff=None, error=None, budget=None, precision=None
        ), not_finite
    declared = standard.precision or PRECISION_OF[reference.dtype]
    if declared in ("tf32", "bf16", "fp16") and reference.dtype == torch.float32:
        widened = 8 * UNIT_ROUNDOFF[declared]
        atol, rtol = max(atol, widened), max(rtol, widened)
    sums = stream(flat, atol, rtol)
    if sensitivity is None or reference.dtype in (torch.float16, torch.bfloat16):
        # 16-bit inputs are exact in their few bits, and sums belong into float32.
        sensitivity, shaken = Sensitivity(), 0.0
    else:
        exact = torch.nan_to_num(oracle.double(), nan=0.0, posinf=0.0, neginf=0.0)
        shaken = sensitivity.largest(exact, unit_roundoff(reference.dtype))
        del exact
    # The largest of many errors is some five times their root mean square.
    moved = 0.2 * shaken * UNIT_ROUNDOFF[declared] / unit_roundoff(reference.dtype)
    budget = budget_of(sums, reference.dtype, declared, standard)
    budget = max(budget, policy.sensitivity_factor * shaken)
    slack = 4 * max(sums.max_reference_error, shaken)
    if declared != PRECISION_OF[reference.dtype]:
        # Products rounded to a declared precision err relative to the sum's size, not to each y.
        slack = max(slack, budget)
    close = sums.worst <= slack
    within = sums.max_error <= budget and rms_within(sums, reference.dtype, declared, moved, policy)
    lost = (
        lost_slice(got, reference, oracle, policy, shaken, forward=what.startswith("output"))
        if within
        else ""
    )
    if declared == PRECISION_OF[reference.dtype] and lost:
        within = False
    precision = effective(sums, within, declared)
    check = Check(
        phase=phase,
        what=what,
        max_abs_diff=sums.max_diff,
        error=sums.max_error,
        budget=budget,
        precision=precision,
    )
    if close and within:
        return check, None
    index = _unravel(sums.worst_at, tuple(got.shape))
    g, e = float(flat[0][sums.worst_at]), float(flat[2][sums.worst_at])
    wrong = _wrong_mask(got, oracle, atol, rtol, slack) if not close else None
    where = f"{what}{list(index)} is {g:.7g}, expected {e:.7g}"
    worst = lost or f"worst {where}"
    if close or (precision in ("tf32", "fp16", "bf16") and looks_like_rounding(got, oracle, sums)):
        return check, Mismatch(
            status=Status.PRECISION_LOST,
            message=(
                f"effective precision {spoken(precision)} where {declared} is due: error "
                f"{sums.max_error:.3g} against the float64 oracle, budget {budget:.3g} (the "
                f"reference's own error is {sums.max_reference_error:.3g}); {worst}"
            ),
            what=what,
            index=index,
            got=g,
            expected=e,
            wrong=wrong,
            precision=precision,
        )
    return check, Mismatch(
        status=Status.WRONG_VALUES,
        message=f"{where} (|diff| {abs(g - e):.3g}, tolerance atol={atol:g} rtol={rtol:g})",
        what=what,
        index=index,
        got=g,
        expected=e,
        wrong=wrong,
        precision=precision,
    )


def _exact(
    got: torch.Tensor, reference: torch.Tensor, oracle: torch.Tensor, phase: str, what: str
) -> tuple[Check, Mismatch | None]:
    # Integers and booleans: the reference's value or, where float64 decides a tie otherwise, the
    # oracle's.
    wrong = (got != reference) & (got != oracle.to(got.dtype))
    count = int(wrong.sum())
    check = Check(
        phase=phase,
        what=what,
        max_abs_diff=float((got.double() - reference.double()).abs().max()) if got.numel() else 0.0,
        error=float(count),
        budget=0.0,
        precision="exact" if count == 0 else "worse",
    )
    if not count:
        return check, None
    at = int(wrong.reshape(-1).to(torch.uint8).argmax())
    index = _unravel(at, tuple(got.shape))
    g, e = got.reshape(-1)[at].item(), reference.reshape(-1)[at].item()
    return check, Mismatch(
        status=Status.WRONG_VALUES,
        message=f"{what}{list(index)} is {g}, expected {e} ({count} of {got.numel()} differ)",
        what=what,
        index=index,
        got=float(g),
        expected=float(e),
        wrong=wrong.cpu(),
        precision="worse",
    )


def _non_finite(
    flat: tuple[torch.Tensor, torch.Tensor, torch.Tensor], shape: tuple[int, ...], what: str
) -> Mismatch | None:
    for start in range(0, flat[0].numel(), CHUNK):
        got, reference, oracle = (t[start : start + CHUNK] for t in flat)
        agreed = _class_of(reference) == _class_of(oracle)
        bad = agreed & (_class_of(got) != _class_of(reference))
        if bool(bad.any()):
            at = int(bad.to(torch.uint8).argmax())
            index = _unravel(start + at, shape)
            total = int(bad.sum())
            return Mismatch(
                status=Status.NOT_FINITE,
                message=(
                    f"{what}{list(index)} is {float(got[at])}, expected {float(oracle[at]):.7g} "
                    f"({total} such elements)"
                ),
                what=what,
                index=index,
                got=float(got[at]),
                expected=float(oracle[at]),
                wrong=bad.view(shape).cpu() if bad.numel() == math.prod(shape) else None,
            )
    return None


def _class_of(x: torch.Tensor) -> torch.Tensor:
    """Return 0 for finite, 1 for NaN, 2 for +inf, 3 for -inf, elementwise."""
    kind = torch.isnan(x).to(torch.uint8)
    return kind + 2 * torch.isposinf(x).to(torch.uint8) + 3 * torch.isneginf(x).to(torch.uint8)


def _wrong_mask(
    got: torch.Tensor, oracle: torch.Tensor, atol: float, rtol: float, slack: float
) -> torch.Tensor | None:
    if got.numel() > 1 << 26:
        return None
    error = (got.double() - oracle).abs()
    return (error > atol + rtol * oracle.abs() + slack).cpu()


def _unravel(flat_index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index = []
    for extent in reversed(shape):
        index.append(flat_index % extent if extent else 0)
        flat_index //= max(extent, 1)
    return tuple(reversed(index))
