"""Errors are named by the arithmetic that they come from; what float32 can give is accepted."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.domain import Status
from harness.judge.check import compare
from harness.judge.check.answers import AnswerJudge, Report
from harness.judge.check.fingerprint import Evidence, Looks, named
from harness.judge.check.precision import Standard
from harness.judge.policy import Policy
from harness.judge.reference.arithmetic import (
    RoundedEverywhere,
    RoundedProducts,
    TanhGelu,
    cut_to_tf32,
    to_bf16,
    to_fp16,
    to_tf32,
)
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import Problem
from harness.usercode import modules

HEAD = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"
PRODUCT = """
class Model(nn.Module):
    def forward(self, a, b):
        return a @ b
"""
SUM = """
class Model(nn.Module):
    def forward(self, x):
        return x.sum(1)
"""
MLP = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(128, 128) for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x
"""
CONVOLUTIONS = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return self.second(F.relu(self.norm(self.first(x))))
"""
ATTENTION = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]
"""
SOFTMAX = """
class Model(nn.Module):
    def forward(self, x):
        return torch.softmax(x, 1)
"""
NORM = """
class Model(nn.Module):
    def forward(self, x):
        return F.group_norm(x, 4)
"""
OPERANDS = {
    "TF32 operands": to_tf32,
    "TF32 (lower bits dropped)": cut_to_tf32,
    "bfloat16 operands": to_bf16,
}

THREE_SECONDS = pytest.mark.skipif(
    os.environ.get("CORPUS") != "full", reason="shows what 4096 terms show; CORPUS=full runs it"
)


