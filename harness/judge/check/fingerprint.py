"""Finds the arithmetic that an error comes from: the proof that a refusal for precision needs.

The reference runs again with the operands of its products rounded to TF32, to bfloat16, to float16,
and in the other arithmetics of ``known_arithmetics``. Each changes the result. If that change and
the solution's error agree element by element, in size and in direction, the solution used that
arithmetic. An honest float32 error agrees with none of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.judge.check.known_arithmetics import (
    OPERANDS,
    SPOKEN,
    STAGES,
    STORED,
    TANH_GELU,
    KnownArithmetic,
    of_products,
    with_gelu,
)
from harness.judge.policy import Policy
from harness.judge.reference import arithmetic
from harness.judge.reference.arithmetic import Rounding
from harness.judge.reference.dataflow import FreeOrders, is_free_order
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import InvalidReference, Outcome, Problem, to_double
from harness.judge.reference.similarity import triples
from harness.usercode.modules import differentiable, mapped, write_state

_ALIKE = 1e-3
"""Correlations that differ by less do not tell two formats of 11 bits apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An arithmetic that explains an error.

    Attributes:
        precision: tf32, bf16, fp16, fp32, or tanh for another GELU.
        text: how messages name it, with the evidence.
        correlation: of the error with what the arithmetic changes.
        in_part: only a part of the products were computed in it.
    """

    precision: str
    text: str
    correlation: float
    in_part: bool = False


@dataclass(slots=True, kw_only=True)
class Looks:
    """Seconds in which errors were looked into so far, over all calls of a pair."""

    spent_s: float = 0.0


class Evidence:
    """Looks into the error of one call; each answer is found when it is first asked for.

    Args:
        problem, oracle: run the reference in other arithmetics.
        policy: thresholds of a match.
        mode, inputs, rng, grads: of the call.
        before: the reference's state before the call.
        exact: the oracle's results, by name.
        seed: of the roundings' signs and of samples.
        notes: takes notes on questions that could not be answered.
        looks: the time spent on all calls of the pair so far.
        always: look into this call however long others took.
        stand_in: run the reference itself, because the oracle takes too much memory.
    """

    def __init__(
        self,
        problem: Problem,
        oracle: Oracle,
        policy: Policy,
        *,
        mode: str,
        inputs: list[Any],
        rng: int,
        grads: Any,
        before: Mapping[str, torch.Tensor],
        exact: Mapping[str, torch.Tensor],
        seed: int,
        notes: list[str],
        looks: Looks,
        always: bool = False,
        stand_in: bool = False,
    ) -> None:
        self._problem = problem
        self._oracle = oracle
        self._policy = policy
        self._mode = mode
        self._inputs = inputs
        self._rng = rng
        self._grads = grads
        self._before = before
        self._exact = exact
        self._seed = seed
        self._notes = notes
        self._looks = looks
        self._always = always
        # An oracle on the CPU would give its answers there, apart from the candidate's tensors.
        self._stand_in = stand_in or oracle.on_cpu
        self._noise: dict[str, dict[str, torch.Tensor]] = {}
        self._changes: dict[str, dict[str, torch.Tensor]] = {}
        self._orders: list[tuple[torch.Tensor, int, torch.Tensor]] | None = None
        self._products = 0

    def noise(self, what: str, due: str) -> torch.Tensor | None:
        """Return how far honest roundings move each element, None if that is not known."""
        if due not in self._noise:
            device = self._problem.device
            generator = torch.Generator(device=device).manual_seed(self._seed % 2**62)
            unit = torch.finfo(torch.float64 if due == "fp64" else torch.float32).eps / 2
            roundings = arithmetic.Roundings(unit, generator)
            moved = self._run(roundings, roundings.moved)
            self._noise[due] = {
                n: torch.nan_to_num((t - self._exact[n]).abs(), nan=0.0, posinf=0.0)
                for n, t in moved.items()
            }
        return self._noise[due].get(what)

    def sampled(self, what: str, values: torch.Tensor) -> torch.Tensor:
        """Return the elements of a tensor that are compared, the same ones each time."""
        flat = values.reshape(-1)
        if flat.numel() <= self._policy.compared_elements:
            return flat
        generator = torch.Generator(device=flat.device).manual_seed(self._seed % 2**62)
        return flat[
            torch.randint(
                flat.numel(),
                (self._policy.compared_elements,),
                generator=generator,
                device=flat.device,
            )
        ]

    def match(self, what: str, error: torch.Tensor, due: str) -> Match | None:
        """Return the arithmetic that an error comes from, None if none explains it.

        Args:
            what: name of the tensor.
            error: candidate minus oracle, float64, the tensor's shape.
            due: fp32 or fp64.
        """
        if what not in self._exact:
            return None
        exact = self.sampled(what, self._exact[what])
        r = self.sampled(what, error)
        there = torch.isfinite(r) & torch.isfinite(exact)
        if self._is_enough():
            return None
        for stage in STAGES[due]:
            found = [self._compared(what, r, exact, there, mark) for mark in stage]
            matches = [m for m in found if m is not None]
            if matches:
                return _named(matches)
        if self._change(TANH_GELU, what) is not None:
            for name in OPERANDS[due]:
                found_both = self._compared(what, r, exact, there, with_gelu(name))
                if found_both is not None:
                    return found_both
        some = self._partial(what, r, exact, there, due)
        return some or (self._in_part(what, r, exact, there, due) if self._products else None)

    def _in_part(
        self, what: str, r: torch.Tensor, exact: torch.Tensor, there: torch.Tensor, due: str
    ) -> Match | None:
        """Return the arithmetic of part of the products: of some rows, terms or operands."""
        began, found = time.monotonic(), []
        for name in OPERANDS[due]:
            found.append(self._compared(what, r, exact, there, of_products(name), part=True))
            if not self._products or time.monotonic() - began > self._policy.unasked_s:
                break
        matches = [m for m in found if m is not None]
        return _named(matches) if matches else None

    def _compared(
        self,
        what: str,
        r: torch.Tensor,
        exact: torch.Tensor,
        there: torch.Tensor,
        mark: KnownArithmetic,
        *,
        part: bool = False,
    ) -> Match | None:
        d = self._change(mark, what)
        if d is None:
            return None
        both = there & torch.isfinite(d)
        policy = self._policy
        r, d = (_without(t[both], exact[both]) for t in (r, d))
        slope, correlation = _agreement(r, d, policy.least_elements)
        whole = self._is_one(slope) and correlation >= policy.match_correlation
        in_part = (
            part
            and policy.part_slope <= slope <= 1 + policy.match_slope
            and correlation >= policy.part_correlation
            and int(both.sum()) >= policy.part_elements
        )
        if not whole and not in_part:
            return None
        where = "" if whole else ", in part"
        return Match(
            precision=mark.precision,
            correlation=correlation,
            in_part=not whole,
            text=f"{mark.text}{where} (the error is {slope:.2f} times what that changes in the "
            f"reference, correlation {correlation:.3f})",
        )

    def match_of_products(self, what: str, error: torch.Tensor, due: str) -> Match | None:
        """Return the arithmetic of products that an error comes from; arguments as for match."""
        if what not in self._exact:
            return None
        exact, r = self.sampled(what, self._exact[what]), self.sampled(what, error)
        return self._in_part(what, r, exact, torch.isfinite(r) & torch.isfinite(exact), due)

    def _is_enough(self) -> bool:
        """Return whether errors of this pair have been looked into for long enough."""
        if self._always or self._looks.spent_s < self._policy.look_s:
            return False
        self._note("no time was left to compare the errors of later calls with other arithmetics")
        return True

    def _is_one(self, slope: float) -> bool:
        return abs(slope - 1) <= self._policy.match_slope

    def _partial(
        self, what: str, r: torch.Tensor, exact: torch.Tensor, there: torch.Tensor, due: str
    ) -> Match | None:
        """Return a match of some of the products, if the others are computed as is due.

        The changes of single products tell which products it may be. Then the reference runs with
        all of these rounded, since a product's rounding depends on the results before it.
        """
        count = self._products
        if not 1 < count <= self._policy.most_products:
            return None
        for name in OPERANDS[due]:
            if self._is_enough():
                return None
            marks = [of_products(name, frozenset({i}), count) for i in range(count)]
            changes = {i: self._change(mark, what) for i, mark in enumerate(marks)}
            known = {i: d for i, d in changes.items() if d is not None}
            both = there.clone()
            for d in known.values():
                both &= torch.isfinite(d)
            left = _without(r[both], exact[both]).cpu()
            if not known or left.numel() < self._policy.least_elements * len(known):
                continue
            columns = torch.stack([d[both].cpu() for d in known.values()], 1)
            sizes = columns.norm(dim=0).clamp_min(1e-300)
            fit = torch.linalg.lstsq(columns / sizes, left.unsqueeze(1), driver="gelsd").solution
            slopes = fit[:, 0] / sizes
            used = frozenset(
                i
                for i, c in zip(known, slopes, strict=True)
                if float(c) > self._policy.product_slope
            )
            if used and len(used) < count:
                found = self._compared(what, r, exact, there, of_products(name, used, count))
                if found is not None:
                    return found
        return None

    def is_free_order(self, got: torch.Tensor, expected: torch.Tensor) -> bool:
        """Return whether indices differ only among equal elements of an unstable sort."""
        if self._orders is None:
            watch = FreeOrders()
            self._run(watch, None)
            self._orders = watch.found
        return is_free_order(got, expected, self._orders, self._policy.near_keys)

    def allowed(self, what: str, precision: str) -> torch.Tensor | None:
        """Return the largest change that a declared precision makes in a tensor, sampled."""
        marks = [m for stage in STAGES["fp32"] for m in stage if m.precision == precision]
        found = [d for d in (self._change(m, what) for m in marks) if d is not None]
        return max(found, key=lambda d: float(torch.nan_to_num(d).norm()), default=None)

    def _change(self, mark: KnownArithmetic, what: str) -> torch.Tensor | None:
        """Return the change that an arithmetic makes in a tensor, sampled; None for no change."""
        key = mark.key or mark.text
        if key not in self._changes:
            mode = mark.mode()
            changed = self._run(mode, mark.inputs)
            if isinstance(mode, arithmetic.RoundedProducts):
                self._products = max(self._products, mode.products)
            self._changes[key] = {
                n: self.sampled(n, t - self._exact[n]).clone() for n, t in changed.items()
            }
        d = self._changes[key].get(what)
        return d if d is not None and bool((d != 0).any()) else None

    def _run(self, mode: TorchDispatchMode, change: Rounding | None) -> dict[str, torch.Tensor]:
        """Return the reference's results under a mode, by name; nothing if it does not run."""
        problem = self._problem
        after = {n: t.detach().clone() for n, t in problem.state().items()}
        began = time.perf_counter()
        try:
            outcome = self._outcome(mode, change)
        except InvalidReference as error:
            self._note(f"what another arithmetic changes is not known: {error}")
            return {}
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if not self._stand_in:
                self._stand_in = True
                return self._run(mode, change)
            self._note("no memory to see what another arithmetic changes in outputs of this size")
            return {}
        finally:
            write_state(problem.reference, after)
            self._looks.spent_s += time.perf_counter() - began
        return {
            n: t
            for n, t in named(outcome, problem.forward_names()).items()
            if n in self._exact and t.shape == self._exact[n].shape
        }

    def _outcome(self, mode: TorchDispatchMode, change: Rounding | None) -> Outcome:
        kept = self._stand_in or self._oracle.is_reference
        inputs, before = self._inputs, self._before
        if change is not None:

            def changed(t: torch.Tensor) -> torch.Tensor:
                if not differentiable(t):
                    return t
                fresh = to_double(t)
                if fresh.is_complex():
                    pairs = change(torch.view_as_real(fresh.resolve_conj()))
                    fresh = torch.view_as_complex(pairs.contiguous())
                else:
                    fresh = change(fresh)
                return fresh.to(t.dtype) if kept else fresh

            inputs = [mapped(v, changed) for v in inputs]
            if not isinstance(mode, arithmetic.Roundings):
                before = {n: changed(t) for n, t in before.items()}
        write_state(self._problem.reference, before)
        return self._oracle.call(
            self._mode, inputs, self._rng, self._grads, mode, stand_in=self._stand_in
        )

    def _note(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)


