"""Checks outputs of timed batches as they were at *done*: elements of some, one of them whole."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from harness.domain import Refusal, Status
from harness.ipc import mailbox
from harness.judge.check import compare
from harness.judge.check.fingerprint import Evidence, Looks, named
from harness.judge.check.precision import Standard
from harness.judge.check.structure import Mismatch, same_number
from harness.judge.reference import state
from harness.judge.reference.dataflow import FreeOrders, are_free_elements
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import Outcome, Problem
from harness.judge.reference.similarity import triples
from harness.judge.timing.clock import ClockPolicy
from harness.judge.timing.input_pool import InputPool, Values, flat
from harness.judge.timing.timed_worker import Seen, Timed, tensors_read
from harness.judge.workers.peer_memory import Layout
from harness.usercode.modules import (
    differentiable,
    float_of,
    given_tensors,
    tensors_of,
    values_of,
    word_of,
    write_state,
)

_SAMPLE = 1 << 22
_PART = 1 << 20
"""Elements of an input that are read; all of it if it has no more."""

Part = tuple[torch.Tensor | None, torch.Tensor]
"""Indices of the elements of a tensor that were read, None for all, and their values."""


class TimedWrongly(Refusal):
    """An output of a timed batch is wrong."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(
            mismatch.status,
            f"in a timed batch, {mismatch.message}: what is checked is not what was timed",
        )


