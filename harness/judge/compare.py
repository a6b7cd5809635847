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
from harness.judge.policy import Policy
from harness.wire import Untransferable

_CHUNK = 1 << 25
_UNIT_ROUNDOFF = {
    "fp64": 2.0**-53,
    "fp32": 2.0**-24,
    "tf32": 2.0**-11,
    "fp16": 2.0**-11,
    "bf16": 2.0**-8,
}
_PRECISION_OF = {
    torch.float64: "fp64",
    torch.complex128: "fp64",
    torch.float32: "fp32",
    torch.complex64: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
_ORDER = ("exact", "fp64", "fp32", "fp16", "tf32", "bf16", "worse")


def worst_precision(names: list[str]) -> str | None:
    """Return the least precise of the given names, None for none."""
    known = [n for n in names if n in _ORDER]
    return max(known, key=_ORDER.index) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standard:
    """What a comparison measures against.

    Attributes:
        policy: thresholds.
        atol, rtol: the pair's own tolerances, None for the policy's by dtype.
        precision: precision that the solution declares, None for that of the output's dtype.
        oracle_precision: precision that the oracle itself computes in: ``fp64`` unless the
            reference casts back inside; ``itself`` where the reference stands in for an oracle.
    """

    policy: Policy
    atol: float | None = None
    rtol: float | None = None
    precision: str | None = None
    oracle_precision: str = "fp64"


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


@dataclass(slots=True)
class _Sums:
    """Streaming figures over all elements of one tensor."""

    count: int = 0
    worst: float = -1.0
    worst_at: int = 0
    max_diff: float = 0.0
    max_error: float = 0.0
    max_reference_error: float = 0.0
    max_value: float = 0.0
    error_squares: float = 0.0
    value_squares: float = 0.0
    reference_squares: float = 0.0
    cross: float = 0.0
    unequal: int = 0


def tensor(
    got: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    standard: Standard,
    phase: str,
    what: str,
    sensitivity: float = 0.0,
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
        sensitivity: how far the oracle moves when its inputs move by half a unit in the last
            place: what a backward-stable algorithm may err, however precise the reference is.

    Returns:
        The figures, and the reason for refusal or None.

    Source: the allclose bound is |got - expected| <= atol + rtol * |expected|.
    """
    if got.is_complex():
        got, reference, oracle = (torch.view_as_real(t) for t in (got, reference, oracle))
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
    declared = standard.precision or _PRECISION_OF[reference.dtype]
    if declared in ("tf32", "bf16", "fp16") and reference.dtype == torch.float32:
        widened = 8 * _UNIT_ROUNDOFF[declared]
        atol, rtol = max(atol, widened), max(rtol, widened)
    sums = _stream(flat, atol, rtol)
    if reference.dtype in (torch.float16, torch.bfloat16):
        sensitivity = 0.0  # inputs are exact in their few bits, and sums belong into float32
    # The largest of many errors is some five times their root mean square.
    moved = 0.2 * sensitivity * _UNIT_ROUNDOFF[declared] / unit_roundoff(reference.dtype)
    budget = _budget(sums, reference.dtype, declared, standard)
    budget = max(budget, policy.sensitivity_factor * sensitivity)
    slack = 4 * max(sums.max_reference_error, sensitivity)
    if declared != _PRECISION_OF[reference.dtype]:
        # Products rounded to a declared precision err relative to the sum's size, not to each y.
        slack = max(slack, budget)
    close = sums.worst <= slack
    within = sums.max_error <= budget and _rms_within(
        sums, reference.dtype, declared, moved, policy
    )
    lost = _lost_slice(got, reference, oracle, policy, sensitivity) if within else ""
    if declared == _PRECISION_OF[reference.dtype] and lost:
        within = False
    precision = _precision(sums, within, declared)
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
    if close or (precision in ("tf32", "fp16", "bf16") and _looks_like_rounding(got, oracle, sums)):
        return check, Mismatch(
            status=Status.PRECISION_LOST,
            message=(
                f"effective precision {_spoken(precision)} where {declared} is due: error "
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


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return half a unit in the last place of 1 in a floating or complex dtype."""
    return _UNIT_ROUNDOFF[_PRECISION_OF[dtype]]


def _spoken(precision: str) -> str:
    return "tf32 or fp16 (10 bits)" if precision in ("tf32", "fp16") else precision


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
    for start in range(0, flat[0].numel(), _CHUNK):
        got, reference, oracle = (t[start : start + _CHUNK] for t in flat)
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


def _stream(
    flat: tuple[torch.Tensor, torch.Tensor, torch.Tensor], atol: float, rtol: float
) -> _Sums:
    sums = _Sums()
    for start in range(0, flat[0].numel(), _CHUNK):
        got, reference, oracle = (t[start : start + _CHUNK].double() for t in flat)
        ok = torch.isfinite(got) & torch.isfinite(reference) & torch.isfinite(oracle)
        zero = torch.zeros((), dtype=torch.float64, device=got.device)
        got, reference, oracle = (torch.where(ok, t, zero) for t in (got, reference, oracle))
        error = got - oracle
        size = error.abs()
        excess = size - (atol + rtol * oracle.abs())
        worst, at = excess.max(0)
        if float(worst) > sums.worst or sums.count == 0:
            sums.worst, sums.worst_at = float(worst), start + int(at)
        sums.count += int(ok.sum())
        sums.max_diff = max(sums.max_diff, float((got - reference).abs().max()))
        sums.max_error = max(sums.max_error, float(size.max()))
        reference_error = float((reference - oracle).abs().max())
        sums.reference_squares += float((reference - oracle).square().sum())
        sums.max_reference_error = max(sums.max_reference_error, reference_error)
        sums.max_value = max(sums.max_value, float(oracle.abs().max()))
        sums.error_squares += float(error.square().sum())
        sums.value_squares += float(oracle.square().sum())
        sums.cross += float((error * oracle).sum())
        sums.unequal += int((error != 0).sum())
    return sums


def _budget(sums: _Sums, dtype: torch.dtype, declared: str, standard: Standard) -> float:
    policy = standard.policy
    low = dtype in (torch.float16, torch.bfloat16)
    factor = policy.low_reference_factor if low else policy.reference_factor
    floor = policy.low_eps_factor if low else policy.eps_factor
    eps = 2 * _UNIT_ROUNDOFF[_PRECISION_OF[dtype]]
    if dtype is torch.float64:
        # The oracle has no more digits than the reference: leave room for another order of sums.
        floor *= 4096
    if standard.oracle_precision == "itself":
        # The reference has no error against itself: leave room for another order of sums.
        floor = max(floor, policy.own_eps_factor)
    elif standard.oracle_precision != "fp64":
        # The oracle itself rounds inside: neither its error nor the reference's shows it.
        eps = max(eps, 2 * _UNIT_ROUNDOFF[standard.oracle_precision])
        floor = max(floor, policy.eps_factor)
    if declared != _PRECISION_OF[dtype]:
        eps = max(eps, 2 * _UNIT_ROUNDOFF[declared])
    return max(factor * sums.max_reference_error, floor * eps * sums.max_value)


def _lost_slice(
    got: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    policy: Policy,
    sensitivity: float,
) -> str:
    """Return which sample or which column is less precise than its own size allows, or nothing.

    The budget of a whole tensor follows its largest element: small columns could be anything
    below that. Twice the tensor's own factors, since a slice's largest error is of fewer samples.
    """
    if reference.dtype not in (torch.float32, torch.float64) or got.numel() > 1 << 24:
        return ""
    eps = 2 * unit_roundoff(reference.dtype)
    parts = [
        torch.nan_to_num(t.double(), nan=0.0, posinf=0.0, neginf=0.0)
        for t in (got - oracle, reference - oracle, oracle)
    ]
    for dim in {0, got.dim() - 1} if got.dim() > 1 else set():
        others = [d for d in range(got.dim()) if d != dim]
        if got.numel() // max(got.shape[dim], 1) < 8:
            continue
        error, own, size = (t.abs().amax(others) for t in parts)
        floor = 4096 if reference.dtype is torch.float64 else 1
        bound = torch.maximum(
            2 * policy.reference_factor * own, 2 * policy.eps_factor * floor * eps * size
        ).clamp_min(policy.sensitivity_factor * sensitivity)
        bad = error > bound
        if bool(bad.any()):
            at = int((error - bound).argmax())
            return (
                f"at index {at} of dim {dim} the error is {float(error[at]):.3g} where values "
                f"reach {float(size[at]):.3g}"
            )
    return ""


def _rms_within(
    sums: _Sums, dtype: torch.dtype, declared: str, moved: float, policy: Policy
) -> bool:
    """Return whether the mean error is that of one rounding in a reduced precision.

    Where outputs or operands are rounded to few bits, the largest error says little: 8 bits of
    bfloat16 hide inside twice the unit of its output. float32 and float64 have no such bound.
    """
    if declared not in ("tf32", "bf16", "fp16"):
        return True
    operands = 0.6 if _PRECISION_OF[dtype] != declared else 0.4
    value_rms = math.sqrt(sums.value_squares / max(sums.count, 1))
    reference_rms = math.sqrt(sums.reference_squares / max(sums.count, 1))
    one = max(reference_rms, operands * _UNIT_ROUNDOFF[declared] * value_rms, moved)
    return math.sqrt(sums.error_squares / max(sums.count, 1)) <= policy.rms_factor * one


def _precision(sums: _Sums, within: bool, declared: str) -> str:
    if sums.unequal == 0:
        return "exact"
    if within and declared in ("bf16", "fp16"):
        return declared
    relative = math.sqrt(sums.error_squares / max(sums.value_squares, 1e-300))
    if within and (declared in ("fp64", "fp32") or relative < 1e-6):
        return declared if declared == "fp64" else "fp32"
    if relative < 2e-6:
        return "fp32" if within else "tf32"
    if relative < 1.2e-3:
        return "tf32" if declared != "fp16" else "fp16"
    if relative < 3e-2:
        return "bf16"
    return "worse"


def _looks_like_rounding(got: torch.Tensor, oracle: torch.Tensor, sums: _Sums) -> bool:
    """Return whether the error is the noise of a lower precision rather than a wrong formula.

    Rounding noise touches many elements (a ReLU leaves half of them exact), has no outliers, no
    mean along any axis, and does not
    follow the value. A wrong constant follows the value; a wrong index has outliers.
    """
    if sums.count < 64 or sums.unequal < 0.2 * sums.count:
        return False
    rms = math.sqrt(sums.error_squares / sums.count)
    follows = sums.cross / math.sqrt(max(sums.error_squares * sums.value_squares, 1e-300))
    if abs(follows) > 0.3:
        return False
    error = got.double() - oracle
    relative = (error.abs() / (oracle.abs() + math.sqrt(sums.value_squares / sums.count))).max()
    if float(relative) > 16 * rms / math.sqrt(sums.value_squares / sums.count):
        return False
    for dim in range(error.dim()):
        if error.shape[dim] >= 8 and error.numel() > error.shape[dim]:
            mean = error.mean(dim)
            if float(mean.square().mean().sqrt()) > 0.7 * rms:
                return False
    return True


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
