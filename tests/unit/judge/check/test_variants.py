"""Variants of inputs: what structure they keep, and which of them the problem could draw itself."""

import pytest
import torch

from harness.judge.check import trials
from harness.judge.reference import state
from harness.judge.reference.dataflow import FreeOrders, is_free_order, matters

VARIANTS = sorted(set(trials.PLAN) - {"nominal", "same"})


def variant(x: torch.Tensor, name: str, **domain: dict[str, float]) -> torch.Tensor:
    return trials.varied([x], name, 5, ["x"], domain).inputs[0]


def draws() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    x = torch.randn(24, 24)
    return {
        "symmetric": (x + x.T) / 2,
        "definite": x @ x.T + torch.eye(24),
        "batch": torch.stack([x + x.T, 3 * (x + x.T)]),
        "triangle": torch.tril(x),
        "sorted": x.sort(-1).values,
        "probabilities": torch.softmax(x, -1),
        "one hot": torch.eye(24)[torch.randperm(24)],
    }


KEPT = {
    "symmetric": lambda x: torch.allclose(x, x.mT, rtol=1e-5),
    "definite": lambda x: bool((torch.linalg.eigvalsh(x.double()) > 0).all()),
    "batch": lambda x: torch.allclose(x, x.mT, rtol=1e-5),
    "triangle": lambda x: torch.equal(x, torch.tril(x)),
    "sorted": lambda x: bool((x.diff(dim=-1) >= 0).all()),
    "probabilities": lambda x: (
        bool((x >= 0).all()) and torch.allclose(x.sum(-1), torch.ones(24), atol=1e-4)
    ),
    "one hot": lambda x: bool(((x == 0) | (x == 1)).all()) and bool((x.sum(-1) == 1).all()),
}


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_keep_structure(kind: str, name: str) -> None:
    assert KEPT[kind](variant(draws()[kind], name))


@pytest.mark.parametrize("kind", ["symmetric", "definite", "batch", "probabilities", "one hot"])
def test_some_variant_differs_all_the_same(kind: str) -> None:
    x = draws()[kind]
    assert any(not torch.equal(variant(x, name), x) for name in VARIANTS)


@pytest.mark.parametrize("kind", [k for k in KEPT if k != "one hot"])
def test_timed_slots_keep_structure(kind: str) -> None:
    x = draws()[kind]
    fresh = trials.rolled(x, 7, 0.97)
    assert KEPT[kind](fresh)
    assert not torch.equal(fresh, x)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(1, 6, 10).repeat(5, 1, 1),
        torch.randn(1, 6, 10).expand(5, 6, 10),
        torch.randn(1, 60).sort().values.repeat(5, 1),
        torch.softmax(torch.randn(1, 60), -1).repeat(5, 1),
    ],
    ids=["repeated", "expanded", "sorted", "probabilities"],
)
def test_equal_samples_become_different(x: torch.Tensor) -> None:
    fresh = variant(x, "samples")
    assert all(not torch.equal(fresh[0], sample) for sample in fresh[1:])


def test_equal_channels_become_different() -> None:
    x = torch.randn(4, 1, 8).repeat(1, 5, 1)
    fresh = [variant(x, name) for name in VARIANTS]
    assert any(not torch.equal(f[:, 0], f[:, 1]) for f in fresh)


def test_equal_samples_become_different_in_quick_runs_too() -> None:
    x = torch.randn(1, 6, 10).repeat(5, 1, 1)
    quick = [variant(x, name) for name in trials.PLAN[:5] if name in VARIANTS]
    assert any(not torch.equal(fresh[0], fresh[1]) or not torch.equal(x, fresh) for fresh in quick)


def test_floating_arguments_change_and_integers_do_not() -> None:
    changed = trials.varied([torch.ones(3), 3.0, 2, True, "mean", 0.0], "numbers", 1, [], {})
    assert changed.inputs[1:] == [3.75, 2, True, "mean", 0.0]
    assert changed.changed and changed.outside
    x = torch.randn(3)
    kept = trials.varied([x, 0.5], "numbers", 1, ["x", "p"], {"p": {"max": 0.5}})
    assert not kept.changed and not kept.outside


@pytest.mark.parametrize(
    ("x", "outside"), [(torch.randn(40), False), (torch.rand(40), True), (-torch.rand(40), True)]
)
def test_signs_are_outside_where_the_problem_draws_one(x: torch.Tensor, outside: bool) -> None:
    assert trials.varied([x], "signs", 1, ["x"], {}).outside is outside