class OutputCheck:
    """Compares timed outputs with the reference on the same inputs.

    Args:
        problem: its reference gives the right outputs.
        oracle: gives exact outputs, if they are small enough; whole outputs are compared with it.
        stage: gives the inputs of a slot once more.
        match: how the candidate's state was matched.
        standard: bounds for whole outputs.
        policy: bounds for elements, and how much is looked at.
        mode: forward, eval or train.
        repeats: whether the reference gives the same outputs again; if not, only form and size are
            checked.
        large: outputs take gigabytes: few batches are checked whole.
        secret: chooses the outputs that are read.
        moving: names of the tensors of the reference's state that calls change.
    """

    def __init__(
        self,
        problem: Problem,
        oracle: Oracle,
        stage: InputPool,
        match: state.Match,
        standard: Standard,
        policy: ClockPolicy,
        mode: str,
        *,
        repeats: bool,
        large: bool,
        secret: random.Random,
        moving: frozenset[str] = frozenset(),
    ) -> None:
        self._problem = problem
        self._oracle = oracle
        self._input_pool = stage
        self._match = match
        # The reference stands in for an oracle that is too large now. The checked calls have
        # found solutions that round differently.
        self._standard = dataclasses.replace(standard, oracle_precision="itself")
        self._policy = policy
        self._mode = mode
        self._repeats = repeats
        self._large = large
        self._secret = secret
        self._moving = moving
        self._near_keys = standard.policy.near_keys
        self._batches = 0
        self._looks = Looks()

    @property
    def wants_whole(self) -> bool:
        """Return whether one output of the next batch is to be read whole."""
        return (
            not self._large or self._batches == 0 or self._secret.random() < self._policy.whole_part
        )

    @property
    def most(self) -> int:
        """Return how many outputs of a batch are read."""
        policy = self._policy
        return policy.large_outputs_read if self._large else policy.outputs_read

    def check_next_whole(self) -> None:
        """Have the next batch checked whole, whatever its turn."""
        self._batches = 0

    def see_inputs(self, slots: set[int]) -> Mapping[int, Sequence[Part]]:
        """Return the present contents of the inputs of slots: some elements of large ones."""
        return {slot: parts(self._input_pool.places(slot)) for slot in slots}

    def inputs_of(self, timed: Timed) -> Mapping[int, Values]:
        """Return private copies of the inputs of the outputs that were read, by slot.

        With them the batch can be checked after other inputs have been staged.
        """
        slots = {timed.order[position] for position in timed.seen.elements}
        return {slot: self._input_pool.values(slot) for slot in slots}

    def check(self, timed: Timed, inputs: Mapping[int, Values] | None = None) -> None:
        """Check a batch of the candidate's.

        Args:
            timed: the batch.
            inputs: by slot, as inputs_of() gave them; None while they are still staged.

        Raises:
            TimedWrongly: an output is late, stale, left out, or not what the reference gives.
        """
        seen = timed.seen
        if seen.layout is None:
            return  # the first batch over new inputs, which is not counted
        self._batches += 1
        for position in seen.elements:
            judged = position == seen.chosen
            whole = seen.whole if judged else None
            slot = timed.order[position]
            staged = self._input_pool.values(slot) if inputs is None else inputs[slot]
            touched = seen.inputs is not None and not _untouched(seen.inputs[slot], staged)
            rng = timed.seed + position if timed.seed else 0
            expected, oracle, evidence = self._expected(staged, whole is not None, rng)
            # If the reference writes into its inputs, they must be as it left them.
            if touched and not _untouched(seen.inputs[slot], staged, self._policy):
                raise _wrong(Status.INPUT_MUTATED, "an input of a timed call was written over")
            wanted = self._wanted(expected, seen.layout)
            self._check_forms(wanted, seen.layout)
            if whole is not None:
                self._check_rest(seen, whole)
            self._check_elements(
                wanted, seen, position, functools.partial(self._free_orders, staged, rng)
            )
            self._check_values(expected.output, seen.words.get(position))
            if whole is not None and self._repeats:
                self._check_whole(wanted, whole, seen.layout, expected, oracle, evidence)

    def _wanted(self, expected: Outcome, layout: Layout) -> list[torch.Tensor | None]:
        """Return the reference's tensors, in the order of the candidate's."""
        wanted = list(given_tensors(expected.output, None))
        unknown = [name for name in layout.state if name not in self._match.source]
        if unknown or (layout.state and self._mode != "train"):
            said = (unknown or layout.state)[0][:200]
            raise _wrong(
                Status.WRONG_STRUCTURE,
                f"a timed call gives a gradient of {said!r}, which no checked call gave",
            )
        if self._mode == "train":
            of_state = {
                name: expected.state_grads.get(ours) for name, ours in self._match.source.items()
            }
            wanted += [*expected.input_grads, *(of_state.get(name) for name in layout.state)]
            missing = [n for n, want in of_state.items() if want is not None]
            missing = [n for n in missing if n not in layout.state]
            if missing:
                raise _wrong(Status.WRONG_GRADIENTS, f"the gradient of {missing[0]} is missing")
        return wanted[: mailbox.MAX_TENSORS]

    def _check_forms(self, wanted: list[torch.Tensor | None], layout: Layout) -> None:
        """Check that the candidate's tensors have the forms of untimed calls."""
        if len(layout.forms) != len(wanted):
            raise _wrong(
                Status.WRONG_STRUCTURE,
                f"a timed call gives {len(layout.forms)} tensors, the reference {len(wanted)}",
            )
        for form, want in zip(layout.forms, wanted, strict=True):
            if want is None or want.layout is not torch.strided:
                continue
            if form is None or (form.dtype, form.shape) != (want.dtype, tuple(want.shape)):
                got = "nothing" if form is None else f"{form.dtype} {list(form.shape)}"
                raise _wrong(
                    Status.WRONG_STRUCTURE,
                    f"a timed call gives {got} where the reference gives {want.dtype} "
                    f"{list(want.shape)}",
                )

    def _check_elements(
        self,
        wanted: list[torch.Tensor | None],
        seen: Seen,
        position: int,
        orders: Callable[[], list[tuple[torch.Tensor, int, torch.Tensor]]],
    ) -> None:
        numbers = torch.from_numpy(seen.numbers[position])
        read = tensors_read(seen.numbers[position], len(wanted))
        for i, (tensor, got) in enumerate(zip(wanted, seen.elements[position], strict=True)):
            if i not in read or tensor is None or not tensor.numel():
                continue
            if tensor.layout is not torch.strided:
                continue
            want = torch.take(tensor, (numbers % tensor.numel()).to(tensor.device))
            if got is None:
                wrong = True
            elif not self._repeats:
                wrong = differentiable(tensor) and not self._plausible(got, want)
            elif differentiable(tensor):
                wide = torch.complex128 if tensor.is_complex() else torch.float64
                got, want = got.to(want.device, wide), want.to(wide)
                there = torch.isfinite(want)
                off = torch.where(there, (got - want).abs(), 0.0)
                # NaN and infinity are wrong: memory that was not written holds NaN.
                wrong = not bool(torch.isfinite(off).all())
                wrong = wrong or not rms(off) <= self._bound(tensor, want)
            else:
                got = got.to(want.device)
                places = (numbers % tensor.numel()).to(tensor.device)
                wrong = not torch.equal(got, want) and not (
                    got.dtype is torch.int64
                    and are_free_elements(got, tensor, places, orders(), self._near_keys)
                )
            if wrong:
                raise _wrong(
                    Status.WRONG_VALUES,
                    f"output {position + 1} was not there when the candidate "
                    "said done (late, stale, left out, or in memory that the judge cannot see"
                    + (f": {seen.blind})" if seen.blind else ")"),
                )

    def _free_orders(
        self, staged: Values, rng: int
    ) -> list[tuple[torch.Tensor, int, torch.Tensor]]:
        """Return the sorts of a call that promise no order among equal elements."""
        before = {n: t.detach().clone() for n, t in self._problem.state().items()}
        watch = FreeOrders()
        with watch:
            self._problem.call(self._problem.reference, self._mode, staged[0], rng, None)
        write_state(self._problem.reference, before)
        return watch.found

    def _check_values(self, output: Any, words: Sequence[int] | None) -> None:
        """See that numbers and other values of a timed call are the reference's."""
        wanted = values_of(output)
        if words is None or not self._repeats:
            return
        if len(words) != len(wanted):
            raise _wrong(
                Status.WRONG_STRUCTURE,
                f"a timed call gives {len(words)} values that are no tensors, the reference "
                f"{len(wanted)}",
            )
        for word, want in zip(words, wanted, strict=True):
            got = float_of(word)
            near = isinstance(want, float) and same_number(got, want)
            if not near and word != word_of(want):
                said = repr(got) if isinstance(want, float) else "another value"
                raise _wrong(
                    Status.WRONG_VALUES, f"a timed call gives {said} where {want!r} is right"
                )

    def check_moved(self, timed: Timed) -> None:
        """See that the state after a batch is the reference's after as many calls.

        Args:
            timed: a batch that read the state; its inputs are still staged.

        Raises:
            TimedWrongly: the candidate did not update its state, or in another way.
        """
        if timed.moved is None:
            return
        before, after = timed.moved
        names = [name for name in self._match.source if self._match.source[name] in self._moving]
        problem = self._problem
        kept = {n: t.detach().clone() for n, t in problem.state().items()}
        began = {
            self._match.source[n]: t
            for n, t in zip(names, before, strict=False)
            if t is not None and t.shape == kept[self._match.source[n]].shape
        }
        write_state(problem.reference, began)
        with problem.running():
            for position, slot in enumerate(timed.order):
                rng = timed.seed + position if timed.seed else 0
                inputs = self._input_pool.values(slot)[0]
                problem.call(problem.reference, self._mode, inputs, rng, None)
        right = {n: t.detach().clone() for n, t in problem.state().items()}
        write_state(problem.reference, kept)
        for name, first, got in zip(names, before, after, strict=False):
            want = right[self._match.source[name]]
            if first is None or got is None or first.shape != want.shape:
                continue  # not in sight before: its next batch shows where it lies
            if got.shape != want.shape or not _moved_alike(
                first.to(want), got.to(want), want, self._policy
            ):
                raise _wrong(
                    Status.WRONG_STATE,
                    f"after {len(timed.order)} timed calls state {name} is not the reference's: "
                    "the calls left its update out, or update it in another way",
                )

    def _check_rest(self, seen: Seen, whole: Sequence[torch.Tensor | None]) -> None:
        """Check that an output did not change between *done* and the end of the clock."""
        numbers = torch.from_numpy(seen.numbers[seen.chosen])
        for got, later in zip(seen.elements[seen.chosen], whole, strict=True):
            if got is None or later is None:
                continue
            now = torch.take(later, (numbers % later.numel()).to(later.device))
            if not torch.equal(_bits(got), _bits(now)):
                raise _wrong(
                    Status.WRONG_VALUES,
                    f"output {seen.chosen + 1} was still being written when the candidate had "
                    "said done",
                )

    def _check_whole(
        self,
        wanted: list[torch.Tensor | None],
        whole: Sequence[torch.Tensor | None],
        layout: Layout,
        expected: Outcome,
        oracle: Outcome,
        evidence: Evidence | None,
    ) -> None:
        output = oracle.output
        names = [n for n, _, _, _ in triples(output, output, output, "output")]
        names += [f"grad {i}" for i, _ in enumerate(expected.input_grads)]
        names += [f"grad {self._match.source[n]}" for n in layout.state if self._mode == "train"]
        exact = [
            *tensors_of(output),
            *oracle.input_grads,
            *(oracle.state_grads.get(self._match.source[n]) for n in layout.state),
        ]
        into = len(given_tensors(expected.output, None)) + len(expected.input_grads)
        for i, (got, want) in enumerate(zip(whole, wanted, strict=True)):
            if want is None or not want.numel() or want.layout is not torch.strided:
                continue
            if got is None:
                raise _wrong(
                    Status.WRONG_VALUES, "an output is in memory that the judge cannot see"
                )
            right = exact[i] if i < len(exact) else None
            if i >= into and right is None:
                self._check_state_grad(layout.state[i - into], got, want)
                continue
            right, what = want if right is None else right, names[i]
            mismatch = compare.tensor(
                got.to(want.device), want, right, self._standard, "time", what, evidence
            ).mismatch
            if mismatch is not None:
                raise TimedWrongly(mismatch)

    def _check_state_grad(self, name: str, got: torch.Tensor, want: torch.Tensor) -> None:
        """Check that a parameter's gradient is there; checked calls have judged its precision.

        It is a sum over all samples, so the reference's own rounding is large.
        """
        if not rms(got.to(want.device) - want) <= self._policy.element_part * rms(want):
            raise _wrong(Status.WRONG_GRADIENTS, f"the gradient of {name} is wrong")

    def _plausible(self, got: torch.Tensor, want: torch.Tensor) -> bool:
        """Return whether elements have the size of a reference's that never gives them again."""
        if bool(torch.isfinite(want).all()) and not bool(torch.isfinite(got).all()):
            return False
        times = self._policy.plausible_times
        return rms(want) <= times * rms(got) and rms(got) <= times * rms(want)

    def _bound(self, tensor: torch.Tensor, want: torch.Tensor) -> float:
        """Return how far elements may be off, root mean square.

        A part of the tensor's size, and of its spread where that is smaller: otherwise a constant
        would do for a tensor that varies little.
        """
        size = max(rms(tensor), rms(want))
        spread = size
        if want.numel() > 1:
            spread = max(rms(want - want[torch.isfinite(want)].mean()), 0.0)
        part, least = self._policy.element_part, self._policy.element_size_part
        return min(part * size, max(part * spread, least * size))

    def _expected(
        self, staged: Values, whole: bool, rng: int
    ) -> tuple[Outcome, Outcome, Evidence | None]:
        problem, mode = self._problem, self._mode
        before: Mapping[str, torch.Tensor] = {
            n: t.detach().clone() for n, t in problem.state().items()
        }
        inputs, grads = staged
        oracle = None
        if whole and not self._oracle.is_reference and not self._large:
            # Gradients in float64 take three times as long: seldom, but nobody knows when.
            differentiated = (
                self._batches == 1 or self._secret.random() < self._policy.gradients_part
            )
            oracle = self._oracle.call(mode, inputs, rng, grads if differentiated else None)
        versions = [t._version for t in tensors_of(inputs)]
        outcome = problem.call(problem.reference, mode, inputs, rng, grads, private=True)
        write_state(problem.reference, before)
        exact = dataclasses.replace(outcome, state_grads={}) if oracle is None else oracle
        if not whole or versions != [t._version for t in tensors_of(inputs)]:
            return outcome, exact, None
        evidence = Evidence(
            problem,
            self._oracle,
            self._standard.policy,
            mode=mode,
            inputs=inputs,
            rng=rng,
            grads=grads,
            before=before,
            exact=named(exact, []),
            seed=self._secret.getrandbits(60),
            notes=[],
            looks=self._looks,
            stand_in=oracle is None,
        )
        return outcome, exact, evidence