def named(outcome: Outcome, names: list[str]) -> dict[str, torch.Tensor]:
    """Return all floating results of a call by the names that checks give them, in float64."""
    found = {
        n: g for n, g, _, _ in triples(outcome.output, outcome.output, outcome.output, "output")
    }
    for i, t in enumerate(outcome.input_grads):
        if t is not None:
            found[f"grad {names[i] if i < len(names) else i}"] = t
    found |= {f"grad {n}": t for n, t in outcome.state_grads.items() if t is not None}
    found |= {f"state {n}": t for n, t in outcome.state.items()}
    return {n: real_double(t) for n, t in found.items() if differentiable(t)}


def real_double(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64, complex numbers as pairs."""
    return torch.view_as_real(to_double(t).resolve_conj()) if t.is_complex() else t.double()


def stored_in(got: torch.Tensor, exact: torch.Tensor, due: str, policy: Policy) -> str | None:
    """Return the smaller format that all elements fit into although the oracle's do not.

    Args:
        got: candidate, float32 or float64.
        exact: oracle, float64, same shape.
        due: fp32 or fp64.
        policy: thresholds.
    """
    truth = exact.to(got.dtype)
    for name, dtype in STORED.items():
        if name == due or (name == "fp32") != (due == "fp64"):
            continue
        moved = truth != truth.to(dtype).to(truth.dtype)
        moved &= torch.isfinite(truth)
        if int(moved.sum()) < max(policy.stored_elements, policy.stored_part * got.numel()):
            continue
        # Zeros fit into any format. So the elements must also be the result, more or less.
        off, size = float((got - truth)[moved].norm()), float(truth[moved].norm())
        near = off < policy.stored_error * size
        if near and bool((got == got.to(dtype).to(got.dtype))[moved].all()):
            return name
    return None


def _without(values: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return values without their mean and without the part that is proportional to the result.

    Long sums of positive numbers err in proportion to the result in every arithmetic. Only the
    rest tells arithmetics apart.
    """
    if not values.numel():
        return values
    centred, along = values - values.mean(), exact - exact.mean()
    size = float(along @ along)
    return centred - (float(centred @ along) / size) * along if size > 0 else centred


def _agreement(r: torch.Tensor, d: torch.Tensor, least: int) -> tuple[float, float]:
    """Return slope <r,d>/<d,d> and correlation, zeros if fewer elements than that carry them."""
    squares = d.square()
    total, size = float(squares.sum()), float(r.square().sum())
    if total == 0 or size == 0 or total**2 < least * float(squares.square().sum()):
        return 0.0, 0.0
    product = float(r @ d)
    return product / total, product / (total * size) ** 0.5


def _named(matches: list[Match]) -> Match:
    """Return the best match; one that names TF32 and float16 if both explain it as well."""
    best = max(matches, key=lambda m: m.correlation)
    alike = [m for m in matches if best.correlation - m.correlation < _ALIKE]
    tf32 = next((m for m in alike if m.text.startswith(SPOKEN["tf32"] + " ")), None)
    fp16 = next((m for m in alike if m.text.startswith(SPOKEN["fp16"] + " ")), None)
    if best not in (tf32, fp16) or tf32 is None or fp16 is None:
        return best
    text = tf32.text.replace(SPOKEN["tf32"], f"{SPOKEN['tf32']} or {SPOKEN['fp16']}", 1)
    return dataclasses.replace(tf32, text=text)
