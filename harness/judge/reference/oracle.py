"""The oracle: the reference in float64, and how precise it really is."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.judge.policy import Policy
from harness.judge.reference import similarity
from harness.judge.reference.arithmetic import opened
from harness.judge.reference.problem import InvalidReference, Outcome, Problem, to_double
from harness.usercode.modules import mapped, tensors_of, write_state

_BIG_BYTES = 1 << 28
_NUDGES = {"bf16": 1e-5, "fp32": 1e-10}
"""A precision, and a relative change of the inputs that its rounding hides: far below half a unit
in its last place (4e-3, 6e-8), and far above one of the next finer precision."""
_SAMPLE = 1 << 20
"""The judge looks at so many elements of an output, evenly spread, to see whether it moves."""


class Oracle:
    """The float64 copy of a problem's reference; each call starts from the reference's state.

    Attributes:
        module: the copy, or the reference itself where float64 gives no oracle.
        precision: its real precision: ``fp64``, a lower one where the reference casts back inside,
            or ``itself`` where the reference takes its place.

    Args:
        problem: its reference is copied; the state of the copy is always the reference's.
        notes: gets notes about the oracle for the reader of the verdict.
        policy: says when the float64 copy agrees with the reference.
    """

    def __init__(self, problem: Problem, notes: list[str], policy: Policy) -> None:
        self._problem = problem
        self._policy = policy
        self._on_cpu = False
        self.module = problem.build_oracle()
        self.precision = "fp64"
        self.notes = notes

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on the CPU, because the device has too little memory."""
        return self._on_cpu

    @property
    def is_reference(self) -> bool:
        """Whether the reference takes the place of the oracle."""
        return self.module is self._problem.reference

    def call(
        self,
        mode: str,
        inputs: list[Any],
        rng: int,
        grads: Any,
        under: TorchDispatchMode | None = None,
        *,
        stand_in: bool = False,
    ) -> Outcome:
        """Return the oracle's results on these inputs, from the reference's present state.

        Args:
            mode: see Problem.call, as for rng and grads.
            inputs: of the call, left unchanged.
            rng: seed of all generators before the call.
            grads: of the outputs, None for a call without gradients.
            under: an arithmetic to compute in (see ``arithmetic``), None for float64's.
            stand_in: call the reference in place of the oracle.
        """
        problem = self._problem
        recurrent = any(isinstance(m, torch.nn.RNNBase) for m in self.module.modules())
        with opened(under, recurrent=recurrent) if under else contextlib.nullcontext():
            if self.is_reference or stand_in:
                before = {n: t.detach().clone() for n, t in problem.state().items()}
                outcome = problem.call(problem.reference, mode, inputs, rng, grads)
                write_state(problem.reference, before)
            else:
                write_state(self.module, problem.state())
                try:
                    outcome = self._double_call(mode, inputs, rng, grads)
                except torch.OutOfMemoryError:
                    if under is not None or self._on_cpu:
                        raise
                    self._move_oracle_to_cpu()
                    outcome = self._double_call(mode, inputs, rng, grads)
        outcome.output = mapped(outcome.output, to_double)
        return outcome

    def _double_call(self, mode: str, inputs: list[Any], rng: int, grads: Any) -> Outcome:
        device = torch.device("cpu") if self._on_cpu else self._problem.device
        moved = [mapped(v, lambda t: _fresh_double(t, device)) for v in inputs]
        outcome = self._problem.call(self.module, mode, moved, rng, grads, private=True)
        if self._on_cpu:
            home = self._problem.device
            outcome.output = mapped(outcome.output, lambda t: t.to(home))
            outcome.state = {n: t.to(home) for n, t in outcome.state.items()}
            outcome.input_grads = [t if t is None else t.to(home) for t in outcome.input_grads]
            outcome.state_grads = {
                n: t if t is None else t.to(home) for n, t in outcome.state_grads.items()
            }
        return outcome

    def _move_oracle_to_cpu(self) -> None:
        self.module = self.module.cpu()
        self._on_cpu = True
        torch.cuda.empty_cache()
        self.notes.append("the float64 oracle runs on the CPU: it does not fit on the GPU")

    def measure(self, mode: str, rng: int, inputs: list[Any], first: Outcome, random: bool) -> None:
        """Find out in which precision the oracle really computes, and whether it agrees."""
        policy = self._policy
        try:
            exact = self.call(mode, inputs, rng, None)
        except InvalidReference as error:
            self._replace_oracle(f"the reference does not run in float64 ({error})")
            return
        if not similarity.same_shapes(exact.output, first.output) or not (
            similarity.near(exact.output, first.output, policy.oracle_part)
            or _both_noise(exact.output, first.output, inputs, policy.oracle_noise)
        ):
            why = "draws other random numbers" if random else "computes something else"
            self._replace_oracle(f"the reference {why} in float64")
            return
        if any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors_of(inputs)) or any(
            t.dtype in (torch.float16, torch.bfloat16) for t in self._problem.state().values()
        ):
            return
        if not any(t.is_floating_point() for t in tensors_of(inputs)):
            return
        del first
        if sum(t.numel() * t.element_size() for t in tensors_of(inputs)) > _BIG_BYTES:
            # The number of samples changes memory, and not precision.
            del exact
            inputs = _first_samples(inputs)
            try:
                exact = self.call(mode, inputs, rng, None)
            except InvalidReference:
                self.notes.append("the oracle's own precision was not measured")
                return
        for level, nudge in _NUDGES.items():
            if self._unmoved(mode, rng, inputs, exact, nudge):
                self.precision = level
                self.notes.append(f"the reference casts to {level} inside, even in float64")
                return

    def _unmoved(
        self, mode: str, rng: int, inputs: list[Any], exact: Outcome, nudge: float
    ) -> bool:
        """Return whether the oracle's output stays the same when all its inputs move a little."""
        moved = [
            mapped(v, lambda t: to_double(t) * (1 + nudge) if t.is_floating_point() else t)
            for v in inputs
        ]
        other = self.call(mode, moved, rng, None)
        same = total = 0
        for a, b in zip(tensors_of(exact.output), tensors_of(other.output), strict=False):
            if a.is_floating_point():
                a, b = (t.reshape(-1)[:: max(1, t.numel() // _SAMPLE)] for t in (a, b))
                relevant = (a != 0) & torch.isfinite(a) & (a != a.round())
                total += int(relevant.sum())
                same += int((relevant & (a == b)).sum())
        return total > 0 and same > self._policy.oracle_unmoved * total

    def _replace_oracle(self, why: str) -> None:
        self.module = self._problem.reference
        self.precision = "itself"
        self.notes.append(f"no float64 oracle: {why}; compared with the reference itself")


def _both_noise(exact: Any, rounded: Any, inputs: list[Any], noise: float) -> bool:
    """Return whether two outputs differ by rounding noise beside the size of the inputs.

    Where everything cancels, float32 and float64 give different noise. The float64 copy is still
    the oracle, and the large error of the reference widens the tolerance.
    """
    floating = [t for t in tensors_of(inputs) if t.is_floating_point() and t.numel()]
    scale = max((float(t.abs().max()) for t in floating), default=0.0)
    pairs = zip(tensors_of(exact), tensors_of(rounded), strict=False)
    return all(
        e.is_floating_point()
        and e.numel() > 0
        and float((e - r.to(e.dtype)).abs().max()) <= noise * scale
        for e, r in pairs
    )


def _fresh_double(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a float64 copy that shares memory with nothing."""
    moved = to_double(t).to(device)
    return moved.clone() if moved.data_ptr() == t.data_ptr() else moved


def _first_samples(inputs: list[Any], count: int = 2) -> list[Any]:
    """Return the first samples of the inputs; the batch is the most frequent first dimension."""
    sizes = [t.shape[0] for t in tensors_of(inputs) if t.dim() > 1]
    batch = max(set(sizes), key=sizes.count) if sizes else 0
    return [
        mapped(v, lambda t: t[:count] if t.dim() and t.shape[0] == batch > count else t)
        for v in inputs
    ]
