"""Decides whether what a candidate returned is what the reference computes.

A floating tensor must be within the pair's tolerance (torch.allclose), which is what users know.
An error that is no larger than the reference's own, within a factor, needs no explanation. A larger
one is looked into: where it is that of TF32, bfloat16 or float16, or beyond what float32 gives in
any order of its sums, the tensor is refused with that evidence; else it is accepted with a warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from harness.domain import Check, HarnessError, Status
from harness.ipc import Untransferable
from harness.judge.check.fingerprint import Evidence, Match, stored_in
from harness.judge.check.known_arithmetics import SPOKEN
from harness.judge.check.precision import (
    CHUNK,
    PRECISION_OF,
    UNIT_ROUNDOFF,
    Standard,
    Sums,
    budget_of,
    rms_within,
    slices,
    stream,
    unit_roundoff,
)
from harness.judge.reference.similarity import all_finite

_COARSENESS = {"fp64": 0, "fp32": 1, "tf32": 2, "fp16": 2, "bf16": 3, "worse": 4}
_MOST_IN_SLICES = 1 << 24
"""Elements of a tensor whose samples and columns are looked at one by one."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What a comparison found.

    Attributes:
        check: the figures.
        mismatch: the reason for refusal, None where the tensor is accepted.
        warning: what is suspicious about an accepted tensor, with {times} for how much; empty for
            nothing.
        times: how often as large as the reference's own the error of that tensor is.
    """

    check: Check
    mismatch: Mismatch | None = None
    warning: str = ""
    times: float = 0.0


def tensor(
    got: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    standard: Standard,
    phase: str,
    what: str,
    evidence: Evidence | None = None,
    *,
    outside: bool = False,
    unasked: bool = False,
) -> Compared:
    """Compare one tensor of equal shape and dtype with the reference's and the oracle's.

    Args:
        got: candidate, any dtype.
        reference: same shape and dtype, computed by the reference in its own precision.
        oracle: same shape, float64 where floating. NaN here is no wildcard: non-finite values
            must match in place wherever reference and oracle agree on them.
        standard: bounds.
        phase: mode and trial, for the record.
        what: name of the tensor, for the record.
        evidence: looks into what needs an explanation; without it, all of that is refused.
        outside: the inputs are none that the problem draws: refused is only another function.
        unasked: look into the error even where it is within its budget.

    Source: the allclose bound is |got - expected| <= atol + rtol * |expected|.
    """
    if got.is_complex():
        got, reference, oracle = (
            torch.view_as_real(t.resolve_conj()) for t in (got, reference, oracle)
        )
    if got.shape != reference.shape or got.shape != oracle.shape:
        raise HarnessError(f"{what}: comparing shapes {got.shape} and {oracle.shape}")
    if not reference.is_floating_point():
        return _exact(got, reference, oracle, phase, what, evidence)
    flat = (got.reshape(-1), reference.reshape(-1), oracle.reshape(-1))
    not_finite = _non_finite(flat, tuple(got.shape), what)
    if not_finite:
        check = Check(
            phase=phase, what=what, max_abs_diff=None, error=None, budget=None, precision=None
        )
        return Compared(check=check, mismatch=not_finite)
    made = _Comparison(got, reference, oracle, standard, phase, what, evidence, outside)
    return made.judge(unasked=unasked)


class _Comparison:
    """One floating tensor against reference and oracle; arguments as for tensor()."""

    def __init__(
        self,
        got: torch.Tensor,
        reference: torch.Tensor,
        oracle: torch.Tensor,
        standard: Standard,
        phase: str,
        what: str,
        evidence: Evidence | None,
        outside: bool,
    ) -> None:
        self._got, self._reference, self._oracle = got, reference, oracle
        self._standard, self._phase, self._what = standard, phase, what
        self._evidence, self._outside = evidence, outside
        self._policy = standard.policy
        self._dtype = reference.dtype
        self._own = PRECISION_OF[reference.dtype]
        self._low = self._own in ("bf16", "fp16")
        self._declared = standard.precision or self._own
        self._reduced = not self._low and self._declared in SPOKEN and self._declared != self._own
        atol, rtol = self._policy.tolerance(reference.dtype)
        self._atol = atol if standard.atol is None else standard.atol
        self._rtol = rtol if standard.rtol is None else standard.rtol
        flat = (got.reshape(-1), reference.reshape(-1), oracle.reshape(-1))
        self._sums: Sums = stream(flat, self._atol, self._rtol)
        self._budget = budget_of(self._sums, self._dtype, self._own, standard)
        self._slack = self._policy.slack_factor * self._sums.max_reference_error

    def judge(self, *, unasked: bool = False) -> Compared:
        """Return what is to be said of the tensor.

        Args:
            unasked: see tensor().
        """
        sums = self._sums
        within = sums.max_error <= self._budget and rms_within(sums, self._dtype, self._policy)
        if within and sums.worst <= self._slack and self._slices_within():
            return (self._hidden() if unasked else None) or self._accepted(self._own)
        if self._evidence is None or self._low:
            return self._unexplained()
        evidence, what = self._evidence, self._what
        stored = stored_in(self._got, self._oracle, self._own)
        if stored and not self._allows(stored):
            return self._lost(
                stored, f"stored in fewer bits: every element is a {SPOKEN[stored]} number"
            )
        error = self._got.double() - self._oracle
        noise = evidence.noise(what, self._own)
        if noise is None:
            return self._unexplained()
        self._slack = max(self._slack, self._policy.slack_factor * float(noise.max()))
        match = evidence.match(what, error, self._own)
        if match and match.in_part and not self._oracle_is_exact():
            match = None
        if match and not self._allows(match.precision):
            return self._lost(match.precision, f"computed with {match.text}")
        if self._reduced:
            found = self._as_declared(error, match)
            if found.mismatch is None or not self._outside:
                return found
            noise = noise * (UNIT_ROUNDOFF[self._declared] / unit_roundoff(self._dtype))
        explained = self._explained_by(noise, error)
        self._budget = max(self._budget, self._policy.order_factor * float(noise.max()))
        close = sums.worst <= self._slack
        if explained and (close or self._outside):
            return self._suspicious(close)
        if close and not self._outside:
            return self._lost(
                "worse",
                f"no order of its sums gives {SPOKEN[self._own]} errors of that size "
                f"(up to {self._budget:.3g} over the whole tensor)",
            )
        return self._wrong()

    def _hidden(self) -> Compared | None:
        """Return the refusal of products in fewer bits whose error is within its budget."""
        if self._evidence is None or self._low or not self._oracle_is_exact():
            return None
        error = self._got.double() - self._oracle
        match = self._evidence.match_of_products(self._what, error, self._own)
        if match is None or self._allows(match.precision):
            return None
        return self._lost(match.precision, f"computed with {match.text}")

    def _oracle_is_exact(self) -> bool:
        """Return whether the oracle rounds nothing itself: its own bits look like a few lost."""
        return self._standard.oracle_precision == "fp64"

    def _slices_within(self) -> bool:
        """Return whether each sample and each column is as precise as its own size allows."""
        if self._low or self._got.numel() > _MOST_IN_SLICES:
            return True
        policy = self._policy
        eps = 2 * unit_roundoff(self._dtype)
        if self._standard.oracle_precision not in ("fp64", "itself"):
            return True
        got, reference, oracle = (
            torch.nan_to_num(t.double(), nan=0.0, posinf=0.0, neginf=0.0)
            for t in (self._got, self._reference, self._oracle)
        )
        for error, own, size in zip(
            slices(got - oracle), slices(reference - oracle), slices(oracle), strict=True
        ):
            bound = torch.maximum(policy.reference_factor * own, policy.eps_factor * eps * size)
            # Below the least normal number there are no digits to keep.
            if bool((error > bound + torch.finfo(self._dtype).tiny).any()):
                return False
        return True

    def _explained_by(self, noise: torch.Tensor, error: torch.Tensor) -> bool:
        """Return whether roundings explain the error of the tensor, of each sample and column.

        Outside what the problem draws another formula may lose digits that the reference keeps:
        there half of the digits explain it, as long as the result is still the function's.
        """
        policy = self._policy
        own = self._reference.double() - self._oracle
        tensors = [
            torch.nan_to_num(t.abs(), nan=0.0, posinf=0.0, neginf=0.0)
            for t in (error, noise, own, self._oracle)
        ]
        parts = [[t.max().reshape(1) for t in tensors]] if error.numel() else []
        if self._got.numel() <= _MOST_IN_SLICES:
            parts += [list(part) for part in zip(*(slices(t) for t in tensors), strict=True)]
        for e, n, o, size in parts:
            bound = torch.maximum(policy.order_factor * n, policy.slack_factor * o)
            if self._outside:
                lost = torch.minimum(policy.function_factor * n, policy.function_part * size)
                bound = torch.maximum(bound, lost)
            if bool((e > bound + policy.order_factor * torch.finfo(self._dtype).tiny).any()):
                return False
        return True

    def _allows(self, precision: str) -> bool:
        """Return whether the precision that is due is no finer than this one."""
        return self._reduced and _COARSENESS.get(precision, 4) <= _COARSENESS[self._declared]

    def _as_declared(self, error: torch.Tensor, match: Match | None) -> Compared:
        """Judge a tensor whose solution may compute in fewer bits than its dtype has."""
        assert self._evidence is not None
        evidence, what, policy = self._evidence, self._what, self._policy
        allowed = evidence.allowed(what, self._declared)
        if allowed is None:
            return self._unexplained()
        r = torch.nan_to_num(evidence.sampled(what, error), nan=0.0, posinf=0.0, neginf=0.0)
        d = torch.nan_to_num(allowed, nan=0.0, posinf=0.0, neginf=0.0)
        self._budget = max(self._budget, policy.slack_factor * float(d.abs().max()))
        explained = float(r.norm()) <= policy.rms_factor * float(d.norm())
        if explained and self._sums.max_error <= self._budget:
            return self._accepted(match.precision if match else self._declared)
        if self._sums.worst <= max(self._slack, self._budget):
            return self._lost("worse", "larger errors than that precision gives in the reference")
        return self._wrong()

    def _unexplained(self) -> Compared:
        """Return the refusal of what cannot be looked into."""
        if self._sums.worst > max(self._slack, self._budget if self._reduced else 0.0):
            return self._wrong()
        return self._lost(
            "worse",
            "larger errors than one rounding of the result gives"
            if self._low
            else f"errors far beyond the reference's own (up to {self._budget:.3g} needs no look)",
        )

    def _check(self, precision: str) -> Check:
        return Check(
            phase=self._phase,
            what=self._what,
            max_abs_diff=self._sums.max_diff,
            error=self._sums.max_error,
            budget=self._budget,
            precision="exact" if self._sums.unequal == 0 else precision,
        )

    def _accepted(self, precision: str) -> Compared:
        return Compared(check=self._check(precision))

    def _suspicious(self, close: bool) -> Compared:
        sums = self._sums
        times = sums.max_error / max(sums.max_reference_error, 1e-300)
        if close and times <= self._policy.reference_factor:
            return self._accepted(self._own)
        warning = f"errors of {self._what.partition('[')[0]} up to {{times}} the reference's own"
        warning += (
            " on inputs that the problem does not draw"
            if self._outside
            else "; no lower precision shows"
        )
        return Compared(check=self._check(self._own), warning=warning, times=times)

    def _at_worst(self) -> tuple[tuple[int, ...], float, float, str]:
        index = _unravel(self._sums.worst_at, tuple(self._got.shape))
        got = float(self._got.reshape(-1)[self._sums.worst_at])
        expected = float(self._oracle.reshape(-1)[self._sums.worst_at])
        return (
            index,
            got,
            expected,
            f"{self._what}{list(index)} is {got:.7g}, expected {expected:.7g}",
        )

    def _lost(self, precision: str, why: str) -> Compared:
        """Return the refusal of a tensor that is computed in fewer bits than it should."""
        index, got, expected, where = self._at_worst()
        sums = self._sums
        close = sums.worst <= self._slack
        # Another GELU within the tolerance is a loss of digits, beyond it another function.
        another = precision == "tanh" and not close
        return Compared(
            check=self._check(precision if precision in _COARSENESS else "worse"),
            mismatch=Mismatch(
                status=Status.WRONG_VALUES if another else Status.PRECISION_LOST,
                message=(
                    f"{why}; {SPOKEN[self._declared]} is due. The error is {sums.max_error:.3g} "
                    "against the float64 oracle, the reference's own "
                    f"{sums.max_reference_error:.3g}; worst {where}"
                ),
                what=self._what,
                index=index,
                got=got,
                expected=expected,
                wrong=None if close else self._wrong_mask(),
                precision=precision,
            ),
        )

    def _wrong(self) -> Compared:
        index, got, expected, where = self._at_worst()
        return Compared(
            check=self._check("worse"),
            mismatch=Mismatch(
                status=Status.WRONG_VALUES,
                message=(
                    f"{where} (|diff| {abs(got - expected):.3g}, tolerance atol={self._atol:g} "
                    f"rtol={self._rtol:g})"
                ),
                what=self._what,
                index=index,
                got=got,
                expected=expected,
                wrong=self._wrong_mask(),
                precision="worse",
            ),
        )

    def _wrong_mask(self) -> torch.Tensor | None:
        return _wrong_mask(self._got, self._oracle, self._atol, self._rtol, self._slack)


def _exact(
    got: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    phase: str,
    what: str,
    evidence: Evidence | None,
) -> Compared:
    # Integers and booleans: the reference's value or, where float64 decides a tie otherwise, the
    # oracle's.
    wrong = (got != reference) & (got != oracle.to(got.dtype))
    count = int(wrong.sum())
    integers = got.dtype in (torch.int64, torch.int32) and reference.dtype == got.dtype
    if count and integers and evidence is not None and evidence.is_free_order(got, reference):
        count = 0
    check = Check(
        phase=phase,
        what=what,
        max_abs_diff=float((got.double() - reference.double()).abs().max()) if got.numel() else 0.0,
        error=float(count),
        budget=0.0,
        precision="exact" if count == 0 else "worse",
    )
    if not count:
        return Compared(check=check)
    at = int(wrong.reshape(-1).to(torch.uint8).argmax())
    index = _unravel(at, tuple(got.shape))
    g, e = got.reshape(-1)[at].item(), reference.reshape(-1)[at].item()
    mismatch = Mismatch(
        status=Status.WRONG_VALUES,
        message=f"{what}{list(index)} is {g}, expected {e} ({count} of {got.numel()} differ)",
        what=what,
        index=index,
        got=float(g),
        expected=float(e),
        wrong=wrong.cpu(),
        precision="worse",
    )
    return Compared(check=check, mismatch=mismatch)


def _non_finite(
    flat: tuple[torch.Tensor, torch.Tensor, torch.Tensor], shape: tuple[int, ...], what: str
) -> Mismatch | None:
    for start in range(0, flat[0].numel(), CHUNK):
        got, reference, oracle = (t[start : start + CHUNK] for t in flat)
        if all(map(all_finite, (got, reference, oracle))):
            continue
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