class Counting(torch.nn.Module):
    """Buffers that are read in all ways, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("unread", "added", "decides", "late", "feeds"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.unread += 1
        self.unread = self.unread * 1
        x = x + self.added
        if self.decides > 3:
            x = x * 2
        if not self.training:
            x = x * (1 + self.late)
        self.added += 0 * self.feeds
        return x


@pytest.mark.parametrize("name", ["unread", "added", "decides", "late", "feeds"])
def test_a_buffer_matters_where_it_is_read(name: str) -> None:
    module = Counting()
    assert matters(module, name, [torch.ones(3)], 1) is (name != "unread")
    assert module.training


@pytest.mark.parametrize(("momentum", "read"), [(0.1, False), (None, True)])
def test_the_counter_of_a_batchnorm_matters_without_a_momentum(
    momentum: float | None, read: bool
) -> None:
    module = torch.nn.BatchNorm2d(3, momentum=momentum)
    assert matters(module, "num_batches_tracked", [torch.randn(2, 3, 4, 4)], 1) is read
    assert matters(module, "running_mean", [torch.randn(2, 3, 4, 4)], 1)


def test_orders_are_free_among_equal_elements_only() -> None:
    x = torch.tensor([[3.0, 1.0, 3.0, 2.0]])
    with FreeOrders() as watch:
        torch.sort(x, dim=-1)
        torch.sort(-x, dim=-1, stable=True)
    assert len(watch.found) == 1
    expected = torch.tensor([[1, 3, 0, 2]])
    for got, free in (([1, 3, 2, 0], True), ([3, 1, 0, 2], False), ([1, 3, 2, 2], False)):
        assert is_free_order(torch.tensor([got]), expected, watch.found, 1e-6) is free


@pytest.mark.parametrize(
    ("tensor", "changes"),
    [
        (torch.randint(-127, 128, (16, 16)).to(torch.int8), True),
        (torch.randint(-(2**31), 2**31 - 1, (16, 16)).to(torch.int32), True),
        (torch.randperm(256), False),
        (torch.zeros(256, dtype=torch.uint8), False),
        (torch.tensor(7), False),
    ],
    ids=["bytes", "packed words", "indices", "mask", "counter"],
)
def test_quantised_weights_are_perturbed(tensor: torch.Tensor, changes: bool) -> None:
    fresh = state.perturbed({"b": tensor}, {"b": "buffer"}, torch.Generator().manual_seed(1), 2)
    assert torch.equal(fresh["b"], tensor) is not changes
    assert torch.equal(fresh["b"].flatten().sort().values, tensor.flatten().sort().values)


def test_masked_keys_leave_no_order_free_that_is_not() -> None:
    """With -inf among the keys every index was as good as any other."""
    inf = float("inf")
    keys = torch.tensor([-inf, 0.0, 1000.0, 2000.0, 3000.0, -inf])
    indices = torch.tensor([4, 3])
    orders = [(keys, 0, indices)]
    assert not is_free_order(torch.tensor([1, 2]), indices, orders, 1e-6)
    masked = torch.tensor([4, 3, 2, 1, 0, 5])
    other = torch.tensor([4, 3, 2, 1, 5, 0])
    assert is_free_order(other, masked, [(keys, 0, masked)], 1e-6)


def test_truth_values_are_keys_too() -> None:
    keys = torch.tensor([True, False, True])
    indices = torch.tensor([1, 0, 2])
    assert is_free_order(torch.tensor([1, 2, 0]), indices, [(keys, 0, indices)], 1e-6)
    assert not is_free_order(torch.tensor([0, 1, 2]), indices, [(keys, 0, indices)], 1e-6)


def test_special_values_are_planted_with_a_row_of_zeros() -> None:
    fresh = variant(torch.randn(64, 64), "special")
    assert bool((fresh == 0).all(-1).any())
    for value in (0.5, -0.5, 1.0, -1.0, 2.5):
        assert int((fresh == value).sum()) > 1
    zeros = fresh[fresh == 0]
    assert bool(torch.signbit(zeros).any()) and not bool(torch.signbit(zeros).all())


def test_special_values_keep_the_sign_that_all_elements_have() -> None:
    assert bool((variant(torch.rand(64, 64) + 0.1, "special") >= 0).all())
    assert bool((variant(-torch.rand(64, 64) - 0.1, "special") <= 0).all())


def test_half_of_the_edits_are_pure_swaps() -> None:
    """A cache under the sum of its input, or another hash that knows no order, is stale then."""
    x = torch.randn(64, 64)
    sums = []
    for seed in range(20):
        (fresh,) = trials.varied([x], "edited", seed, ["x"], {}).inputs
        assert not torch.equal(fresh, x)
        sums.append(torch.equal(fresh.flatten().sort().values, x.flatten().sort().values))
    assert any(sums) and not all(sums)


@pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.ones(5), torch.full((), 0.5)])
def test_equal_elements_become_others(x: torch.Tensor) -> None:
    """A hidden state of zeros, weights of ones, a scale in a tensor: what is given is data."""
    fresh = variant(x, "numbers")
    assert fresh.shape == x.shape and bool((fresh != x).all())
    assert torch.equal(variant(torch.tensor([1, 1, 1]), "numbers"), torch.tensor([1, 1, 1]))
