"""Judges one answer of the candidate: output, aliases, inputs, gradients, state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.domain import Check, Refusal, Status
from harness.judge.check import compare, trials
from harness.judge.check.fingerprint import Evidence, Looks, named
from harness.judge.check.impostors import IMPOSTORS
from harness.judge.check.precision import Standard
from harness.judge.check.structure import Mismatch, structure
from harness.judge.reference import similarity, state
from harness.judge.reference.dataflow import matters
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import InvalidReference, Outcome, Problem, to_double
from harness.usercode.modules import mapped, nbytes, tensors_of, write_state

BIG_BYTES = 1 << 28
"""Larger outputs are not kept or sent back for checks that can do without them."""
_MANY_TIMES = 1e6


class Refused(Refusal):
    """A check failed: carries the mismatch and where it happened."""

    def __init__(self, mismatch: Mismatch, trial: trials.Trial, case: Case) -> None:
        super().__init__(mismatch.status, mismatch.message)
        self.mismatch = mismatch
        self.trial = trial
        self.case = case


@dataclass(slots=True)
class Case:
    """One trial made concrete.

    Attributes:
        inputs: arguments of the call.
        before: the reference's state before the call.
        reference: what the reference did, in its own precision.
        oracle: what it does in float64.
        varied: whether the inputs really differ from a nominal draw.
        output_grads: one per output tensor in train mode, else None.
        outside: whether the problem draws no such inputs.
        evidence: looks into errors of this call; made when needed.
    """

    inputs: list[Any]
    before: dict[str, torch.Tensor]
    reference: Outcome
    oracle: Outcome
    varied: bool
    output_grads: list[torch.Tensor | None] | None
    outside: bool = False
    evidence: Evidence | None = None


@dataclass(slots=True)
class Report:
    """What the checks found so far; filled while they run."""

    checks: dict[str, Check] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    dropped: list[str] = field(default_factory=list)
    survivors: set[str] = field(default_factory=lambda: set(IMPOSTORS))
    nominal_agreed: bool = False
    state_changed_before: bool = False
    precisions: list[str] = field(default_factory=list)


class AnswerJudge:
    """Compares answers with cases, one after the other.

    Args:
        problem, oracle: compute the right answers.
        match: how the candidate's state was matched.
        standard: bounds.
        report: takes the figures.
    """

    def __init__(
        self,
        problem: Problem,
        oracle: Oracle,
        match: state.Match,
        standard: Standard,
        report: Report,
    ) -> None:
        self._problem = problem
        self._oracle = oracle
        self._match = match
        self._standard = standard
        self._report = report
        self._names = problem.forward_names()
        self._accepted: Any = None
        self._warned: dict[str, float] = {}
        self._looks = Looks()
        self._idle: dict[str, bool] = {}

    def forget(self) -> None:
        """Let go of the last accepted output."""
        self._accepted = None

    def judge(self, answer: dict[str, Any], trial: trials.Trial, case: Case) -> None:
        """Compare one answer with everything that is expected of it.

        Raises:
            Refused: the first thing that is wrong with it.
        """
        try:
            self._judge(answer, trial, case)
        except _Found as found:
            raise Refused(found.mismatch, trial, case) from None

    def _judge(self, answer: dict[str, Any], trial: trials.Trial, case: Case) -> None:
        values, expected = answer["decoded"], case.reference
        if answer["odd"]:
            raise _found(Status.WRONG_STRUCTURE, answer["odd"][0])
        output = values["output"]
        _refuse(structure(output, expected.output))
        self._compare_all(output, expected.output, case.oracle.output, "output", trial, case)
        _check_aliases(answer["aliases"], expected)
        if "inputs" in values:
            self._check_inputs(values["inputs"], trial, case)
        if self._accepted is not None and "previous" in values and not expected.aliases:
            self._check_previous(values["previous"])
        if case.output_grads is not None:
            self._check_gradients(answer["missing_grads"], values, trial, case)
        self._check_state(values["state"], trial, case)
        small = sum(map(nbytes, tensors_of(expected.output))) < BIG_BYTES
        self._accepted = output if small else None

    def _compare_all(
        self,
        got: Any,
        reference: Any,
        oracle: Any,
        what: str,
        trial: trials.Trial,
        case: Case,
        status: Status | None = None,
    ) -> None:
        for name, g, r, o in similarity.triples(got, reference, oracle, what):
            compared = compare.tensor(
                g,
                r,
                o,
                self._standard,
                trial.name,
                name,
                self._evidence(trial, case),
                outside=case.outside,
                unasked=trial.index == 0 and what == "output",
            )
            self._record(compared.check)
            if compared.warning:
                self._warn(compared)
            _refuse(compared.mismatch, status)

    def _evidence(self, trial: trials.Trial, case: Case) -> Evidence:
        """Return the evidence of a call; it runs nothing until it is asked."""
        if case.evidence is None:
            exact = named(case.oracle, self._names)
            case.evidence = Evidence(
                self._problem,
                self._oracle,
                self._standard.policy,
                mode=trial.mode,
                inputs=case.inputs,
                rng=trial.rng,
                grads=case.output_grads,
                before=case.before,
                exact=exact,
                seed=trial.grad_seed,
                notes=self._report.notes,
                looks=self._looks,
                always=trial.variant == "signs",
            )
        return case.evidence

    def _warn(self, compared: compare.Compared) -> None:
        """Keep a warning once, with its largest figure."""

        def text(times: float) -> str:
            often = f"{times:.0f} times" if times < _MANY_TIMES else "many times"
            return compared.warning.replace("{times}", often)

        warnings, known = self._report.warnings, self._warned.get(compared.warning)
        if known is None:
            warnings.append(text(compared.times))
        elif compared.times > known:
            warnings[warnings.index(text(known))] = text(compared.times)
        self._warned[compared.warning] = max(compared.times, known or 0.0)

    def _record(self, check: Check) -> None:
        kind = check.what
        if check.precision:
            self._report.precisions.append(check.precision)
        known = self._report.checks.get(kind)
        worst = check.max_abs_diff
        if (
            known is None
            or worst is None
            or known.max_abs_diff is None
            or (worst > known.max_abs_diff)
        ):
            self._report.checks[kind] = check

    def _check_inputs(self, got: Any, trial: trials.Trial, case: Case) -> None:
        returned = list(got) if isinstance(got, (list, tuple)) else got
        wanted = [similarity.plain(v) for v in case.reference.inputs]
        found = structure(returned, wanted, "input")
        _refuse(found, Status.INPUT_MUTATED, "an input changed its form: ")
        after, before = tensors_of(case.reference.inputs), tensors_of(case.inputs)
        for i, (g, r, b) in enumerate(zip(tensors_of(got), after, before, strict=False)):
            r, b = r.detach(), b.detach()
            if similarity.identical(g, r):
                continue
            if similarity.identical(r, b):
                raise _found(
                    Status.INPUT_MUTATED,
                    f"input {i} was changed by the call; the reference leaves it alone",
                )
            asked = f"write into input {i} what the reference writes there"
            if similarity.identical(g, b):
                raise _found(
                    Status.INPUT_MUTATED,
                    f"the reference changes input {i} in place; the solution leaves it as it was. "
                    f"Next: {asked}, or let the reference change a copy",
                )
            standard = dataclasses.replace(self._standard, oracle_precision="fp32")
            compared = compare.tensor(g, r, to_double(r), standard, trial.name, f"input {i}")
            self._record(compared.check)
            if compared.mismatch is not None:
                message = f"{compared.mismatch.message}. Next: {asked}"
                raise _Found(recast(compared.mismatch, Status.INPUT_MUTATED, message))

    def _check_previous(self, got: Any) -> None:
        expected = tensors_of(self._accepted)
        for i, (g, e) in enumerate(zip(tensors_of(got), expected, strict=False)):
            if g.shape == e.shape and not similarity.identical(g, e):
                raise _found(
                    Status.WRONG_VALUES,
                    f"output {i} of the call before changed when the model was called again: it "
                    "reuses its output's memory",
                )

    def _check_gradients(
        self, missing: str, values: dict[str, Any], trial: trials.Trial, case: Case
    ) -> None:
        if missing:
            raise _found(Status.WRONG_GRADIENTS, missing)
        got_inputs, exact = values.get("input_grads", []), case.oracle.input_grads
        for i, r in enumerate(case.reference.input_grads):
            g, o, name = (
                part[i] if i < len(part) else None for part in (got_inputs, exact, self._names)
            )
            self._gradient(g, r, o, f"grad {i if name is None else name}", trial, case)
        got_state = values.get("state_grads", {})
        for theirs, ours in self._match.source.items():
            r = case.reference.state_grads.get(ours)
            o = case.oracle.state_grads.get(ours)
            self._gradient(got_state.get(theirs), r, o, f"grad {ours}", trial, case)

    def _gradient(
        self, got: Any, reference: Any, oracle: Any, name: str, trial: trials.Trial, case: Case
    ) -> None:
        if reference is None:
            # An unused tensor has no gradient; zeros say the same.
            if isinstance(got, torch.Tensor) and bool((got != 0).any()):
                raise _found(
                    Status.WRONG_GRADIENTS,
                    f"{name} is not zero; the reference does not use that tensor",
                )
            return
        if got is None:
            if bool((reference != 0).any()):
                raise _found(Status.WRONG_GRADIENTS, f"{name} is missing")
            return
        _refuse(structure(got, reference, name), Status.WRONG_GRADIENTS)
        truth = to_double(reference if oracle is None else oracle).to(reference.device)
        self._compare_all(got, reference, truth, name, trial, case, Status.WRONG_GRADIENTS)

    def _check_state(self, got: Any, trial: trials.Trial, case: Case) -> None:
        for name in self._match.unheld:
            if not similarity.identical(case.reference.state[name], case.before[name]):
                said = f"{name} changes in the reference; the candidate does not hold it"
                self._wrong_state(_found(Status.WRONG_STATE, said), name, trial, case)
        for theirs, ours in self._match.source.items():
            r, before = case.reference.state[ours], case.before[ours]
            g = got.get(theirs)
            if not isinstance(g, torch.Tensor) or g.shape != r.shape:
                raise _found(Status.WRONG_STATE, f"{theirs} lost its form")
            g = g.to(r.dtype)
            if similarity.identical(g, r):
                continue
            if similarity.identical(r, before):
                said = f"{theirs} was changed by the call; the reference leaves it alone"
                self._wrong_state(_found(Status.WRONG_STATE, said), ours, trial, case)
                continue
            truth = to_double(case.oracle.state[ours]).to(r.device)
            try:
                self._compare_all(g, r, truth, f"state {ours}", trial, case, Status.WRONG_STATE)
            except _Found as found:
                self._wrong_state(found, ours, trial, case)

    def _wrong_state(self, found: _Found, ours: str, trial: trials.Trial, case: Case) -> None:
        """Refuse a wrong part of the state, or warn of it if no later call can see it.

        Args:
            found: what is wrong with it.
            ours: the reference's name of it.
            trial: in which.
            case: the same.
        """
        if ours not in self._idle:
            self._idle[ours] = self._is_idle(ours, trial, case)
        if not self._idle[ours]:
            raise found
        warning = f"{ours} differs from the reference's; no output of it depends on that buffer"
        if warning not in self._report.warnings:
            self._report.warnings.append(warning)

    def _is_idle(self, ours: str, trial: trials.Trial, case: Case) -> bool:
        """Return whether a buffer reaches nothing in the reference, in any mode."""
        problem = self._problem
        if ours not in dict(problem.reference.named_buffers()):
            return False
        after = {n: t.detach().clone() for n, t in problem.state().items()}
        inputs = [mapped(v, lambda t: t.detach().clone()) for v in case.inputs]
        try:
            return not problem.judged(
                "following a buffer", lambda: matters(problem.reference, ours, inputs, trial.rng)
            )
        except InvalidReference:
            return False
        finally:
            write_state(problem.reference, after)


class _Found(Exception):
    """A mismatch, before it is known in which trial."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(mismatch.message)
        self.mismatch = mismatch


def _found(status: Status, message: str) -> _Found:
    return _Found(Mismatch(status=status, message=message))


def _refuse(mismatch: Mismatch | None, status: Status | None = None, prefix: str = "") -> None:
    """Raise a mismatch if there is one, under another status if one is given."""
    if mismatch is not None:
        raise _Found(recast(mismatch, status or mismatch.status, prefix + mismatch.message))


def _check_aliases(pairs: Sequence[Sequence[int]], expected: Outcome) -> None:
    """Refuse outputs that share memory with an input, unless the reference's do."""
    allowed = {tuple(pair) for pair in expected.aliases}
    for pair in pairs:
        if tuple(pair) not in allowed:
            raise _found(
                Status.INPUT_MUTATED,
                f"output {pair[0]} shares memory with input {pair[1]}: writing to one changes the "
                "other; the reference returns new memory",
            )


def recast(mismatch: Mismatch, status: Status, message: str) -> Mismatch:
    """Return a mismatch under another status and message."""
    return dataclasses.replace(mismatch, status=status, message=message)
