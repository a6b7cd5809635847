"""How large errors are, and which of them need no explanation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from harness.judge.policy import Policy
from harness.judge.reference.similarity import all_finite, largest

CHUNK = 1 << 25
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
    """The bounds of a comparison.

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
    unequal: int = 0


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return half a unit in the last place of 1 in a floating or complex dtype."""
    return UNIT_ROUNDOFF[PRECISION_OF[dtype]]


def stream(flat: tuple[torch.Tensor, torch.Tensor, torch.Tensor], atol: float, rtol: float) -> Sums:
    """Add up the figures of got, reference and oracle, all flat, chunk by chunk.

    Errors are computed in float64. Each figure takes one pass over the tensors that it needs, so a
    comparison of gigabytes is as quick as the memory.
    """
    sums = Sums()
    for start in range(0, flat[0].numel(), CHUNK):
        got, reference, oracle = (t[start : start + CHUNK] for t in flat)
        oracle = oracle.double()
        error, own = got - oracle, reference - oracle  # float64, as the oracle is
        count = got.numel()
        if not (all_finite(error) and all_finite(own)):
            ok = torch.isfinite(got) & torch.isfinite(reference) & torch.isfinite(oracle)
            count = int(ok.sum())
            got, reference, oracle = (torch.where(ok, t, 0) for t in (got, reference, oracle))
            error, own = got - oracle, reference - oracle
        sums.max_error = max(sums.max_error, largest(error))
        sums.error_squares += _squares(error)
        sums.unequal += int(torch.count_nonzero(error))
        sums.max_reference_error = max(sums.max_reference_error, largest(own))
        sums.reference_squares += _squares(own)
        sums.max_value = max(sums.max_value, largest(oracle))
        sums.value_squares += _squares(oracle)
        sums.max_diff = max(sums.max_diff, largest(torch.sub(error, own, out=own)))
        worst, at = error.abs_().sub_(oracle.abs(), alpha=rtol).max(0)
        if float(worst) - atol > sums.worst or sums.count == 0:
            sums.worst, sums.worst_at = float(worst) - atol, start + int(at)
        sums.count += count
    return sums


def _squares(t: torch.Tensor) -> float:
    """Return the sum of squares."""
    return float(torch.linalg.vector_norm(t)) ** 2


def budget_of(sums: Sums, dtype: torch.dtype, declared: str, standard: Standard) -> float:
    """Return the largest error against the oracle that needs no explanation."""
    policy = standard.policy
    low = dtype in (torch.float16, torch.bfloat16)
    factor = policy.low_reference_factor if low else policy.reference_factor
    floor = policy.low_eps_factor if low else policy.eps_factor
    eps = 2 * UNIT_ROUNDOFF[declared]
    if standard.oracle_precision == "itself":
        floor = max(floor, policy.own_eps_factor)
    elif standard.oracle_precision != "fp64":
        # The oracle itself rounds inside, and the reference rounds alike: its error shows nothing.
        eps = max(eps, 2 * UNIT_ROUNDOFF[standard.oracle_precision])
        floor = policy.eps_factor
    return max(factor * sums.max_reference_error, floor * eps * sums.max_value)


def slices(values: torch.Tensor, least: int) -> list[torch.Tensor]:
    """Return the largest absolute values of each sample and of each column.

    The bounds of a whole tensor follow its largest element. Below them a column of small values
    could hold anything.

    Args:
        values: any shape; none of one dimension has samples or columns.
        least: elements of a sample or column; of fewer nothing is returned.
    """
    found = []
    for dim in sorted({0, values.dim() - 1}) if values.dim() > 1 else []:
        if values.shape[dim] > 0 and values.numel() // values.shape[dim] >= least:
            found.append(values.abs().amax([d for d in range(values.dim()) if d != dim]))
    return found


def rms_within(sums: Sums, dtype: torch.dtype, policy: Policy) -> bool:
    """Return whether the mean error of a result in 16 bits is that of one rounding.

    The largest error says little about 16 bits: an intermediate result in bfloat16 errs by less
    than two units of the output. float32 and float64 have no such bound.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return True
    value_rms = math.sqrt(sums.value_squares / max(sums.count, 1))
    reference_rms = math.sqrt(sums.reference_squares / max(sums.count, 1))
    one = max(reference_rms, 0.5 * unit_roundoff(dtype) * value_rms)
    return math.sqrt(sums.error_squares / max(sums.count, 1)) <= policy.rms_factor * one
