"""How large errors are, which budget they have, and which arithmetic they look like."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from harness.judge.policy import Policy

CHUNK = 1 << 25
_LOST, _MOST, _RESOLVED = 0.5, 2.0**-13, 1e-3
_UNDERFLOW = 1e-37
"""Below float32's normal numbers nobody keeps digits."""
UNIT_ROUNDOFF = {
    "fp64": 2.0**-53,
    "fp32": 2.0**-24,
    "tf32": 2.0**-11,
    "fp16": 2.0**-11,
    "bf16": 2.0**-8,
}
PRECISION_OF = {
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


@dataclass(slots=True)
class Sums:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """How far a tensor's exact value moves when its inputs move by half a unit in the last place.

    What a backward-stable algorithm may err, however precise the reference is.

    Attributes:
        by_element: the movement of each element, None where it is not known.
        terms: how many inputs there are for each output: a sum of them from left to right may err
            by the square root of as many roundings.
        magnitude: of the largest input: what lies between inputs and outputs may be as large, and
            is rounded there: exp(x - logsumexp(x)) is a softmax, too.
    """

    by_element: torch.Tensor | None = None
    terms: float = 0.0
    magnitude: float = 0.0

    def largest(self, oracle: torch.Tensor, unit: float) -> float:
        """Return one figure for a whole tensor.

        Args:
            oracle: its exact value, finite.
            unit: half a unit in the last place of 1.
        """
        if not oracle.numel():
            return 0.0
        # Eight times this is allowed (sensitivity_factor): two roundings at the inputs' size.
        roundings = max(0.5 * float(self.terms) ** 0.5, 0.25 * self.magnitude)
        summed = roundings * unit * float(oracle.abs().max())
        moved = 0.0 if self.by_element is None else float(self.by_element.max())
        return float(max(summed, moved))


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return half a unit in the last place of 1 in a floating or complex dtype."""
    return UNIT_ROUNDOFF[PRECISION_OF[dtype]]


def spoken(precision: str) -> str:
    """Return a precision as messages say it."""
    return "tf32 or fp16 (10 bits)" if precision in ("tf32", "fp16") else precision


def stream(flat: tuple[torch.Tensor, torch.Tensor, torch.Tensor], atol: float, rtol: float) -> Sums:
    """Add up the figures of got, reference and oracle, all flat, in float64, chunk by chunk."""
    sums = Sums()
    for start in range(0, flat[0].numel(), CHUNK):
        got, reference, oracle = (t[start : start + CHUNK].double() for t in flat)
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


def budget_of(sums: Sums, dtype: torch.dtype, declared: str, standard: Standard) -> float:
    """Return the largest error that a tensor may have against the oracle."""
    policy = standard.policy
    low = dtype in (torch.float16, torch.bfloat16)
    factor = policy.low_reference_factor if low else policy.reference_factor
    floor = policy.low_eps_factor if low else policy.eps_factor
    eps = 2 * UNIT_ROUNDOFF[PRECISION_OF[dtype]]
    if dtype is torch.float64:
        # The oracle has no more digits than the reference: leave room for another order of sums.
        floor *= 4096
    if standard.oracle_precision == "itself":
        # The reference has no error against itself: leave room for another order of sums.
        floor = max(floor, policy.own_eps_factor)
    elif standard.oracle_precision != "fp64":
        # The oracle itself rounds inside: neither its error nor the reference's shows it.
        eps = max(eps, 2 * UNIT_ROUNDOFF[standard.oracle_precision])
        floor = max(floor, policy.eps_factor)
    if declared != PRECISION_OF[dtype]:
        eps = max(eps, 2 * UNIT_ROUNDOFF[declared])
    return max(factor * sums.max_reference_error, floor * eps * sums.max_value)


def lost_slice(
    got: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    policy: Policy,
    shaken: float,
    *,
    forward: bool,
) -> str:
    """Return which sample or which column is less precise than its own size allows, or nothing.

    The budget of a whole tensor follows its largest element: small columns could be anything
    below that. Twice the tensor's own factors, since a slice's largest error is of fewer samples.

    Args:
        got: candidate, any shape.
        reference: same shape, in its own precision.
        oracle: same shape, float64.
        policy: thresholds.
        shaken: the tensor's sensitivity.
        forward: an output, and no gradient: a derivative may saturate where its formula differs.
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
        )
        # Another formula may cancel where this one does not: what the tensor's largest element
        # allows is enough, and so is keeping most digits ...
        bound = torch.maximum(bound.clamp_min(policy.sensitivity_factor * shaken), _MOST * size)
        if forward:
            # ... but for outputs that the reference resolves and the candidate has lost.
            resolved = (own < _RESOLVED * size) & (size > _UNDERFLOW)
            bound = torch.where(resolved, torch.minimum(bound, _LOST * size), bound)
        bad = error > bound
        if bool(bad.any()):
            at = int((error - bound).argmax())
            return (
                f"at index {at} of dim {dim} the error is {float(error[at]):.3g} where values "
                f"reach {float(size[at]):.3g}"
            )
    return ""


def rms_within(sums: Sums, dtype: torch.dtype, declared: str, moved: float, policy: Policy) -> bool:
    """Return whether the mean error is that of one rounding in a reduced precision.

    Where outputs or operands are rounded to few bits, the largest error says little: 8 bits of
    bfloat16 hide inside twice the unit of its output. float32 and float64 have no such bound.
    """
    if declared not in ("tf32", "bf16", "fp16"):
        return True
    operands = 0.6 if PRECISION_OF[dtype] != declared else 0.4
    value_rms = math.sqrt(sums.value_squares / max(sums.count, 1))
    reference_rms = math.sqrt(sums.reference_squares / max(sums.count, 1))
    one = max(reference_rms, operands * UNIT_ROUNDOFF[declared] * value_rms, moved)
    return math.sqrt(sums.error_squares / max(sums.count, 1)) <= policy.rms_factor * one


def effective(sums: Sums, within: bool, declared: str) -> str:
    """Return the arithmetic that the errors look like; within: they keep their budget."""
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


def looks_like_rounding(got: torch.Tensor, oracle: torch.Tensor, sums: Sums) -> bool:
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
