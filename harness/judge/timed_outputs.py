"""Checks outputs of timed batches: elements as they were at *done*, and some outputs whole."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness import bell
from harness.domain import Status
from harness.judge import compare, state
from harness.judge.baton import Baton, Timed
from harness.judge.compare import Mismatch
from harness.judge.oracle import Oracle
from harness.judge.precision import Standard
from harness.judge.problem import Outcome, Problem
from harness.judge.staging import Stage
from harness.modules import differentiable, shown_tensors, tensors_of, write_state

_SAMPLE = 1 << 22
_SLICE_PART = 0.05
"""Shown elements may be off by this part of their tensor's root mean square: they are there to
see work that is late, stale or left out; precision is judged on whole outputs."""


class TimedWrongly(Exception):
    """An output of a timed batch is wrong; carries the mismatch."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(mismatch.message)
        self.mismatch = mismatch


class OutputCheck:
    """Holds timed outputs against the reference on the same inputs.

    Args:
        problem: its reference says what is right.
        oracle: what whole outputs are held against where they are small enough.
        stage: gives the inputs of a slot once more.
        match: how the candidate's state was matched.
        standard: bounds for whole outputs.
        mode: forward, eval or train.
        repeats: whether the reference gives the same outputs again; where not, form is all.
        large: outputs take gigabytes: every fourth batch is checked.
        secret: chooses what is looked at.
    """

    def __init__(
        self,
        problem: Problem,
        oracle: Oracle,
        stage: Stage,
        match: state.Match,
        standard: Standard,
        mode: str,
        *,
        repeats: bool,
        large: bool,
        secret: random.Random,
    ) -> None:
        self._problem = problem
        self._oracle = oracle
        self._stage = stage
        self._match = match
        # The oracle may be too large for the moment: the reference then stands in for it. What
        # rounds differently has been found by the checked calls.
        self._standard = dataclasses.replace(standard, oracle_precision="itself")
        self._mode = mode
        self._repeats = repeats
        self._large = large
        self._secret = secret
        self._batches = 0

    @property
    def most(self) -> int:
        """Return how many outputs of a batch are looked at."""
        return 2 if self._large else 4

    def check_next_whole(self) -> None:
        """Have the next batch checked whole, whatever its turn."""
        self._batches = 0

    def check(self, baton: Baton, timed: Timed) -> None:
        """Check a batch of the candidate's.

        Raises:
            TimedWrongly: an output is late, stale, left out, or not what the reference gives.
            WorkerFailed: it cannot be had.
        """
        self._batches += 1
        whole = not self._large or self._batches % 4 == 1
        chosen = self._secret.choice(timed.picks)
        rows = {position: row for row, position in enumerate(timed.picks)}  # shown twice: once
        for position, row in rows.items():
            if position != chosen and self._large and not whole:
                continue
            expected, oracle = self._expected(timed.order[position], position == chosen and whole)
            if self._repeats:
                self._check_shown(baton, row, expected, timed.elements, position)
            if position == chosen and whole:
                self._check_whole(baton, position, expected, oracle)

    def _check_shown(
        self, baton: Baton, row: int, expected: Outcome, elements: np.ndarray, position: int
    ) -> None:
        like = shown_tensors(expected.output, None)
        if self._mode == "train":
            like = [*like, *expected.input_grads]
        raw = torch.from_numpy(elements)
        for column, tensor in enumerate(like[: bell.MAX_TENSORS]):
            if tensor is None or not tensor.numel() or tensor.layout is not torch.strided:
                continue
            got = baton.shown(row, column, tensor)
            want = torch.take(tensor, (raw % tensor.numel()).to(tensor.device))
            if differentiable(tensor):
                wide = torch.complex128 if tensor.is_complex() else torch.float64
                allowed = _SLICE_PART * max(rms(tensor), rms(want))
                same = ~torch.isfinite(want)
                off = torch.where(same, 0.0, (got.to(wide) - want.to(wide)).abs())
                wrong = not bool(rms(off) <= allowed)
            else:
                wrong = not torch.equal(got, want)
            if wrong:
                raise TimedWrongly(
                    Mismatch(
                        status=Status.WRONG_VALUES,
                        message=f"output {position + 1} of {baton.role} was not there when it "
                        "said done (late, stale or left out)",
                    )
                )

    def _check_whole(self, baton: Baton, position: int, expected: Outcome, oracle: Any) -> None:
        answer = baton.worker.ask("fetch", position=position)
        values = baton.worker.values(answer)
        mismatch = (
            Mismatch(status=Status.WRONG_STRUCTURE, message=str(answer["odd"])[:300])
            if answer.get("odd")
            else compare.structure(values.get("output"), expected.output)
        )
        if mismatch is not None:
            raise TimedWrongly(mismatch)
        if not self._repeats:
            return
        triples: list[tuple[str, Any, torch.Tensor, torch.Tensor]] = [
            ("output", got, want, exact)
            for got, want, exact in zip(
                tensors_of(values["output"]),
                tensors_of(expected.output),
                tensors_of(oracle),
                strict=False,
            )
        ]
        if self._mode == "train":
            grads = values.get("input_grads")
            for got, want in zip(
                grads if isinstance(grads, list) else [], expected.input_grads, strict=False
            ):
                if want is not None:
                    triples.append(("gradient of an input", got, want, want))
            theirs = values.get("state_grads")
            for name, ours in self._match.source.items():
                want = expected.state_grads.get(ours)
                if want is not None and isinstance(theirs, dict):
                    self._check_state_grad(ours, theirs.get(name), want)
        for what, got, want, exact in triples:
            if not isinstance(got, torch.Tensor) or got.shape != want.shape:
                mismatch = Mismatch(
                    status=Status.WRONG_GRADIENTS, message=f"the {what} is missing or misshapen"
                )
            else:
                _, mismatch = compare.tensor(got, want, exact, self._standard, "time", what)
            if mismatch is not None:
                raise TimedWrongly(mismatch)

    def _check_state_grad(self, name: str, got: Any, want: torch.Tensor) -> None:
        """See that a parameter's gradient is there; checked calls have judged its precision.

        It sums over the whole batch: the reference's own rounding is far above an element's.
        """
        there = isinstance(got, torch.Tensor) and got.shape == want.shape
        if not there or not rms(got - want) <= _SLICE_PART * rms(want):
            raise TimedWrongly(
                Mismatch(status=Status.WRONG_GRADIENTS, message=f"the gradient of {name} is wrong")
            )

    def _expected(self, slot: int, whole: bool) -> tuple[Outcome, Any]:
        problem, mode = self._problem, self._mode
        before: Mapping[str, torch.Tensor] = {
            n: t.detach().clone() for n, t in problem.state().items()
        }
        inputs, grads = self._stage.values(slot)
        oracle = None
        if whole and not self._oracle.is_reference and not self._large:
            oracle = self._oracle.call(mode, inputs, 0, None).output
        outcome = problem.call(problem.reference, mode, inputs, 0, grads, private=True)
        write_state(problem.reference, before)
        return outcome, outcome.output if oracle is None else oracle


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two outputs are the same but for rounding, by a sample of their elements."""
    if a.shape != b.shape:
        return False
    if a.numel() > _SAMPLE:
        chosen = torch.randint(a.numel(), (_SAMPLE,), device=a.device)
        a, b = torch.take(a, chosen), torch.take(b, chosen)
    return torch.equal(a, b) or rms(a - b) <= 1e-3 * rms(b)


def rms(t: torch.Tensor) -> float:
    """Return the root mean square of the finite elements, of a sample where there are many."""
    if not t.numel():
        return 0.0
    if t.numel() > _SAMPLE:
        t = torch.take(t, torch.randint(t.numel(), (_SAMPLE,), device=t.device))
    size = t.to(torch.complex128 if t.is_complex() else torch.float64).abs()
    finite = torch.where(torch.isfinite(size), size, torch.zeros_like(size))
    return float(finite.square().mean().sqrt())
