"""Runs the trials of one pair: reference, oracle and candidate on the same inputs and state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.domain import Check, HarnessError, Status
from harness.judge import compare, state, trials
from harness.judge.compare import Mismatch, Standard
from harness.judge.diagnose import pattern
from harness.judge.impostors import IMPOSTORS
from harness.judge.problem import InvalidReference, Outcome, Problem, to_double
from harness.judge.remote import RemoteWorker
from harness.modules import describe_state, differentiable, mapped, tensors_of, write_state

_BIG_BYTES = 1 << 28
_CHUNK = 1 << 25
REDUCED = ("tf32", "bf16", "fp16")
_ORDERS = ("forward", "reverse", "shuffled")


class Refused(Exception):
    """A check failed: carries the mismatch and where it happened."""

    def __init__(self, mismatch: Mismatch, trial: trials.Trial, case: Case) -> None:
        super().__init__(mismatch.message)
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
        nudged: the oracle on inputs moved by half a unit in the last place; made when needed.
    """

    inputs: list[Any]
    before: dict[str, torch.Tensor]
    reference: Outcome
    oracle: Outcome
    varied: bool
    output_grads: list[torch.Tensor | None] | None
    nudged: Outcome | None = None


@dataclass(slots=True)
class Report:
    """What the checks found so far; filled while they run."""

    checks: dict[str, Check] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    dropped: list[str] = field(default_factory=list)
    survivors: set[str] = field(default_factory=lambda: set(IMPOSTORS))
    nominal_agreed: bool = False
    state_changed_before: bool = False
    precisions: list[str] = field(default_factory=list)