def _moved_alike(
    first: torch.Tensor, got: torch.Tensor, want: torch.Tensor, policy: ClockPolicy
) -> bool:
    """Return whether a state has moved from the first value to that which the reference has now."""
    if not differentiable(want):
        return torch.equal(got, want)
    rounding = policy.moved_eps * torch.finfo(want.dtype).eps * rms(want)
    off = torch.where(torch.isfinite(want), (got - want).abs(), 0.0)
    return (
        bool(torch.isfinite(off).all())
        and rms(off) <= policy.moved_part * rms(want - first) + rounding
    )


def parts(places: Sequence[torch.Tensor]) -> list[Part]:
    """Return the present contents of places: all, or some elements of large ones."""
    return [_part(place) for place in places]


def _part(place: torch.Tensor) -> Part:
    if place.numel() <= _PART:
        return None, place.clone()
    chosen = torch.randint(place.numel(), (_PART,), device=place.device)
    return chosen, torch.take(place, chosen)


def _untouched(found: Sequence[Part], staged: Values, policy: ClockPolicy | None = None) -> bool:
    """Return whether inputs are as they were staged; with a policy, up to rounding."""
    for (chosen, got), tensor in zip(found, flat(staged[0], staged[1] or []), strict=True):
        want = tensor if chosen is None else torch.take(tensor, chosen.to(tensor.device))
        got = got.to(want.device)
        same = torch.equal(_bits(got), _bits(want))
        if not same and not (policy and differentiable(want) and alike(got, want, policy)):
            return False
    return True


def _bits(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes: NaN is equal to itself there."""
    return t.resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8)


def _wrong(status: Status, message: str) -> TimedWrongly:
    return TimedWrongly(Mismatch(status=status, message=message))


def alike(a: torch.Tensor, b: torch.Tensor, policy: ClockPolicy) -> bool:
    """Return whether two outputs are the same but for rounding, by a sample of their elements."""
    if a.shape != b.shape:
        return False
    if a.numel() > _SAMPLE:
        chosen = torch.randint(a.numel(), (_SAMPLE,), device=a.device)
        a, b = torch.take(a, chosen), torch.take(b, chosen)
    return torch.equal(a, b) or rms(a - b) <= policy.alike_part * rms(b)


def rms(t: torch.Tensor) -> float:
    """Return the root mean square of the finite elements, of a sample where there are many."""
    if not t.numel():
        return 0.0
    if t.numel() > _SAMPLE:
        t = torch.take(t, torch.randint(t.numel(), (_SAMPLE,), device=t.device))
    size = t.to(torch.complex128 if t.is_complex() else torch.float64).abs()
    finite = torch.where(torch.isfinite(size), size, torch.zeros_like(size))
    return float(finite.square().mean().sqrt())
