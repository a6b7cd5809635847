"""Runs the trials of one pair: reference, oracle and candidate on the same inputs and state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from harness.domain import Status
from harness.judge.check import impostors, trials
from harness.judge.check.answers import BIG_BYTES, AnswerJudge, Case, Refused, Report, recast
from harness.judge.check.diagnose import pattern
from harness.judge.check.experiments import Experiments
from harness.judge.check.precision import Standard
from harness.judge.check.structure import same_bits
from harness.judge.reference import similarity, state
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import InvalidReference, Outcome, Problem
from harness.judge.reference.seeds import derived
from harness.judge.workers.budget import OutOfTime
from harness.judge.workers.remote import RemoteWorker, WorkerFailed
from harness.usercode.modules import describe_state, differentiable, nbytes, tensors_of, write_state

ORDERS = ("forward", "reverse", "shuffled")
_HOARD_BYTES = 8 << 30
_FOLDED = "what it computed from that once is not computed again when it changes"
_FOLDS = 12
"""Tensors of the state that are tried on their own: each takes a call of the reference."""


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
        orders: tuple[str, ...] = ORDERS,
    ) -> None:
        self._problem = problem
        self._worker = worker
        self._match = match
        self.standard = standard
        self._domain = domain
        self._count_launches = count_launches
        self._orders = orders
        self.report = Report()
        self.oracle = Oracle(problem, self.report.notes, standard.policy)
        self._answers = AnswerJudge(problem, self.oracle, match, standard, self.report)
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
        self._last_output: Any = None
        self._followed: list[Any] | None = None
        self._random = False
        self._infinite_is_normal = False

    def run(self, plan: list[trials.Trial], on_trial: Callable[[trials.Trial], None]) -> None:
        """Run all trials.

        Raises:
            Refused: the candidate's first failure.
            InvalidReference: the problem is at fault.
            WorkerFailed: the candidate's process failed.
        """
        self._validate(plan[0])
        self._limit_memory()
        self._send_state(self._problem.state())
        for trial in plan:
            on_trial(trial)
            _release(self._problem.device)
            self._run(trial)
        self._followed = self._previous = None
        self._answers.forget()
        self._worker.ask("finish")

    def on_other_stream(self, trial: trials.Trial) -> str:
        """Make one call with another stream than the default one current.

        Args:
            trial: of nominal inputs that no other call had.

        Returns:
            What was wrong with it, an empty string if nothing was.

        Raises:
            torch.OutOfMemoryError: there is no memory for one more call.
        """
        try:
            self._send_state(self._problem.state())
            case = self._case(trial)
            if case is None:
                return ""
            # A report of its own: the figures of this call are none of the pair's.
            answers = AnswerJudge(self._problem, self.oracle, self._match, self.standard, Report())
            answers.judge(self._call(trial, case, other_stream=True), trial, case)
        except Refused as refused:
            return refused.mismatch.message
        except WorkerFailed as failed:
            if failed.status is Status.OUT_OF_MEMORY:
                raise torch.OutOfMemoryError(str(failed)) from failed
            return str(failed)
        return ""

    def _run(self, trial: trials.Trial) -> None:
        if trial.new_state is not None:
            self._perturb(trial)
        case = self._case(trial)
        if case is None:
            return
        answer = self._call(trial, case, profile=trial.index == 0)
        try:
            self._answers.judge(answer, trial, case)
            answer.clear()
        except Refused as refused:
            raise self._explained(refused, answer.get("decoded", {}).get("output")) from None
        impostors.expose(
            self.report.survivors,
            case.reference.output,
            case.oracle.output,
            case.inputs,
            None if trial.variant == "same" else self._previous,
            self.standard,
            trial.name,
        )
        self.report.calls += 1
        small = sum(map(nbytes, tensors_of(case.reference.output))) < BIG_BYTES
        self._last_output = case.reference.output if small else None
        # It can be gigabytes: it is kept only while an impostor may still use it.
        self._previous = None
        if impostors.PREVIOUS in self.report.survivors:
            self._previous = case.reference.output
        self._infinite_is_normal = self._infinite_is_normal or similarity.has_infinity(
            case.reference.output
        )
        if not case.varied:
            self.report.nominal_agreed = True

    def _validate(self, trial: trials.Trial) -> None:
        """Check that the reference is finite and agrees with itself; measure the oracle."""
        problem = self._problem
        before = {n: t.detach().clone() for n, t in problem.state().items()}
        inputs = problem.inputs(trial.input_seed)
        first = problem.call(problem.reference, trial.mode, inputs, trial.rng, None)
        write_state(problem.reference, before)
        second = problem.call(problem.reference, trial.mode, inputs, trial.rng, None)
        write_state(problem.reference, before)
        if not tensors_of(first.output) and not tensors_of(first.state):
            raise InvalidReference(f"{problem.path}: Model returns no tensor")
        for a in tensors_of(first.output):
            if differentiable(a) and bool(torch.isnan(a).any()):
                raise InvalidReference(f"{problem.path}: NaN in the output on its own inputs")
        if not similarity.near(first.output, second.output):
            raise InvalidReference(
                f"{problem.path}: Model disagrees with itself under the same RNG state"
            )
        del second
        third = problem.call(problem.reference, trial.mode, inputs, trial.rng + 1, None)
        write_state(problem.reference, before)
        self._random = not similarity.near(first.output, third.output)
        del third
        self.oracle.measure(trial.mode, trial.rng, inputs, first, self._random)
        self.standard = dataclasses.replace(self.standard, oracle_precision=self.oracle.precision)
        self._answers = AnswerJudge(problem, self.oracle, self._match, self.standard, self.report)

    def _limit_memory(self) -> None:
        """Limit the candidate's GPU memory by what reference and oracle took.

        If it took all of it, the judge would run out of memory and seem to be at fault.
        """
        if self._problem.device.type == "cuda":
            policy = self.standard.policy
            peak = torch.cuda.max_memory_allocated(self._problem.device)
            limit = max(policy.gpu_memory_floor_bytes, int(policy.gpu_memory_factor * peak))
            self._worker.ask("limit_memory", bytes=limit)

    def _perturb(self, trial: trials.Trial) -> None:
        """Give reference, oracle and candidate a new state on which the reference stays finite."""
        assert trial.new_state is not None
        inputs = self._problem.inputs(trial.input_seed)
        kept = {n: t.detach().clone() for n, t in self._problem.state().items()}
        while self._boldness > 0:
            generator = torch.Generator().manual_seed(trial.new_state)
            fresh = state.perturbed(
                self._constructed,
                self._kinds,
                generator,
                self._boldness,
                self._problem.drawn_buffers,
            )
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
        """Return the trial with inputs and expectations, None if its variant was dropped."""
        problem = self._problem
        if trial.variant == "same":
            if self._followed is None:
                return None
            chosen = trials.Varied(inputs=self._followed, changed=True)
        else:
            self._followed = None
            chosen = trials.varied(
                problem.inputs(trial.input_seed),
                trial.variant,
                trial.variant_seed,
                self._names,
                self._domain,
            )
        inputs, varied = chosen.inputs, chosen.changed
        before = {n: t.detach().clone() for n, t in problem.state().items()}
        made: list[torch.Tensor | None] = []

        def make_grads(outputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
            made.clear()
            for i, o in enumerate(outputs):
                seed = derived(trial.grad_seed, i)
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
            # The oracle starts from the reference's state before the call, and gets the output
            # gradients that were made for the reference.
            reference = problem.call(
                problem.reference, trial.mode, inputs, trial.rng, make_grads if training else None
            )
            _share_unchanged(reference, inputs)
            after = {n: t.detach().clone() for n, t in problem.state().items()}
            write_state(problem.reference, before)
            grads = list(made) if training else None
            oracle = self.oracle.call(trial.mode, inputs, trial.rng, grads)
            write_state(problem.reference, after)
        except InvalidReference:
            if not varied:
                raise
            self._drop(trial, before, "the reference raises on it")
            return None
        if varied and not similarity.equally_finite(reference.output, oracle.output):
            self._drop(trial, before, "it overflows the reference")
            return None
        if varied and not similarity.as_finite(reference.output, self._infinite_is_normal):
            self._drop(trial, before, "it makes the reference non-finite")
            return None
        kept = trial.variant == "edited" and reference.inputs is inputs
        self._followed = inputs if kept else None
        return Case(inputs, before, reference, oracle, varied, grads, chosen.outside)

    def _drop(self, trial: trials.Trial, before: dict[str, torch.Tensor], why: str) -> None:
        write_state(self._problem.reference, before)
        self._send_state(before)
        self.report.dropped.append(f"{trial.variant} ({why})")

    def _call(
        self,
        trial: trials.Trial,
        case: Case,
        *,
        profile: bool = False,
        other_stream: bool = False,
        pause_before_s: float = 0.0,
        pause_after_s: float = 0.0,
    ) -> dict[str, Any]:
        tensors = [*tensors_of(case.inputs), *tensors_of(case.reference.output)]
        size = sum(map(nbytes, tensors))
        state_size = sum(map(nbytes, case.before.values()))
        self._worker.max_outbox_bytes = 8 * (size + 3 * state_size) + (64 << 20)
        self._worker.expected_tensors = len(tensors) + len(case.before) * 2
        cheap = size < BIG_BYTES or trial.index < 2
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
            parameters=case.reference.returns_parameter,
            order=self._orders[trial.index % len(self._orders)],
            poison_limit_bytes=self.standard.policy.poison_bytes,
            count_launches=profile and self._count_launches,
            keep=size < BIG_BYTES,
            return_state=True,
            return_previous=size < BIG_BYTES,
            other_stream=other_stream,
            pause_before_s=pause_before_s,
            pause_after_s=pause_after_s,
            **fields,
        )
        for name, count in answer["kernels"].items():
            self.report.kernels[name] = self.report.kernels.get(name, 0) + count
        answer["decoded"] = self._worker.values(answer)
        if cheap:
            back = self._worker.ask("inputs")
            answer["decoded"]["inputs"] = self._worker.values(back)["inputs"]
        return answer

    def _explained(self, refused: Refused, got: Any) -> Refused:
        """Return the refusal with its cause, as far as experiments show it.

        Args:
            refused: the failure.
            got: the candidate's output in that call.
        """
        mismatch, trial, case = refused.mismatch, refused.trial, refused.case
        valued = mismatch.status in (
            Status.WRONG_VALUES,
            Status.NOT_FINITE,
            Status.PRECISION_LOST,
        )
        if not valued:
            return refused
        said = [mismatch.message]
        hint = pattern(mismatch, case.inputs)
        if hint:
            said.append(hint)
        if case.varied and self.report.nominal_agreed:
            said.append(
                f"only on the variant {trial.variant!r}; nominal inputs agree (if it lies "
                "outside the problem's domain, declare that under SETTINGS['domain'])"
                if trial.variant not in trials.FOLLOWERS
                else "the call before agreed, and only a few elements of its input have changed"
                if trial.variant == "edited"
                else "the call before agreed on the same input, and only the state has changed"
            )
        elif self.report.calls:
            changed = " on another state" if trial.new_state is not None else ""
            said.append(f"after {self.report.calls} calls that agreed{changed}")
        status = mismatch.status
        experiments = Experiments(self._compared_again(trial, case), got, self.standard.policy)
        if not self._random:
            late = experiments.late(self._problem.device.type == "cuda")
            if late:
                said.insert(0, late)
            elif experiments.repeats_differently():
                status = Status.NONDETERMINISTIC
                said.insert(0, "the same call gave another result when it was repeated")
        kept = experiments.answers_of_another_call(self._alternatives(trial, case))
        if kept:
            said.insert(0, kept)
        return Refused(recast(mismatch, status, "; ".join(said)), trial, case)

    def _compared_again(
        self, trial: trials.Trial, case: Case
    ) -> Callable[[float, float], tuple[Any, bool] | None]:
        """Return a function that makes a call again and returns the answer and whether it is right.

        If the candidate ends meanwhile, the refusal stands, and it is asked nothing more.
        """
        ended = False

        def again(pause_before_s: float, pause_after_s: float) -> tuple[Any, bool] | None:
            nonlocal ended
            if ended:
                return None
            self._answers.forget()
            try:
                self._send_state(case.before)
                answer = self._call(
                    trial, case, pause_before_s=pause_before_s, pause_after_s=pause_after_s
                )
                got = answer["decoded"]["output"]
                self._answers.judge(answer, trial, case)
            except Refused:
                return None if answer["odd"] else (got, False)
            except torch.OutOfMemoryError:  # the refusal stands without it
                torch.cuda.empty_cache()
                return None
            except (OutOfTime, WorkerFailed):
                ended = True
                return None
            return got, True

        return again

    def _alternatives(self, trial: trials.Trial, case: Case) -> Iterator[tuple[str, Any]]:
        """Yield answers of the reference to other calls, each with its meaning."""
        expected, other = case.reference.output, self.standard.policy.other_answer
        last = self._last_output
        if last is not None and not similarity.near(last, expected, other):
            yield "it answers with the result of the call before", last
        if not self.report.state_changed_before:
            return
        names = list(self._constructed)
        kept_together = [names, *([n] for n in names if len(names) > 1)][:_FOLDS]
        after = {n: t.detach().clone() for n, t in self._problem.state().items()}
        for kept in kept_together:
            write_state(
                self._problem.reference, case.before | {n: self._constructed[n] for n in kept}
            )
            try:
                outcome = self._problem.call(
                    self._problem.reference, trial.mode, case.inputs, trial.rng, None
                )
            except InvalidReference:
                continue
            finally:
                write_state(self._problem.reference, after)
            if not similarity.near(outcome.output, expected, other):
                which = kept[0] if len(kept) == 1 else "all parameters and buffers"
                yield f"it answers with {which} as constructed: {_FOLDED}", outcome.output


def _share_unchanged(outcome: Outcome, inputs: list[Any]) -> None:
    """Save memory: let an outcome's inputs be the given ones if the call left them alone."""
    if similarity.same_shapes(outcome.inputs, inputs) and same_bits(outcome.inputs, inputs):
        outcome.inputs = inputs


def _release(device: torch.device) -> None:
    """Give back memory that the judge's allocator holds but does not use, if it is gigabytes.

    Trials draw other layouts and shapes: blocks kept for one trial do not fit the next.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if held > _HOARD_BYTES:
            torch.cuda.empty_cache()