class Checker:
    """Compares one candidate with one problem, trial by trial.

    Args:
        problem: the reference, on the device that calls run on.
        worker: the candidate's, loaded.
        match: how its state was matched.
        standard: bounds of the comparison.
        domain: by argument name, limits of the inputs.
        count_launches: ask the worker to profile one call of each mode.
        orders: thread orders of the CPU runner, taken in turn.
    """

    def __init__(
        self,
        problem: Problem,
        worker: RemoteWorker,
        match: state.Match,
        standard: Standard,
        domain: Mapping[str, Mapping[str, float]],
        count_launches: bool,
        orders: tuple[str, ...] = _ORDERS,
    ) -> None:
        self._problem = problem
        self._worker = worker
        self._match = match
        self.standard = standard
        self._domain = domain
        self._count_launches = count_launches
        self._orders = orders
        self._on_cpu = False
        self.oracle = self._build_oracle()
        self._names = problem.forward_names()
        described = describe_state(problem.reference)
        self._kinds = {d["name"]: d["kind"] for d in described}
        self._constructed = {
            n: t.detach().clone()
            for n, t in problem.state().items()
            if n in {d["tie"] for d in described}
        }
        self._boldness = 2
        self._previous: Any = None
        self._accepted: Any = None
        self._followed: list[Any] | None = None
        self._random = False
        self._infinite_is_normal = False
        self.report = Report()

    # --- the run --------------------------------------------------------------------------------

    def run(self, plan: list[trials.Trial], on_trial: Callable[[trials.Trial], None]) -> None:
        """Run all trials.

        Raises:
            Refused: the candidate's first failure.
            InvalidReference: the problem is at fault.
            WorkerFailed: the candidate's process failed.
        """
        self._validate(plan[0])
        self._send_state(self._problem.state())
        for trial in plan:
            on_trial(trial)
            self._run(trial)
        self._followed = self._accepted = self._previous = None

    def _run(self, trial: trials.Trial) -> None:
        if trial.new_state is not None:
            self._perturb(trial)
        case = self._case(trial)
        if case is None:
            return
        answer = self._call(trial, case, profile=trial.index == 0)
        try:
            self._judge(answer, trial, case)
            answer.clear()
        except Refused as refused:
            raise self._explained(refused) from None
        self._impostors(trial, case)
        self.report.calls += 1
        # Kept only for as long as an impostor may still use it: it can be gigabytes.
        self._previous = None
        if "the previous output" in self.report.survivors:
            self._previous = case.reference.output
        self._infinite_is_normal = self._infinite_is_normal or _has_infinity(
            case.reference.output
        )
        if not case.varied:
            self.report.nominal_agreed = True

    def _build_oracle(self) -> torch.nn.Module:
        return self._problem.build_oracle()

    def _validate(self, trial: trials.Trial) -> None:
        """Check that the reference is finite and agrees with itself; measure the oracle."""
        problem = self._problem
        before = {n: t.detach().clone() for n, t in problem.state().items()}
        inputs = problem.inputs(trial.input_seed)
        if not isinstance(inputs, list):
            raise HarnessError("inputs are not a list")
        first = problem.call(problem.reference, trial.mode, inputs, trial.rng, None)
        write_state(problem.reference, before)
        second = problem.call(problem.reference, trial.mode, inputs, trial.rng, None)
        write_state(problem.reference, before)
        if not tensors_of(first.output) and not tensors_of(first.state):
            raise InvalidReference(f"{problem.path}: Model returns no tensor")
        for a in tensors_of(first.output):
            if differentiable(a) and bool(torch.isnan(a).any()):
                raise InvalidReference(f"{problem.path}: NaN in the output on its own inputs")
        if not _near(first.output, second.output):
            raise InvalidReference(
                f"{problem.path}: Model disagrees with itself under the same RNG state"
            )
        del second
        third = problem.call(problem.reference, trial.mode, inputs, trial.rng + 1, None)
        write_state(problem.reference, before)
        self._random = not _near(first.output, third.output)
        del third
        self._measure_oracle(trial, inputs, first)

    def _measure_oracle(self, trial: trials.Trial, inputs: list[Any], first: Outcome) -> None:
        """Find out in which precision the oracle really computes, and whether it agrees."""
        try:
            exact = self._oracle_call(trial.mode, inputs, trial.rng, None)
        except InvalidReference as error:
            self._replace_oracle(f"the reference does not run in float64 ({error})")
            return
        if not _same_shapes(exact.output, first.output) or not _near(
            exact.output, first.output, 2e-2
        ):
            why = "draws other random numbers" if self._random else "computes something else"
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
            # Precision does not depend on how many samples there are; memory does.
            del exact
            inputs = _first_samples(inputs)
            try:
                exact = self._oracle_call(trial.mode, inputs, trial.rng, None)
            except InvalidReference:
                self.report.notes.append("the oracle's own precision was not measured")
                return
        for nudge, level in ((1e-5, "bf16"), (1e-10, "fp32")):
            if self._unmoved(trial, inputs, exact, nudge):
                self.standard = _with_oracle(self.standard, level)
                self.report.notes.append(f"the reference casts to {level} inside, even in float64")
                return

    def _unmoved(
        self, trial: trials.Trial, inputs: list[Any], exact: Outcome, nudge: float
    ) -> bool:
        """Return whether the oracle's output stays the same when all its inputs move a little."""
        moved = [
            mapped(v, lambda t: to_double(t) * (1 + nudge) if t.is_floating_point() else t)
            for v in inputs
        ]
        other = self._oracle_call(trial.mode, moved, trial.rng, None)
        same = total = 0
        for a, b in zip(tensors_of(exact.output), tensors_of(other.output)):
            if a.is_floating_point():
                relevant = (a != 0) & torch.isfinite(a) & (a != a.round())
                total += int(relevant.sum())
                same += int((relevant & (a == b)).sum())
        return total > 0 and same > 0.5 * total

    def _replace_oracle(self, why: str) -> None:
        self.oracle = self._problem.reference
        self.standard = _with_oracle(self.standard, "itself")
        self.report.notes.append(f"no float64 oracle: {why}; compared with the reference itself")

    def _oracle_call(
        self, mode: str, inputs: list[Any], rng: int, grads: Any
    ) -> Outcome:
        problem = self._problem
        if self.oracle is problem.reference:
            before = {n: t.detach().clone() for n, t in problem.state().items()}
            outcome = problem.call(problem.reference, mode, inputs, rng, grads)
            write_state(problem.reference, before)
        else:
            write_state(self.oracle, problem.state())
            try:
                outcome = self._double_call(mode, inputs, rng, grads)
            except torch.OutOfMemoryError:
                self._move_oracle_to_cpu()
                outcome = self._double_call(mode, inputs, rng, grads)
        outcome.output = mapped(outcome.output, to_double)
        return outcome

    def _double_call(self, mode: str, inputs: list[Any], rng: int, grads: Any) -> Outcome:
        device = torch.device("cpu") if self._on_cpu else self._problem.device
        moved = [mapped(v, lambda t: _fresh_double(t, device)) for v in inputs]
        outcome = self._problem.call(self.oracle, mode, moved, rng, grads, private=True)
        if self._on_cpu:
            home = self._problem.device
            outcome.output = mapped(outcome.output, lambda t: t.to(home))
            outcome.state = {n: t.to(home) for n, t in outcome.state.items()}
        return outcome

    def _move_oracle_to_cpu(self) -> None:
        if self._on_cpu:
            raise HarnessError("the float64 oracle does not fit into memory")
        self.oracle = self.oracle.cpu()
        self._on_cpu = True
        torch.cuda.empty_cache()
        self.report.notes.append("the float64 oracle runs on the CPU: it does not fit on the GPU")

    # --- one trial ------------------------------------------------------------------------------

    def _perturb(self, trial: trials.Trial) -> None:
        """Give all sides a new state, the boldest on which the reference stays finite."""
        assert trial.new_state is not None
        inputs = self._problem.inputs(trial.input_seed)
        kept = {n: t.detach().clone() for n, t in self._problem.state().items()}
        while self._boldness > 0:
            generator = torch.Generator().manual_seed(trial.new_state)
            fresh = state.perturbed(self._constructed, self._kinds, generator, self._boldness)
            write_state(self._problem.reference, fresh)
            try:
                outcome = self._problem.call(
                    self._problem.reference, trial.mode, inputs, trial.rng, None
                )
                fine = all(
                    not differentiable(t) or bool(torch.isfinite(t).all())
                    for t in tensors_of(outcome.output)
                )
            except InvalidReference:
                fine = False
            if fine:
                write_state(self._problem.reference, fresh)
                self._send_state(fresh)
                self.report.state_changed_before = True
                return
            self._boldness -= 1
        write_state(self._problem.reference, kept)
        note = "the state is not perturbed: the reference is not finite on other values"
        if note not in self.report.notes:
            self.report.notes.append(note)

    def _send_state(self, values: Mapping[str, torch.Tensor]) -> None:
        mine = {theirs: values[ours] for theirs, ours in self._match.source.items()}
        self._worker.ask("state", **self._worker.encode(values=mine))

    def _case(self, trial: trials.Trial) -> Case | None:
        """Return the trial with inputs and expectations, None where its variant was dropped."""
        problem = self._problem
        if trial.variant == "same":
            if self._followed is None:
                return None
            inputs, varied = self._followed, True
        else:
            self._followed = None
            inputs, varied = trials.varied(
                problem.inputs(trial.input_seed),
                trial.variant,
                trial.variant_seed,
                self._names,
                self._domain,
            )
        before = {n: t.detach().clone() for n, t in problem.state().items()}
        made: list[torch.Tensor | None] = []

        def make_grads(outputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
            made.clear()
            for i, o in enumerate(outputs):
                seed = trials.derived(trial.grad_seed, i)
                generator = torch.Generator(device=o.device).manual_seed(seed)
                wanted = differentiable(o) and o.requires_grad
                made.append(
                    torch.randn(o.shape, generator=generator, device=o.device, dtype=o.dtype)
                    if wanted
                    else None
                )
            return made

        training = trial.mode == "train"
        try:
            # The oracle runs from the reference's state before the call, so it goes first; its
            # output gradients are the reference's, made again from the same seeds.
            reference = problem.call(
                problem.reference, trial.mode, inputs, trial.rng, make_grads if training else None
            )
            _share_unchanged(reference, inputs)
            after = {n: t.detach().clone() for n, t in problem.state().items()}
            write_state(problem.reference, before)
            grads = list(made) if training else None
            oracle = self._oracle_call(trial.mode, inputs, trial.rng, grads)
            write_state(problem.reference, after)
        except InvalidReference:
            if not varied:
                raise
            self._drop(trial, before, "the reference raises on it")
            return None
        if varied and not _equally_finite(reference.output, oracle.output):
            self._drop(trial, before, "it overflows the reference")
            return None
        if varied and not _as_finite(
            reference.output, self._infinite_is_normal
        ):
            self._drop(trial, before, "it makes the reference non-finite")
            return None
        kept = trial.variant == "edited" and reference.inputs is inputs
        self._followed = inputs if kept else None
        return Case(inputs, before, reference, oracle, varied, grads)

    def _drop(self, trial: trials.Trial, before: dict[str, torch.Tensor], why: str) -> None:
        write_state(self._problem.reference, before)
        self._send_state(before)
        self.report.dropped.append(f"{trial.variant} ({why})")

    def _call(self, trial: trials.Trial, case: Case, profile: bool) -> dict[str, Any]:
        tensors = [*tensors_of(case.inputs), *tensors_of(case.reference.output)]
        size = sum(t.numel() * t.element_size() for t in tensors)
        state_size = sum(t.numel() * t.element_size() for t in case.before.values())
        self._worker.max_outbox_bytes = 8 * (size + 3 * state_size) + (64 << 20)
        cheap = size < _BIG_BYTES or trial.index < 2
        untouched = trial.variant == "same"
        given = None if untouched else case.inputs
        fields = self._worker.encode(args=given, grads=case.output_grads)
        if case.output_grads is None:
            fields["grads"] = None
        answer = self._worker.ask(
            "call",
            mode=trial.mode,
            rng=trial.rng,
            untouched=untouched,
            order=self._orders[trial.index % len(self._orders)],
            poison_limit_bytes=16 << 30,
            count_launches=profile and self._count_launches,
            keep=size < _BIG_BYTES,
            return_state=True,
            return_previous=size < _BIG_BYTES,
            **fields,
        )
        kernels = answer.get("kernels")
        if isinstance(kernels, dict):
            for name, count in kernels.items():
                if type(count) is int:
                    known = self.report.kernels.get(str(name), 0)
                    self.report.kernels[str(name)] = known + count
        answer["decoded"] = self._worker.values(answer)
        if cheap:
            back = self._worker.ask("inputs")
            answer["decoded"]["inputs"] = self._worker.values(back).get("inputs")
        return answer

    # --- verdict on one answer ------------------------------------------------------------------

    def _judge(self, answer: dict[str, Any], trial: trials.Trial, case: Case) -> None:
        def refuse(mismatch: Mismatch | None) -> None:
            if mismatch is not None:
                raise Refused(mismatch, trial, case)

        values = answer["decoded"]
        odd = answer.get("odd")
        if odd:
            refuse(Mismatch(status=Status.WRONG_STRUCTURE, message=str(odd[0])[:300]))
        refuse(compare.structure(values.get("output"), case.reference.output))
        self._compare_all(
            values.get("output"), case.reference.output, case.oracle.output, "output", trial, case,
            None,
        )
        self._check_aliases(answer, trial, case)
        if "inputs" in values:
            returned = values["inputs"]
            found = compare.structure(
                list(returned) if isinstance(returned, (list, tuple)) else returned,
                [_plain(v) for v in case.reference.inputs],
                "input",
            )
            if found:
                refuse(_as(found, Status.INPUT_MUTATED, "an input changed its form: "))
            self._compare_inputs(values["inputs"], trial, case)
        if self._accepted is not None and "previous" in values and not case.reference.aliases:
            self._check_previous(values["previous"], trial, case)
        if case.output_grads is not None:
            self._check_gradients(answer, values, trial, case)
        self._check_state(values.get("state"), trial, case)
        size = sum(t.numel() * t.element_size() for t in tensors_of(case.reference.output))
        self._accepted = values.get("output") if size < _BIG_BYTES else None

    def _compare_all(
        self,
        got: Any,
        reference: Any,
        oracle: Any,
        what: str,
        trial: trials.Trial,
        case: Case,
        status: Status | None,
    ) -> None:
        triples = _triples(got, reference, oracle, what)
        for name, g, r, o in triples:
            check, mismatch = compare.tensor(g, r, o, self.standard, trial.name, name)
            if mismatch is not None and r.is_floating_point():
                moved = self._sensitivity(trial, case, what, name, o)
                check, mismatch = compare.tensor(
                    g, r, o, self.standard, trial.name, name, moved
                )
            self._record(check)
            if mismatch is not None:
                if status is not None:
                    mismatch = _as(mismatch, status, "")
                raise Refused(mismatch, trial, case)

    def _sensitivity(
        self, trial: trials.Trial, case: Case, what: str, name: str, oracle: torch.Tensor
    ) -> float:
        """Return how far the oracle's tensor moves when the inputs are rounded once more."""
        if self.oracle is self._problem.reference:
            return 0.0
        if case.nudged is None:
            generator = torch.Generator(device=self._problem.device).manual_seed(trial.grad_seed)

            def nudge(t: torch.Tensor) -> torch.Tensor:
                if not t.is_floating_point():
                    return t
                signs = torch.rand(t.shape, generator=generator, device=t.device) < 0.5
                step = compare.unit_roundoff(t.dtype)
                return to_double(t) * torch.where(signs, 1 - step, 1 + step)

            after = {n: t.detach().clone() for n, t in self._problem.state().items()}
            write_state(self._problem.reference, case.before)
            try:
                case.nudged = self._oracle_call(
                    trial.mode,
                    [mapped(v, nudge) for v in case.inputs],
                    trial.rng,
                    case.output_grads,
                )
            except InvalidReference:
                return 0.0
            finally:
                write_state(self._problem.reference, after)
        moved = case.nudged
        other: Any = None
        if what == "output":
            found = _triples(moved.output, moved.output, moved.output, "output")
            other = next((g for n, g, _, _ in found if n == name), None)
        elif name.startswith("state "):
            other = moved.state.get(name.removeprefix("state "))
        elif name.startswith("grad "):
            label = name.removeprefix("grad ")
            other = moved.state_grads.get(label)
            if other is None:
                labels = [
                    self._names[i] if i < len(self._names) else str(i)
                    for i in range(len(moved.input_grads))
                ]
                other = dict(zip(labels, moved.input_grads)).get(label)
        if not isinstance(other, torch.Tensor) or other.shape != oracle.shape:
            return 0.0
        gap = (to_double(other).to(oracle.device) - oracle).abs()
        gap = gap[torch.isfinite(gap)]
        return float(gap.max()) if gap.numel() else 0.0

    def _record(self, check: Check) -> None:
        kind = check.what
        if check.precision:
            self.report.precisions.append(check.precision)
        known = self.report.checks.get(kind)
        worst = check.max_abs_diff
        if known is None or worst is None or known.max_abs_diff is None or (
            worst > known.max_abs_diff
        ):
            self.report.checks[kind] = check

    def _check_aliases(self, answer: dict[str, Any], trial: trials.Trial, case: Case) -> None:
        allowed = {tuple(a) for a in case.reference.aliases}
        for pair in answer.get("aliases") or []:
            if isinstance(pair, list) and len(pair) == 2 and tuple(pair) not in allowed:
                raise Refused(
                    Mismatch(
                        status=Status.INPUT_MUTATED,
                        message=f"output {pair[0]} shares memory with input {pair[1]}: writing to "
                        "one changes the other; the reference returns new memory",
                    ),
                    trial,
                    case,
                )

    def _compare_inputs(self, got: Any, trial: trials.Trial, case: Case) -> None:
        after, before = tensors_of(case.reference.inputs), tensors_of(case.inputs)
        for i, (g, r, b) in enumerate(zip(tensors_of(got), after, before)):
            r, b = r.detach(), b.detach()
            if _identical(g, r):
                continue
            if _identical(r, b):
                raise Refused(
                    Mismatch(
                        status=Status.INPUT_MUTATED,
                        message=f"input {i} was changed by the call; the reference leaves it alone",
                    ),
                    trial,
                    case,
                )
            check, mismatch = compare.tensor(
                g, r, to_double(r), _with_oracle(self.standard, "fp32"), trial.name, f"input {i}"
            )
            self._record(check)
            if mismatch is not None:
                raise Refused(_as(mismatch, Status.INPUT_MUTATED, ""), trial, case)

    def _check_previous(self, got: Any, trial: trials.Trial, case: Case) -> None:
        expected = tensors_of(self._accepted)
        for i, (g, e) in enumerate(zip(tensors_of(got), expected)):
            if g.shape == e.shape and not _identical(g, e):
                raise Refused(
                    Mismatch(
                        status=Status.WRONG_VALUES,
                        message=f"output {i} of the call before changed when the model was called "
                        "again: it reuses its output's memory",
                    ),
                    trial,
                    case,
                )

    def _check_gradients(
        self, answer: dict[str, Any], values: dict[str, Any], trial: trials.Trial, case: Case
    ) -> None:
        missing = answer.get("missing_grads")
        if missing:
            raise Refused(
                Mismatch(status=Status.WRONG_GRADIENTS, message=str(missing)[:500]), trial, case
            )
        got_inputs = values.get("input_grads") or []
        names = self._names
        for i, r in enumerate(case.reference.input_grads):
            o = case.oracle.input_grads[i] if i < len(case.oracle.input_grads) else None
            g = got_inputs[i] if i < len(got_inputs) else None
            name = f"grad {names[i] if i < len(names) else i}"
            self._gradient(g, r, o, name, trial, case)
        got_state = values.get("state_grads") or {}
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
                raise Refused(
                    Mismatch(
                        status=Status.WRONG_GRADIENTS,
                        message=f"{name} is not zero; the reference does not use that tensor",
                    ),
                    trial,
                    case,
                )
            return
        if got is None:
            if not bool((reference != 0).any()):
                return
            raise Refused(
                Mismatch(status=Status.WRONG_GRADIENTS, message=f"{name} is missing"), trial, case
            )
        found = compare.structure(got, reference, name)
        if found is None:
            truth = to_double(reference) if oracle is None else to_double(oracle)
            self._compare_all(
                got, reference, truth.to(reference.device), name, trial, case,
                Status.WRONG_GRADIENTS,
            )
        else:
            raise Refused(_as(found, Status.WRONG_GRADIENTS, ""), trial, case)

    def _check_state(self, got: Any, trial: trials.Trial, case: Case) -> None:
        if not isinstance(got, dict):
            raise Refused(
                Mismatch(status=Status.WRONG_STATE, message="no state came back"), trial, case
            )
        for name in self._match.unheld:
            if not _identical(case.reference.state[name], case.before[name]):
                raise Refused(
                    Mismatch(
                        status=Status.WRONG_STATE,
                        message=f"{name} changes in the reference; the candidate does not hold it",
                    ),
                    trial,
                    case,
                )
        for theirs, ours in self._match.source.items():
            r, before = case.reference.state[ours], case.before[ours]
            g = got.get(theirs)
            if not isinstance(g, torch.Tensor) or g.shape != r.shape:
                raise Refused(
                    Mismatch(status=Status.WRONG_STATE, message=f"{theirs} lost its form"),
                    trial,
                    case,
                )
            g = g.to(r.dtype)
            if _identical(g, r):
                continue
            if _identical(r, before):
                raise Refused(
                    Mismatch(
                        status=Status.WRONG_STATE,
                        message=f"{theirs} was changed by the call; the reference leaves it alone",
                    ),
                    trial,
                    case,
                )
            truth = to_double(case.oracle.state[ours]).to(r.device)
            self._compare_all(g, r, truth, f"state {ours}", trial, case, Status.WRONG_STATE)

    # --- afterwards -----------------------------------------------------------------------------

    def _explained(self, refused: Refused) -> Refused:
        """Return the refusal with what the failure depends on; repeat the call once to see."""
        mismatch, trial, case = refused.mismatch, refused.trial, refused.case
        valued = mismatch.status in (
            Status.WRONG_VALUES, Status.NOT_FINITE, Status.PRECISION_LOST,
        )
        if not valued:
            return refused
        said = [mismatch.message]
        hint = pattern(mismatch, case.inputs)
        if hint:
            said.append(hint)
        if case.varied and self.report.nominal_agreed:
            said.append(
                "only when a few elements change, or the state under the same input: an earlier "
                "answer was kept"
                if trial.variant in trials.FOLLOWERS
                else f"only on the variant {trial.variant!r}; nominal inputs agree (if it lies "
                "outside the problem's domain, declare that under SETTINGS['domain'])"
            )
        elif trial.new_state is not None and self.report.calls:
            said.append("only after the state changed: it was read once and kept")
        elif self.report.calls:
            said.append(f"after {self.report.calls} calls that agreed")
        status = mismatch.status
        if not self._random and self._repeats_differently(trial, case):
            status = Status.NONDETERMINISTIC
            said.insert(0, "the same call gave another result when it was repeated")
        refused.mismatch = _as(mismatch, status, "", "; ".join(said))
        return refused

    def _repeats_differently(self, trial: trials.Trial, case: Case) -> bool:
        outputs = []
        for _ in range(2):
            self._send_state(case.before)
            answer = self._call(trial, case, profile=False)
            if answer.get("odd"):
                return False
            outputs.append(answer["decoded"].get("output"))
        first, second = outputs
        if compare.structure(first, second) is not None:
            return False
        return not _near(first, second, 1e-6)

    def _impostors(self, trial: trials.Trial, case: Case) -> None:
        """Strike out every impostor that this trial exposes."""
        expected = case.reference.output
        for name in sorted(self.report.survivors):
            if name == "the previous output" and self._previous is None:
                continue
            if trial.variant == "same" and name == "the previous output":
                continue
            if name == "a bfloat16 downcast" and self.standard.precision in REDUCED:
                self.report.survivors.discard(name)  # what this solution is allowed to be
                continue
            fake = IMPOSTORS[name](expected, case.inputs, self._previous)
            if compare.structure(fake, _plain(expected)) is not None:
                self.report.survivors.discard(name)
                continue
            accepted = all(
                compare.tensor(g, r, o, self.standard, trial.name, w)[1] is None
                for w, g, r, o in _triples(fake, expected, case.oracle.output, "output")
            )
            if not accepted:
                self.report.survivors.discard(name)


def _as(mismatch: Mismatch, status: Status, prefix: str, message: str | None = None) -> Mismatch:
    return dataclasses.replace(
        mismatch, status=status, message=prefix + (message or mismatch.message)
    )


def _with_oracle(standard: Standard, precision: str) -> Standard:
    return dataclasses.replace(standard, oracle_precision=precision)


def _share_unchanged(outcome: Outcome, inputs: list[Any]) -> None:
    """Let an outcome's inputs be the given ones where the call left them alone: memory."""
    if _same_shapes(outcome.inputs, inputs) and all(
        _identical(a, b) for a, b in zip(tensors_of(outcome.inputs), tensors_of(inputs))
    ):
        outcome.inputs = inputs


def _fresh_double(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a float64 copy that shares memory with nothing."""
    moved = to_double(t).to(device)
    return moved.clone() if moved.data_ptr() == t.data_ptr() else moved


def _first_samples(inputs: list[Any], count: int = 2) -> list[Any]:
    """Return inputs with only the first samples of what looks like the batch dimension."""
    sizes = [t.shape[0] for t in tensors_of(inputs) if t.dim() > 1]
    batch = max(set(sizes), key=sizes.count) if sizes else 0
    return [
        mapped(v, lambda t: t[:count] if t.dim() and t.shape[0] == batch > count else t)
        for v in inputs
    ]


def _triples(
    got: Any, reference: Any, oracle: Any, path: str
) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return (name, got, reference, oracle) for each tensor of three equal structures."""
    if isinstance(reference, torch.Tensor):
        return [(path, got, reference, oracle)]
    if isinstance(reference, dict):
        keys = [(k, f"{path}[{k!r}]") for k in reference]
    elif isinstance(reference, (list, tuple)):
        keys = [(i, f"{path}[{i}]") for i in range(len(reference))]
    else:
        return []
    return [t for k, p in keys for t in _triples(got[k], reference[k], oracle[k], p)]


def _plain(value: Any) -> Any:
    """Return value with named tuples as tuples: what the wire makes of them."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of one shape hold the same bits; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    if not differentiable(a):
        return False
    return bool(((a == b) | (torch.isnan(a) & torch.isnan(b))).all())


def _same_shapes(a: Any, b: Any) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) and all(x.shape == y.shape for x, y in zip(left, right))


def _near(a: Any, b: Any, relative: float = 1e-4) -> bool:
    """Return whether two outputs are the same up to a rounding-sized difference."""
    left, right = tensors_of(a), tensors_of(b)
    if not _same_shapes(a, b):
        return False
    for x, y in zip(left, right):
        if not differentiable(x):
            if not torch.equal(x, y):
                return False
            continue
        if x.numel() == 0:
            continue
        x, y = (torch.view_as_real(t) if t.is_complex() else t for t in (x, y))
        low = min(x.element_size(), y.element_size()) < 4
        bound = max(relative, 2e-2) if low else relative
        gap = size = 0.0
        for a, b in zip(x.reshape(-1).split(_CHUNK), y.reshape(-1).split(_CHUNK)):
            finite = torch.isfinite(b)
            if not torch.equal(torch.isfinite(a), finite):
                return False
            a, b = (torch.where(finite, t, 0).double() for t in (a, b))
            size = max(size, float(b.abs().max()))
            gap = max(gap, float((a - b).abs().max()))
        if gap > bound * max(size, 1e-30):
            return False
    return True


def _equally_finite(a: Any, b: Any) -> bool:
    """Return whether two outputs are finite in the same places."""
    return all(
        torch.equal(torch.isfinite(x), torch.isfinite(y))
        for x, y in zip(tensors_of(a), tensors_of(b))
        if differentiable(x)
    )


def _has_infinity(output: Any) -> bool:
    return any(bool(torch.isinf(t).any()) for t in tensors_of(output) if differentiable(t))


def _as_finite(output: Any, infinite_is_normal: bool) -> bool:
    """Return whether output has NaN nowhere, and infinities only where they are normal."""
    for t in tensors_of(output):
        if differentiable(t):
            if bool(torch.isnan(t).any()):
                return False
            if not infinite_is_normal and not bool(torch.isfinite(t).all()):
                return False
    return True
