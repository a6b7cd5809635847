"""Decides whether a candidate's tensor is what the reference computes.

The bound is that of torch.allclose with the pair's tolerance. An error that is no larger than a
multiple of the reference's own needs no explanation. A larger one is looked into. If it is that of
TF32, bfloat16 or float16, or larger than float32 gives in any order of its sums, the tensor is
refused with that evidence. Else it is accepted with a warning. ``_Comparison.judge`` lists the
rules in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from harness.domain import Check, HarnessError, Status
from harness.judge.check.fingerprint import Evidence, Match, stored_in
from harness.judge.check.known_arithmetics import SPOKEN
from harness.judge.check.precision import (
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
from harness.judge.check.structure import Mismatch, non_finite, unravel

_COARSENESS = {"fp64": 0, "fp32": 1, "tf32": 2, "fp16": 2, "bf16": 3, "worse": 4}
_MOST_IN_MASK = 1 << 26
"""Elements of a tensor whose wrong elements are kept for the diagnosis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What a comparison found.

    Attributes:
        check: the figures.
        mismatch: the reason for refusal, None where the tensor is accepted.
        warning: what is suspicious about an accepted tensor, with {times} for how much; empty for
            nothing.
        times: the error as a multiple of the reference's own, where there is a warning.
    """

    check: Check
    mismatch: Mismatch | None = None
    warning: str = ""
    times: float = 0.0


class _Element(NamedTuple):
    """One element, and how messages say what is wrong with it."""

    place: tuple[int, ...]
    got: float
    expected: float
    text: str


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
    """Compare one tensor with the reference's and the oracle's, of equal shape and dtype.

    Args:
        got: candidate, any dtype.
        reference: same shape and dtype, computed by the reference in its own precision.
        oracle: same shape, float64 where floating. NaN here is no wildcard: non-finite values
            must match in place wherever reference and oracle agree on them.
        standard: bounds.
        phase: mode and trial, for the record.
        what: name of the tensor, for the record.
        evidence: looks into an error that needs an explanation. Without it such an error is
            refused.
        outside: the problem draws no such inputs. Only another function is refused then.
        unasked: look into the error even where it is within its budget.
    """
    if got.is_complex():
        got, reference, oracle = (
            torch.view_as_real(t.resolve_conj()) for t in (got, reference, oracle)
        )
    if got.shape != reference.shape or got.shape != oracle.shape:
        raise HarnessError(f"{what}: comparing shapes {got.shape} and {oracle.shape}")
    if not reference.is_floating_point():
        return _exact(got, reference, oracle, phase, what, evidence)
    not_finite = non_finite(got, reference, oracle, what)
    if not_finite:
        check = Check(
            phase=phase, what=what, max_abs_diff=None, error=None, budget=None, precision=None
        )
        return Compared(check=check, mismatch=not_finite)
    made = _Comparison(got, reference, oracle, standard, phase, what, evidence, outside, unasked)
    return made.judge()


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
        unasked: bool,
    ) -> None:
        self._got, self._reference, self._oracle = got, reference, oracle
        self._standard, self._phase, self._what = standard, phase, what
        self._outside, self._unasked = outside, unasked
        self._policy = standard.policy
        self._dtype = reference.dtype
        self._own = PRECISION_OF[reference.dtype]
        self._low = self._own in ("bf16", "fp16")
        self._evidence = None if self._low else evidence
        self._declared = standard.precision or self._own
        self._reduced = not self._low and self._declared in SPOKEN and self._declared != self._own
        atol, rtol = self._policy.tolerance(reference.dtype)
        self._atol = atol if standard.atol is None else standard.atol
        self._rtol = rtol if standard.rtol is None else standard.rtol
        flat = (got.reshape(-1), reference.reshape(-1), oracle.reshape(-1))
        self._sums: Sums = stream(flat, self._atol, self._rtol)
        # An error up to the budget needs no explanation; up to the slack beyond the tolerance it
        # is float32's own rounding. Both grow as rules find out what roundings there are.
        self._budget = budget_of(self._sums, self._dtype, self._own, standard)
        self._slack = self._policy.slack_factor * self._sums.max_reference_error
        self._noise = torch.empty(0)
        self._match: Match | None = None

    def judge(self) -> Compared:
        """Return what the first rule says that applies."""
        rules = (
            self._within_its_budget,
            self._not_to_be_looked_into,
            self._stored_in_fewer_bits,
            self._of_unknown_roundings,
            self._of_another_arithmetic,
            self._of_the_declared_precision,
            self._explained_by_roundings,
            self._beyond_any_order_of_sums,
        )
        found = (rule() for rule in rules)
        return next((compared for compared in found if compared is not None), None) or self._wrong()

    # --- the rules, in their order: each returns None where it does not apply --------------------

    def _within_its_budget(self) -> Compared | None:
        """Accept an error of the reference's own size, in the whole and in each sample and column.

        If asked to, refuse products in fewer bits even there: in long sums they err that little.
        """
        sums = self._sums
        within = sums.max_error <= self._budget and rms_within(sums, self._dtype, self._policy)
        if not (within and self._is_close and self._slices_within()):
            return None
        if self._unasked and self._evidence is not None and self._oracle_is_exact:
            match = self._evidence.match_of_products(self._what, self._error, self._own)
            if match is not None and not self._allows(match.precision):
                return self._lost(match.precision, f"computed with {match.text}")
        return self._accepted(self._own)

    def _not_to_be_looked_into(self) -> Compared | None:
        """Refuse without evidence, and results in 16 bits: their rounding hides all arithmetic."""
        return self._unexplained() if self._evidence is None else None

    def _stored_in_fewer_bits(self) -> Compared | None:
        """Refuse a result whose elements all fit into a smaller format than the oracle's do."""
        stored = stored_in(self._got, self._oracle, self._own, self._policy)
        if not stored or self._allows(stored):
            return None
        why = f"stored in fewer bits: every element is a {SPOKEN[stored]} number"
        return self._lost(stored, why)

    def _of_unknown_roundings(self) -> Compared | None:
        """Refuse what cannot be explained because the reference's roundings are not known.

        Where they are known, a multiple of them is added to the tolerance.
        """
        assert self._evidence is not None
        noise = self._evidence.noise(self._what, self._own)
        if noise is None:
            return self._unexplained()
        self._noise = noise
        self._slack = max(self._slack, self._policy.slack_factor * float(noise.max()))
        return None

    def _of_another_arithmetic(self) -> Compared | None:
        """Refuse an error that another arithmetic explains, element by element."""
        assert self._evidence is not None
        match = self._evidence.match(self._what, self._error, self._own)
        if match and match.in_part and not self._oracle_is_exact:
            match = None
        self._match = match
        if match is None or self._allows(match.precision):
            return None
        return self._lost(match.precision, f"computed with {match.text}")

    def _of_the_declared_precision(self) -> Compared | None:
        """Judge a solution that may compute in fewer bits by what these change in the reference.

        On inputs that the problem does not draw, a larger error may still be explained by
        roundings: by those of the declared precision.
        """
        if not self._reduced:
            return None
        assert self._evidence is not None
        evidence, what, policy = self._evidence, self._what, self._policy
        allowed = evidence.allowed(what, self._declared)
        if allowed is not None:
            r, d = (_finite(t) for t in (evidence.sampled(what, self._error), allowed))
            self._budget = max(self._budget, policy.slack_factor * float(d.abs().max()))
            explained = float(r.norm()) <= policy.rms_factor * float(d.norm())
            if explained and self._sums.max_error <= self._budget:
                return self._accepted(self._match.precision if self._match else self._declared)
        if self._outside:
            self._noise = self._noise * (UNIT_ROUNDOFF[self._declared] / unit_roundoff(self._dtype))
            return None
        if allowed is None:
            return self._unexplained()
        if self._sums.worst <= max(self._slack, self._budget):
            return self._lost("worse", "larger errors than that precision gives in the reference")
        return self._wrong()

    def _explained_by_roundings(self) -> Compared | None:
        """Accept, with a warning, an error that float32's roundings can give in some order.

        Outside what the problem draws another formula may lose digits that the reference keeps:
        there half of the digits explain it, as long as the result is still the function's.
        """
        explained = self._roundings_explain()
        self._budget = max(self._budget, self._policy.order_factor * float(self._noise.max()))
        if not explained or not (self._is_close or self._outside):
            return None
        times = self._sums.max_error / max(self._sums.max_reference_error, 1e-300)
        if self._is_close and times <= self._policy.reference_factor:
            return self._accepted(self._own)
        warning = f"errors of {self._what.partition('[')[0]} up to {{times}} the reference's own"
        warning += (
            " on inputs that the problem does not draw"
            if self._outside
            else "; no lower precision shows"
        )
        return Compared(check=self._check(self._own), warning=warning, times=times)

    def _beyond_any_order_of_sums(self) -> Compared | None:
        """Refuse an error within the tolerance that is too large for float32 in any order."""
        if not self._is_close or self._outside:
            return None
        return self._lost(
            "worse",
            f"no order of its sums gives {SPOKEN[self._own]} errors of that size "
            f"(up to {self._budget:.3g} over the whole tensor)",
        )

    # --- what rules ask ---------------------------------------------------------------------------

    @cached_property
    def _error(self) -> torch.Tensor:
        return self._got.double() - self._oracle

    @cached_property
    def _worst(self) -> _Element:
        at = self._sums.worst_at
        got, expected = (float(t.reshape(-1)[at]) for t in (self._got, self._oracle))
        place = unravel(at, tuple(self._got.shape))
        text = f"{self._what}{list(place)} is {got:.7g}, expected {expected:.7g}"
        return _Element(place, got, expected, text)

    @property
    def _is_close(self) -> bool:
        """Return whether every element is within the tolerance and the slack."""
        return self._sums.worst <= self._slack

    @property
    def _oracle_is_exact(self) -> bool:
        """Return whether the oracle rounds nothing itself: its own bits look like a few lost."""
        return self._standard.oracle_precision == "fp64"

    def _allows(self, precision: str) -> bool:
        """Return whether the precision that is due is no finer than this one."""
        return self._reduced and _COARSENESS.get(precision, 4) <= _COARSENESS[self._declared]

    def _slices_within(self) -> bool:
        """Return whether each sample and each column is as precise as its own size allows."""
        if self._low or self._got.numel() > self._policy.slices_elements:
            return True
        if self._standard.oracle_precision not in ("fp64", "itself"):
            return True
        policy, least = self._policy, self._policy.least_in_slice
        eps = 2 * unit_roundoff(self._dtype)
        got, reference, oracle = (
            _finite(t.double()) for t in (self._got, self._reference, self._oracle)
        )
        cut = (slices(t, least) for t in (got - oracle, reference - oracle, oracle))
        for error, own, size in zip(*cut, strict=True):
            bound = torch.maximum(policy.reference_factor * own, policy.eps_factor * eps * size)
            # Below the least normal number there are no digits to keep.
            if bool((error > bound + torch.finfo(self._dtype).tiny).any()):
                return False
        return True

    def _roundings_explain(self) -> bool:
        """Return whether roundings explain the error of the tensor, of each sample and column."""
        policy = self._policy
        own = self._reference.double() - self._oracle
        tensors = [_finite(t.abs()) for t in (self._error, self._noise, own, self._oracle)]
        parts = [[t.max().reshape(1) for t in tensors]] if self._error.numel() else []
        if self._got.numel() <= policy.slices_elements:
            cut = [slices(t, policy.least_in_slice) for t in tensors]
            parts += [list(part) for part in zip(*cut, strict=True)]
        for e, n, o, size in parts:
            bound = torch.maximum(policy.order_factor * n, policy.slack_factor * o)
            if self._outside:
                lost = torch.minimum(policy.function_factor * n, policy.function_part * size)
                bound = torch.maximum(bound, lost)
            if bool((e > bound + policy.order_factor * torch.finfo(self._dtype).tiny).any()):
                return False
        return True

    # --- what rules answer ------------------------------------------------------------------------

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

    def _unexplained(self) -> Compared:
        """Return the refusal of an error that cannot be looked into."""
        if self._sums.worst > max(self._slack, self._budget if self._reduced else 0.0):
            return self._wrong()
        return self._lost(
            "worse",
            "larger errors than one rounding of the result gives"
            if self._low
            else f"errors far beyond the reference's own (up to {self._budget:.3g} needs no look)",
        )

    def _lost(self, precision: str, why: str) -> Compared:
        """Return the refusal of a tensor that is computed in fewer bits than it should."""
        # Another GELU within the tolerance is a loss of digits, beyond it another function.
        another = precision == "tanh" and not self._is_close
        return self._refused(
            Status.WRONG_VALUES if another else Status.PRECISION_LOST,
            f"{why}; {SPOKEN[self._declared]} is due. The error is {self._sums.max_error:.3g} "
            "against the float64 oracle, the reference's own "
            f"{self._sums.max_reference_error:.3g}; worst {self._worst.text}",
            precision,
            masked=not self._is_close,
        )

    def _wrong(self) -> Compared:
        diff = abs(self._worst.got - self._worst.expected)
        return self._refused(
            Status.WRONG_VALUES,
            f"{self._worst.text} (|diff| {diff:.3g}, tolerance atol={self._atol:g} "
            f"rtol={self._rtol:g})",
            "worse",
            masked=True,
        )

    def _refused(self, status: Status, message: str, precision: str, *, masked: bool) -> Compared:
        mask = None
        if masked and self._got.numel() <= _MOST_IN_MASK:
            bound = self._atol + self._rtol * self._oracle.abs() + self._slack
            mask = (self._error.abs() > bound).cpu()
        mismatch = Mismatch(
            status=status,
            message=message,
            what=self._what,
            index=self._worst.place,
            got=self._worst.got,
            expected=self._worst.expected,
            wrong=mask,
            precision=precision,
        )
        known = precision if precision in _COARSENESS else "worse"
        return Compared(check=self._check(known), mismatch=mismatch)


def _exact(
    got: torch.Tensor,
    reference: torch.Tensor,
    oracle: torch.Tensor,
    phase: str,
    what: str,
    evidence: Evidence | None,
) -> Compared:
    """Compare integers or booleans: with the reference's value, or with the oracle's.

    float64 may decide a tie otherwise than the reference does. Both values are right then.
    """
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
    index = unravel(at, tuple(got.shape))
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


def _finite(t: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0)
