"""A wrong answer's cause is what an experiment shows, and nothing is said where none does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness.domain import Status
from harness.judge.check.checker import Checker
from harness.judge.check.experiments import Experiments
from harness.judge.policy import Policy
from harness.judge.workers.budget import OutOfTime
from harness.judge.workers.remote import WorkerFailed

WRONG, RIGHT = torch.zeros(3), torch.ones(3)


class Calls:
    """Stands in for the candidate: right only under some conditions."""

    def __init__(self, right_when: str) -> None:
        self.right_when = right_when
        self.made = 0

    def __call__(self, before_s: float, after_s: float) -> tuple[torch.Tensor, bool] | None:
        self.made += 1
        right = {
            "never": False,
            "waited after": after_s > 0,
            "waited before": before_s > 0,
            "by chance": self.made == 1,
        }[self.right_when]
        return (RIGHT if right else WRONG), right


@pytest.mark.parametrize(
    ("right_when", "on_gpu", "said"),
    [
        ("waited after", True, "work goes on after it has returned"),
        ("waited after", False, "work goes on after it has returned"),
        ("waited before", True, "a stream that does not wait for the current one"),
        ("waited before", False, ""),
        ("never", True, ""),
        ("by chance", True, ""),
    ],
)
def test_late_work_is_named_where_waiting_mends_it(
    right_when: str, on_gpu: bool, said: str
) -> None:
    found = Experiments(Calls(right_when), WRONG, Policy()).late(on_gpu)
    assert (said in found) if said else not found


def test_an_answer_of_another_call_is_named_only_where_it_is_that_answer() -> None:
    others = [("stale", torch.full((3,), 5.0)), ("folded", torch.full((3,), 7.0))]
    calls = Calls("never")
    assert (
        Experiments(calls, torch.full((3,), 7.0), Policy()).answers_of_another_call(others)
        == "folded"
    )
    assert Experiments(calls, torch.full((3,), 6.0), Policy()).answers_of_another_call(others) == ""
    assert Experiments(calls, None, Policy()).answers_of_another_call(others) == ""


@pytest.mark.parametrize("end", [OutOfTime(), WorkerFailed(Status.TIMED_OUT, "gave no answer")])
def test_an_experiment_that_ends_the_candidate_is_the_last(end: Exception) -> None:
    """A worker that had been ended was asked again, and called a cheat for its silence."""
    asked = []

    def call(*arguments: object, **named: object) -> None:
        asked.append(1)
        raise end

    checker = object.__new__(Checker)
    checker._answers = SimpleNamespace(forget=lambda: None)
    checker._send_state = lambda values: None
    checker._call = call
    again = checker._compared_again(None, SimpleNamespace(before={}))
    experiments = Experiments(again, WRONG, Policy())
    assert experiments.late(on_gpu=True) == ""
    assert experiments.repeats_differently() is False
    assert len(asked) == 1
