"""The oracle: float64, always from the reference's state, and how precise it really is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.judge.policy import Policy
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import InvalidReference, Problem

pytestmark = pytest.mark.unit

HEAD = "import torch\nimport torch.nn as nn\n\n\nclass Model(nn.Module):\n"
TAIL = "\n\ndef get_inputs():\n    return [torch.rand(4, 8) + 0.1]\n"
STATED = """
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x * self.weight + self.count
"""

Made = tuple[Oracle, Problem]


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Made]:
    def make(body: str) -> Made:
        path = tmp_path / "problem.py"
        if "def forward" not in body:
            body = f"    def forward(self, x):\n        {body}\n"
        path.write_text(HEAD + body + TAIL)
        problem = Problem(path, {}, torch.device("cpu"), 1)
        return Oracle(problem, [], Policy()), problem

    return make


def measured(oracle: Oracle, problem: Problem, random: bool = False) -> tuple[str, list[str]]:
    """Return the oracle's precision and notes after it has been measured."""
    inputs = problem.inputs(3)
    first = problem.call(problem.reference, "forward", inputs, 1, None)
    oracle.measure("forward", 1, inputs, first, random)
    return oracle.precision, oracle.notes


def test_it_computes_in_float64_and_leaves_inputs_alone(made: Callable[[str], Made]) -> None:
    oracle, problem = made("return x.sum(1)")
    inputs = problem.inputs(3)
    before = inputs[0].clone()
    outcome = oracle.call("forward", inputs, 1, None)
    assert outcome.output.dtype is torch.float64
    assert torch.equal(outcome.output, before.double().sum(1))
    assert torch.equal(inputs[0], before)


def test_it_starts_from_the_references_state_and_leaves_it_alone(
    made: Callable[[str], Made],
) -> None:
    oracle, problem = made(STATED)
    inputs = problem.inputs(3)
    with torch.no_grad():
        problem.reference.weight.fill_(2.0)
        problem.reference.count.fill_(5.0)
    for _ in range(2):
        outcome = oracle.call("forward", inputs, 1, None)
        assert torch.equal(outcome.output, inputs[0].double() * 2 + 6)
        assert float(outcome.state["count"]) == 6.0
        assert float(problem.reference.count) == 5.0


@pytest.mark.parametrize(
    ("body", "precision", "said"),
    [
        ("return x * 2.5", "fp64", ""),
        ("return x.relu()", "fp64", ""),
        ("return (x.float() * 1.7).to(x.dtype)", "fp32", "casts to fp32 inside"),
        ("return (x.bfloat16() * 1.7).to(x.dtype)", "bf16", "casts to bf16 inside"),
        ("return x @ torch.ones(8, 2)", "itself", "does not run in float64"),
        ("return x if x.dtype == torch.float32 else -x", "itself", "computes something else"),
        ("return x if x.dtype == torch.float32 else x[:1]", "itself", "computes something else"),
    ],
)
def test_its_precision_is_measured(
    body: str, precision: str, said: str, made: Callable[[str], Made]
) -> None:
    oracle, problem = made(body)
    found, notes = measured(oracle, problem)
    assert found == precision
    assert (any(said in note for note in notes)) if said else notes == []
    assert oracle.is_reference is (precision == "itself")


def test_random_numbers_of_float64_are_others(made: Callable[[str], Made]) -> None:
    oracle, problem = made("return x + torch.randn_like(x)")
    found, notes = measured(oracle, problem, random=True)
    assert found == "itself" and "draws other random numbers" in notes[0]


def test_the_reference_stands_in_in_its_own_precision(made: Callable[[str], Made]) -> None:
    oracle, problem = made(STATED)
    inputs = problem.inputs(3)
    outcome = oracle.call("forward", inputs, 1, None, stand_in=True)
    right = inputs[0] * problem.reference.weight.detach() + 1
    assert torch.equal(outcome.output, right.double())
    assert float(problem.reference.count) == 0.0


def test_what_cancels_to_nothing_keeps_its_oracle(made: Callable[[str], Made]) -> None:
    """Both give rounding noise: it agrees with nothing, and is no other function."""
    oracle, problem = made("return x.softmax(-1).sum(-1) - 1")
    assert measured(oracle, problem)[0] == "fp64"


def test_a_reference_that_raises_is_the_problems_fault(made: Callable[[str], Made]) -> None:
    oracle, problem = made("raise ValueError('no')")
    with pytest.raises(InvalidReference, match="no"):
        oracle.call("forward", problem.inputs(3), 1, None)


def test_gradients_are_float64s(made: Callable[[str], Made]) -> None:
    oracle, problem = made(STATED)
    inputs: list[Any] = problem.inputs(3)
    outcome = oracle.call("train", inputs, 1, [torch.ones(4, 8)])
    assert outcome.input_grads[0] is not None and outcome.input_grads[0].dtype is torch.float64
    found = outcome.state_grads["weight"]
    assert found is not None and torch.equal(found, inputs[0].double().sum(0))
