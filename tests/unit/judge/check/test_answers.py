"""Judging one answer: what a candidate's worker claims is checked, whatever it claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.domain import Status
from harness.ipc import Untransferable
from harness.judge.check import trials
from harness.judge.check.answers import AnswerJudge, Case, Refused, Report
from harness.judge.check.precision import Standard
from harness.judge.policy import Policy
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import Problem
from harness.judge.reference.state import Match

pytestmark = pytest.mark.unit

PROBLEM = """
import torch
import torch.nn as nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 1.5))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("idle", torch.zeros(8))

    def forward(self, x, unused):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        self.idle.add_(1)
        return x * self.weight + self.mean.clone()


def get_inputs():
    return [torch.rand(4, 8), torch.rand(3)]
"""

TWO = torch.ones(2)
Answer = dict[str, Any]


class Bench:
    """One trial of one problem, and the answer of an honest candidate."""

    def __init__(self, folder: Path, mode: str) -> None:
        path = folder / "problem.py"
        path.write_text(PROBLEM)
        self.problem = problem = Problem(path, {}, torch.device("cpu"), 1)
        self.trial = trials.plan(7, [mode], 14, False)[0]
        self.report = Report()
        oracle = Oracle(problem, self.report.notes, Policy())
        inputs = problem.inputs(self.trial.input_seed)
        before = {n: t.detach().clone() for n, t in problem.state().items()}
        grads = [torch.ones(4, 8)] if mode == "train" else None
        exact = oracle.call(mode, inputs, 1, grads)
        reference = problem.call(problem.reference, mode, inputs, 1, grads)
        self.case = Case(inputs, before, reference, exact, False, grads)
        match = Match(source={n: n for n in before}, unheld=(), notes=())
        standard = Standard(policy=Policy())
        self.judge = AnswerJudge(problem, oracle, match, standard, self.report)

    def honest(self) -> Answer:
        reference = self.case.reference
        values = {
            "output": reference.output.clone(),
            "inputs": [t.clone() for t in reference.inputs],
            "state": {n: t.clone() for n, t in reference.state.items()},
            "input_grads": [None if t is None else t.clone() for t in reference.input_grads],
            "state_grads": {
                n: None if t is None else t.clone() for n, t in reference.state_grads.items()
            },
        }
        return {"decoded": values, "aliases": [], "odd": [], "missing_grads": ""}

    def status(self, answer: Answer) -> Status:
        try:
            self.judge.judge(answer, self.trial, self.case)
        except Refused as refused:
            self.message = str(refused)
            return refused.mismatch.status
        return Status.PASSED


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "eval")


@pytest.fixture
def training(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "train")


def test_an_honest_answer_passes(bench: Bench, training: Bench) -> None:
    for each in (bench, training):
        assert each.status(each.honest()) is Status.PASSED
        assert each.status(each.honest()) is Status.PASSED


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (lambda a: a["decoded"].update(output=Untransferable("set")), Status.WRONG_STRUCTURE),
        (lambda a: a["decoded"].update(output=[torch.ones(4, 8)]), Status.WRONG_STRUCTURE),
        (lambda a: a["decoded"].update(output=torch.ones(8, 4)), Status.WRONG_SHAPE),
        (lambda a: a["decoded"].update(output=torch.empty(0)), Status.WRONG_SHAPE),
        (lambda a: a["decoded"]["output"].fill_(math.nan), Status.NOT_FINITE),
        (lambda a: a["decoded"]["output"].add_(1), Status.WRONG_VALUES),
        (lambda a: a.update(odd=["output is a subclass"]), Status.WRONG_STRUCTURE),
        (lambda a: a.update(aliases=[[0, 0]]), Status.INPUT_MUTATED),
        (lambda a: a["decoded"].update(inputs=None), Status.INPUT_MUTATED),
        (lambda a: a["decoded"].update(inputs=[torch.ones(4, 8)]), Status.INPUT_MUTATED),
        (lambda a: a["decoded"]["inputs"][1].add_(1), Status.INPUT_MUTATED),
        (lambda a: a["decoded"].pop("inputs"), Status.PASSED),
        (lambda a: a["decoded"]["state"].pop("mean"), Status.WRONG_STATE),
        (lambda a: a["decoded"]["state"].update(mean="text"), Status.WRONG_STATE),
        (lambda a: a["decoded"]["state"].update(mean=torch.ones(1)), Status.WRONG_STATE),
        (lambda a: a["decoded"]["state"]["mean"].add_(1), Status.WRONG_STATE),
        (lambda a: a["decoded"]["state"]["mean"].fill_(math.inf), Status.WRONG_STATE),
        (lambda a: a["decoded"]["state"]["weight"].add_(1e-7), Status.WRONG_STATE),
    ],
)
def test_answers_that_lie_or_lack_something(
    spoil: Callable[[Answer], Any], wanted: Status, bench: Bench
) -> None:
    answer = bench.honest()
    spoil(answer)
    assert bench.status(answer) is wanted
    assert wanted is Status.PASSED or len(bench.message) < 400


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (lambda a: a.update(missing_grads="no gradient of x"), Status.WRONG_GRADIENTS),
        (lambda a: a["decoded"].pop("input_grads"), Status.WRONG_GRADIENTS),
        (lambda a: a["decoded"].update(input_grads=[None, None]), Status.WRONG_GRADIENTS),
        (lambda a: a["decoded"]["input_grads"][0].mul_(2), Status.WRONG_GRADIENTS),
        (lambda a: a["decoded"]["input_grads"].__setitem__(0, "text"), Status.WRONG_GRADIENTS),
        (lambda a: a["decoded"]["input_grads"].__setitem__(1, torch.zeros(3)), Status.PASSED),
        (
            lambda a: a["decoded"]["input_grads"].__setitem__(1, torch.ones(3)),
            Status.WRONG_GRADIENTS,
        ),
        (lambda a: a["decoded"].pop("state_grads"), Status.WRONG_GRADIENTS),
        (lambda a: a["decoded"]["state_grads"].pop("weight"), Status.WRONG_GRADIENTS),
        (lambda a: a["decoded"]["state_grads"].update(weight=TWO), Status.WRONG_GRADIENTS),
        (lambda a: a["decoded"]["state_grads"]["weight"].fill_(math.nan), Status.WRONG_GRADIENTS),
    ],
)
def test_gradients_that_lie_or_lack_something(
    spoil: Callable[[Answer], Any], wanted: Status, training: Bench
) -> None:
    answer = training.honest()
    spoil(answer)
    assert training.status(answer) is wanted
    assert wanted is Status.PASSED or len(training.message) < 600


def test_a_buffer_that_nothing_depends_on_is_a_warning(bench: Bench) -> None:
    answer = bench.honest()
    answer["decoded"]["state"]["idle"].zero_()
    assert bench.status(answer) is Status.PASSED
    assert any("idle" in warning for warning in bench.report.warnings)


def test_an_output_that_is_written_again_later_is_refused(bench: Bench) -> None:
    assert bench.status(bench.honest()) is Status.PASSED
    answer = bench.honest()
    answer["decoded"]["previous"] = answer["decoded"]["output"] + 1
    assert bench.status(answer) is Status.WRONG_VALUES
    assert "reuses its output's memory" in bench.message


@pytest.mark.parametrize("previous", [None, "text", [], torch.ones(1), [Untransferable("set")]])
def test_an_output_of_the_call_before_that_did_not_come_back_proves_nothing(
    previous: Any, bench: Bench
) -> None:
    assert bench.status(bench.honest()) is Status.PASSED
    answer = bench.honest()
    answer["decoded"]["previous"] = previous
    assert bench.status(answer) is Status.PASSED


def test_the_worst_figure_of_all_calls_is_kept(bench: Bench) -> None:
    for off in (3e-8, 1e-7, 0.0):
        answer = bench.honest()
        answer["decoded"]["output"] *= 1 + off
        bench.status(answer)
    worst = bench.report.checks["output"].max_abs_diff
    assert worst is not None and worst > 0.0
    assert set(bench.report.precisions) <= {"exact", "fp32"}