class Bench:
    """A reference, its oracle, and a call of it to compare others with."""

    def __init__(self, folder: Path, text: str, inputs: list[Any], mode: str = "forward") -> None:
        torch.manual_seed(3)
        path = folder / "problem.py"
        path.write_text(f"{HEAD}{text}\ndef get_inputs():\n    return []\n")
        self.problem = Problem(path, {}, torch.device("cpu"), 1)
        self.oracle = Oracle(self.problem, [], Policy())
        self.inputs, self.mode = inputs, mode
        before = {n: t.detach().clone() for n, t in self.problem.state().items()}
        made: list[Any] = []

        def grads(outputs: list[torch.Tensor]) -> list[Any]:
            made[:] = [torch.randn(o.shape, generator=torch.manual_seed(5)) for o in outputs]
            return made

        training = mode == "train"
        self.reference = self.problem.call(
            self.problem.reference, mode, inputs, 1, grads if training else None
        )
        modules.write_state(self.problem.reference, before)
        self.grads = list(made) if training else None
        self.before = before
        self.exact = self.oracle.call(mode, inputs, 1, self.grads)

    def under(self, arithmetic: Any) -> dict[str, torch.Tensor]:
        """Return what the reference gives in float32 with roundings inserted, by name."""
        outcome = self.oracle.call(self.mode, self.inputs, 1, self.grads, arithmetic, stand_in=True)
        return {n: t.float() for n, t in named(outcome, self.problem.forward_names()).items()}

    def compared(
        self,
        got: Any,
        what: str = "output",
        *,
        outside: bool = False,
        unasked: bool = False,
        **standard: Any,
    ) -> compare.Compared:
        """Compare one tensor, by default an output."""
        names = self.problem.forward_names()
        exact = named(self.exact, names)
        evidence = Evidence(
            self.problem,
            self.oracle,
            Policy(),
            mode=self.mode,
            inputs=self.inputs,
            rng=1,
            grads=self.grads,
            before=self.before,
            exact=exact,
            seed=11,
            notes=[],
            looks=Looks(),
        )
        reference = named(self.reference, names)[what].float()
        return compare.tensor(
            got,
            reference,
            exact[what],
            Standard(policy=Policy(), **standard),
            "forward/0:nominal",
            what,
            evidence,
            outside=outside,
            unasked=unasked,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    return lambda *args, **named: Bench(tmp_path, *args, **named)


def refused(found: compare.Compared, text: str) -> None:
    assert found.mismatch is not None
    # Where both formats' bits agree, the message names both.
    assert text in found.mismatch.message.replace("TF32 or float16", "TF32")
    assert found.mismatch.status is Status.PRECISION_LOST


def in_sequence(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.zeros(a.shape[0], b.shape[1], dtype=dtype)
    a, b = a.to(dtype), b.to(dtype)
    for k in range(a.shape[1]):
        out += a[:, k : k + 1] * b[k]
    return out.float()


def split(a: torch.Tensor, b: torch.Tensor, rounding: Callable[..., Any]) -> torch.Tensor:
    heads = rounding(a), rounding(b)
    tails = rounding(a - heads[0]), rounding(b - heads[1])
    return heads[0] @ heads[1] + (heads[0] @ tails[1] + tails[0] @ heads[1])


@pytest.mark.parametrize("text", OPERANDS)
@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
def test_operands_in_fewer_bits_are_named(bench: Any, text: str, draw: Any) -> None:
    a, b = draw(48, 2048), draw(2048, 40)
    found = bench(PRODUCT, [a, b]).compared(
        OPERANDS[text](a) @ OPERANDS[text](b), atol=1.0, rtol=1.0
    )
    refused(found, text)
    assert "correlation" in found.mismatch.message


def test_float16_operands_within_the_range_of_float16_look_like_tf32(bench: Any) -> None:
    a, b = torch.randn(48, 256), torch.randn(256, 40)
    found = bench(PRODUCT, [a, b]).compared(to_fp16(a) @ to_fp16(b), atol=1.0)
    assert found.mismatch is not None and found.mismatch.precision in ("tf32", "fp16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("terms", [64, 2048])
def test_accumulators_in_sixteen_bits_are_refused(bench: Any, dtype: Any, terms: int) -> None:
    a, b = torch.rand(32, terms), torch.rand(terms, 24)
    found = bench(PRODUCT, [a, b]).compared(in_sequence(a, b, dtype), atol=1e4)
    refused(found, "number" if found.mismatch.precision != "worse" else "no order")


@pytest.mark.parametrize("terms", [1 << 14, 1 << 20])
def test_long_sums_from_left_to_right_are_accepted(bench: Any, terms: int) -> None:
    x = torch.rand(8, terms)
    found = bench(SUM, [x]).compared(x.cumsum(1)[:, -1])
    assert found.mismatch is None, found.mismatch.message


def test_long_products_from_left_to_right_are_accepted_with_a_warning(bench: Any) -> None:
    a, b = torch.rand(16, 1 << 16), torch.rand(1 << 16, 12)
    sums = (a.unsqueeze(2) * b.unsqueeze(0)).cumsum(1)[:, -1]
    found = bench(PRODUCT, [a, b]).compared(sums)
    assert found.mismatch is None, found.mismatch.message


@pytest.mark.parametrize("rounding", [to_tf32, cut_to_tf32, to_fp16, to_bf16])
@pytest.mark.parametrize("terms", [64, 4096])
def test_split_products_are_accepted(bench: Any, rounding: Any, terms: int) -> None:
    a, b = torch.randn(64, terms), torch.randn(terms, 64)
    found = bench(PRODUCT, [a, b]).compared(split(a, b, rounding))
    assert found.mismatch is None, found.mismatch.message


def test_cumulative_sums_in_float32_are_accepted(bench: Any) -> None:
    text = SUM.replace("x.sum(1)", "x.cumsum(1)")
    x = torch.rand(4, 1 << 15)
    sums, total = [], torch.zeros(4)
    for column in x.unbind(1):
        total = total + column
        sums.append(total)
    found = bench(text, [x]).compared(torch.stack(sums, 1))
    assert found.mismatch is None, found.mismatch.message


def test_winograd_and_fourier_convolutions_are_accepted(bench: Any) -> None:
    text = CONVOLUTIONS.replace(
        "self.second(F.relu(self.norm(self.first(x))))", "F.conv2d(x, self.first.weight, padding=1)"
    )
    x = torch.randn(2, 16, 16, 16)
    made = bench(text, [x])
    weight = made.before["first.weight"]
    for got in (winograd(x, weight), fourier(x, weight)):
        found = made.compared(got)
        assert found.mismatch is None, found.mismatch.message
    refused(made.compared(winograd(to_tf32(x), to_tf32(weight)), atol=1.0), "TF32 operands")


def winograd(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """F(4x4, 3x3), whose transforms lose one to two digits."""
    bt = torch.tensor(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1.0],
        ]
    )
    g = torch.tensor(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    )
    at = torch.tensor(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1.0]]
    )
    tiles = F.pad(x, (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4)
    products = torch.einsum("kcij,nchwij->nkhwij", g @ w @ g.T, bt @ tiles @ bt.T)
    out = (at @ products @ at.T).permute(0, 1, 2, 4, 3, 5)
    return out.reshape(x.shape[0], w.shape[0], *x.shape[2:])


def fourier(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    shape = (32, 32)
    left, right = torch.fft.rfft2(x, shape), torch.fft.rfft2(w.flip(2, 3), shape)
    return torch.fft.irfft2(torch.einsum("nchw,kchw->nkhw", left, right), shape)[..., 1:17, 1:17]


def test_formats_of_eleven_bits_are_named_together(bench: Any) -> None:
    made = bench(MLP, [torch.randn(64, 128)])
    for rounding in (to_tf32, to_fp16):
        got = made.under(RoundedProducts(rounding))["output"]
        refused(made.compared(got, atol=1.0), "TF32")
    found = made.compared(made.under(RoundedProducts(to_bf16))["output"], atol=1.0)
    assert found.mismatch is not None and "TF32" not in found.mismatch.message


@pytest.mark.parametrize("text", OPERANDS)
@pytest.mark.parametrize(
    ("model", "shape"),
    [(MLP, (64, 128)), (CONVOLUTIONS, (2, 16, 12, 12)), (ATTENTION, (4, 24, 64))],
)
def test_operands_are_named_in_models_of_several_layers(
    bench: Any, model: str, shape: Any, text: str
) -> None:
    made = bench(model, [torch.randn(shape)])
    got = made.under(RoundedProducts(OPERANDS[text]))["output"]
    refused(made.compared(got, atol=1.0), text)


@pytest.mark.parametrize("only", [{0}, {2}, {0, 1}])
def test_some_products_of_several_are_enough(bench: Any, only: set[int]) -> None:
    made = bench(MLP, [torch.randn(64, 128)])
    got = made.under(RoundedProducts(to_tf32, only=frozenset(only)))["output"]
    refused(made.compared(got, atol=1.0), f"TF32 operands in {len(only)} of 3 products")


@pytest.mark.parametrize("what", ["grad x", "grad first.weight", "grad second.bias"])
def test_operands_are_named_by_gradients(bench: Any, what: str) -> None:
    made = bench(CONVOLUTIONS, [torch.randn(2, 16, 12, 12)], mode="train")
    names = made.under(RoundedProducts(to_bf16))
    honest = made.under(RoundedProducts(lambda t: t))
    assert made.compared(honest[what], what).mismatch is None
    if what != "grad second.bias":  # no product is in it
        refused(made.compared(names[what], what, atol=1.0), "bfloat16 operands")


def test_gelu_by_tanh_is_named(bench: Any) -> None:
    made = bench(MLP, [torch.randn(64, 128)])
    found = made.compared(made.under(TanhGelu())["output"])
    assert found.mismatch is not None
    assert found.mismatch.message.startswith("computed with the tanh approximation of GELU")


def test_gelu_by_tanh_and_tf32_at_once_are_named(bench: Any) -> None:
    made = bench(MLP, [torch.randn(64, 128)])
    got = made.under(RoundedProducts(to_tf32, tanh=True))["output"]
    found = made.compared(got, atol=1.0)
    assert found.mismatch is not None and "GELU" in found.mismatch.message


@pytest.mark.parametrize("rounding", [to_bf16, to_fp16])
@pytest.mark.parametrize(("model", "shape"), [(SOFTMAX, (32, 200)), (NORM, (4, 16, 9, 9))])
def test_sixteen_bits_without_a_product_are_refused(
    bench: Any, model: str, shape: Any, rounding: Any
) -> None:
    x = torch.randn(shape)
    made = bench(model, [x])
    exact = made.exact.output
    stored = made.compared(rounding(exact.float()), atol=1.0)
    refused(stored, "every element is a")
    rounded_input = bench(model, [x])
    got = rounded_input.problem.call(
        rounded_input.problem.reference, "forward", [rounding(x)], 1, None
    ).output
    refused(rounded_input.compared(got, atol=1.0), "inputs rounded to")
    inside = made.under(RoundedEverywhere(rounding))["output"] * (1 + 1e-6)
    assert made.compared(inside, atol=1.0).mismatch is not None


def test_one_pass_variance_is_accepted(bench: Any) -> None:
    x = torch.randn(4, 16, 40, 40) * 2 + 1
    groups = x.view(4, 4, -1)
    mean = groups.mean(-1, keepdim=True)
    variance = (groups * groups).mean(-1, keepdim=True) - mean * mean
    found = bench(NORM, [x]).compared(((groups - mean) * torch.rsqrt(variance + 1e-5)).view_as(x))
    assert found.mismatch is None, found.mismatch.message


def test_outside_the_problem_only_another_function_is_refused(bench: Any) -> None:
    x = torch.randn(4, 16, 10, 10) + 64
    groups = x.view(4, 4, -1)
    mean = groups.mean(-1, keepdim=True)
    variance = (groups * groups).mean(-1, keepdim=True) - mean * mean
    got = ((groups - mean) * torch.rsqrt(variance + 1e-5)).view_as(x)
    made = bench(NORM, [x])
    found = made.compared(got, outside=True)
    assert found.mismatch is None, found.mismatch.message
    assert "inputs that the problem does not draw" in found.warning
    wrong = made.compared(got * 1.1, outside=True)
    assert wrong.mismatch is not None and wrong.mismatch.status is Status.WRONG_VALUES


def test_a_declared_precision_is_allowed_and_a_coarser_one_is_not(bench: Any) -> None:
    a, b = torch.randn(64, 512), torch.randn(512, 48)
    made = bench(PRODUCT, [a, b])
    got = {n: f(a) @ f(b) for n, f in (("tf32", to_tf32), ("cut", cut_to_tf32), ("bf16", to_bf16))}
    for name in ("tf32", "cut"):
        assert made.compared(got[name], precision="tf32").mismatch is None
    refused(made.compared(got["bf16"], precision="tf32", atol=1.0), "bfloat16 operands")
    assert made.compared(got["bf16"], precision="bf16").mismatch is None
    assert made.compared(a @ b, precision="bf16").check.precision == "fp32"


def test_coarse_operands_of_positive_sums_do_not_hide_behind_tf32(bench: Any) -> None:
    """Dropped bits of TF32 err more there than bfloat16 that is rounded: size says nothing."""
    a, b = torch.rand(48, 4096), torch.rand(4096, 40)
    made = bench(PRODUCT, [a, b])
    refused(made.compared(to_bf16(a) @ to_bf16(b), precision="tf32"), "bfloat16 operands")


def test_zeros_below_the_tolerance_are_refused(bench: Any) -> None:
    made = bench(SOFTMAX, [torch.randn(4, 30000)])
    assert made.compared(torch.zeros(4, 30000)).mismatch is not None


def test_float32_inside_float64_is_named(bench: Any) -> None:
    a = torch.randn(32, 300, dtype=torch.float64)
    b = torch.randn(300, 24, dtype=torch.float64)
    made = bench(PRODUCT, [a, b])
    evidence_of = lambda got: compare.tensor(  # noqa: E731 - the dtype is the reference's own here
        got,
        made.reference.output,
        made.exact.output,
        Standard(policy=Policy()),
        "forward/0:nominal",
        "output",
        Evidence(
            made.problem,
            made.oracle,
            Policy(),
            mode="forward",
            inputs=made.inputs,
            rng=1,
            grads=None,
            before={},
            exact=named(made.exact, ["a", "b"]),
            seed=1,
            notes=[],
            looks=Looks(),
        ),
    )
    refused(evidence_of((a.float() @ b.float()).double()), "every element is a float32 number")
    refused(evidence_of(a.float().double() @ b.float().double()), "float32 operands")
    blocks = sum(x @ y for x, y in zip(a.split(50, 1), b.split(50, 0), strict=True))
    assert evidence_of(blocks).mismatch is None


def test_an_honest_result_costs_no_further_call(bench: Any, monkeypatch: Any) -> None:
    a, b = torch.randn(48, 256), torch.randn(256, 40)
    made = bench(PRODUCT, [a, b])
    monkeypatch.setattr(Oracle, "call", lambda *args, **named: pytest.fail("called"))
    assert made.compared(a @ b).mismatch is None


def test_the_state_is_as_before_when_evidence_was_taken(bench: Any) -> None:
    made = bench(CONVOLUTIONS, [torch.randn(2, 16, 12, 12)], mode="train")
    kept = {n: t.detach().clone() for n, t in made.problem.state().items()}
    got = made.under(RoundedProducts(to_bf16))["output"]
    made.compared(got, atol=1.0)
    assert all(torch.equal(t, kept[n]) for n, t in made.problem.state().items())
    assert not math.isnan(float(kept["norm.running_mean"].sum()))
    assert isinstance(made.problem.reference, nn.Module)


def test_a_warning_is_kept_once_with_its_largest_figure() -> None:
    judge = object.__new__(AnswerJudge)
    judge._report, judge._warned = Report(), {}
    for times in (40.0, 90.0, 50.0):
        judge._warn(SimpleNamespace(warning="errors up to {times} the reference's", times=times))
    assert judge._report.warnings == ["errors up to 90 times the reference's"]


MASKED = """
class Model(torch.nn.Module):
    def forward(self, x):
        mask = x > 0
        return (x * mask).sum(-1) / mask.sum(-1).clamp_min(1)
"""


def test_counting_a_mask_does_not_hide_what_roundings_explain(bench: Any) -> None:
    """The sum of a mask has no rounding; looking at it ended with an exception, and a refusal."""
    made = bench(MASKED, [torch.rand(8, 1 << 14)])
    x = made.inputs[0]
    total = torch.zeros(8)
    for k in range(x.shape[1]):
        total += x[:, k]
    found = made.compared(total / x.shape[1])
    assert found.mismatch is None, found.mismatch


def half_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = a @ b
    out[::2] = to_tf32(a[::2]) @ to_tf32(b)
    return out


def half_of_each_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    k = a.shape[1] // 2
    return to_tf32(a[:, :k]) @ to_tf32(b[:k]) + a[:, k:] @ b[k:]


@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
@pytest.mark.parametrize(
    "cheat",
    [
        half_rows,
        half_of_each_sum,
        lambda a, b: a @ to_fp16(b),
        lambda a, b: a @ to_bf16(b),
        lambda a, b: to_tf32(a) @ b,
    ],
)
def test_fewer_bits_in_part_of_a_product_are_named(bench: Any, draw: Any, cheat: Any) -> None:
    """Half of the rows, half of each sum, one operand: the error is half of what all would give."""
    a, b = draw(64, 4096), draw(4096, 48)
    refused(bench(PRODUCT, [a, b]).compared(cheat(a, b), atol=1.0), ", in part")


@pytest.mark.parametrize("rounding", [to_tf32, cut_to_tf32])
def test_fewer_bits_within_the_budget_are_found_in_the_first_call(
    bench: Any, rounding: Any
) -> None:
    """TF32 over 65536 terms errs by less than 32 times the reference's own error."""
    a, b = torch.rand(32, 1 << 16), torch.rand(1 << 16, 24)
    made = bench(PRODUCT, [a, b])
    got = rounding(a) @ rounding(b)
    refused(made.compared(got, atol=10.0, unasked=True), "TF32")


@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
@pytest.mark.parametrize("terms", [64, 4096, pytest.param(1 << 16, marks=THREE_SECONDS)])
def test_honest_products_pass_the_look_that_nobody_asked_for(
    bench: Any, draw: Any, terms: int
) -> None:
    a, b = draw(24, terms), draw(terms, 16)
    made = bench(PRODUCT, [a, b])
    high, low = to_tf32(a), to_tf32(b)
    three = high @ low + high @ (b - low) + (a - high) @ low
    blocks = sum(x @ y for x, y in zip(a.split(64, 1), b.split(64, 0), strict=True))
    for honest in (a @ b, in_sequence(a, b, torch.float32), three, blocks, (b.t() @ a.t()).t()):
        assert made.compared(honest, atol=10.0, unasked=True).mismatch is None
