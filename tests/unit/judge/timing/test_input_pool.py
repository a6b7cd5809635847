"""Inputs of timed batches: new for every batch, the same for everyone, quickly written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.judge.timing import input_pool
from harness.judge.timing.input_pool import InputPool
from harness.usercode.modules import tensors_of

COUNT = 100


class Problem:
    """Draws inputs as a problem does, and counts how often it is asked to."""

    path = "reference.py"
    device = torch.device("cpu")

    def __init__(self, draw: Callable[[], list[Any]]) -> None:
        self.draw = draw
        self.draws = 0

    def running(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def inputs(self, seed: int) -> list[Any]:
        self.draws += 1
        torch.manual_seed(seed)
        return self.draw()


class TimedWorker:
    """A worker that maps the places and never looks at them."""

    worker = SimpleNamespace(ask=lambda *words, **named: None)

    def stage(self, *described: Any) -> None:
        pass

    def resume(self) -> None:
        pass


def normal() -> list[Any]:
    return [torch.randn(4, 16), {"w": 100 + torch.randn(64)}, 3]


def in_order() -> list[Any]:
    return [torch.randn(64).sort().values, torch.randn(64)]


def staged(draw: Callable[[], list[Any]], *, grads: bool = False) -> tuple[InputPool, Problem]:
    def gradients(seed: int) -> list[torch.Tensor | None]:
        return [torch.randn(40, generator=torch.Generator().manual_seed(seed)), None]

    problem = Problem(draw)
    stage = InputPool(problem, gradients if grads else None, seed=7)
    stage._draw_s = 1e-4
    stage.place(COUNT, [TimedWorker()])
    return stage, problem


def written(stage: InputPool) -> list[list[torch.Tensor]]:
    return [[place.clone() for place in places] for places in stage._places]


@pytest.mark.parametrize("draw", [normal, in_order])
@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("kept_bytes", [1 << 28, 0])
def test_what_is_checked_is_what_was_written(
    monkeypatch: pytest.MonkeyPatch, draw: Callable[[], list[Any]], grads: bool, kept_bytes: int
) -> None:
    monkeypatch.setattr(input_pool, "_KEEP_BYTES", kept_bytes)
    stage, _ = staged(draw, grads=grads)
    for redraw in (True, True, False):
        if redraw:
            stage.renew()
        stage.write()
        for slot, places in enumerate(written(stage)):
            inputs, output_grads = stage.values(slot)
            values = tensors_of(inputs) + [g for g in output_grads or [] if g is not None]
            assert len(values) == len(places)
            assert all(torch.equal(a, b) for a, b in zip(values, places, strict=True))
            assert (output_grads is not None) is grads


def test_no_value_is_ever_there_again() -> None:
    stage, _ = staged(normal)
    seen: set[tuple[float, ...]] = set()
    for _ in range(5):
        stage.renew()
        stage.write()
        for places in stage._places:
            seen.update(tuple(place.flatten().tolist()) for place in places)
    assert len(seen) == 5 * COUNT * 2


def test_new_values_are_not_where_a_worker_could_read_them_before_they_are_written() -> None:
    """It still runs while they are drawn."""
    stage, _ = staged(normal)
    stage.write()
    before = written(stage)
    stage.renew()
    for old, now in zip(before, written(stage), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, now, strict=True))
    stage.write()
    assert not torch.equal(before[0][0], stage._places[0][0])


def test_what_was_spoilt_is_written_as_it_was() -> None:
    stage, problem = staged(normal)
    stage.renew()
    stage.write()
    before = written(stage)
    for places in stage._places:
        for place in places:
            place.fill_(float("nan"))
    draws = problem.draws
    stage.write()
    assert problem.draws == draws  # a copy, and so quick that nobody's caches grow cold
    for old, new in zip(before, written(stage), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


def mixed() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of all slots, and the draws that they are mixed of."""
    drawn: list[torch.Tensor] = []

    def remembered() -> list[Any]:
        drawn.append(torch.rand(2, 50))
        return [drawn[-1]]

    stage, problem = staged(remembered)
    stage._draw_s = 5e-4
    before = problem.draws
    stage.renew()
    stage.write()
    draws = problem.draws - before
    assert draws == int(input_pool._MIX_S / stage._draw_s) < COUNT
    return torch.stack([places[0] for places in stage._places]), torch.stack(drawn[-draws:])


def test_small_inputs_are_mixed_of_few_draws_and_each_element_is_near_a_draw() -> None:
    values, drawn = mixed()
    near = (values[:, None] - drawn[None]).abs() <= 1 / 16
    assert bool(near.any(1).all())
    assert bool((values >= drawn.amin(0)).all()) and bool((values <= drawn.amax(0)).all())
    # As they would be drawn: not drawn together.
    assert float(values.std()) == pytest.approx(12**-0.5, rel=0.1)


def test_no_element_has_the_value_that_it_has_in_another_slot() -> None:
    """An answer kept by position and value would be right, and as fast as looking it up."""
    values, _ = mixed()
    flat = values.flatten(1)
    distinct = [flat[:, i].unique().numel() for i in range(flat.shape[1])]
    assert sum(distinct) > 0.999 * flat.numel()


def test_much_is_drawn_and_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_pool, "_MIX_BYTES", 1000)
    stage, problem = staged(normal)
    before = problem.draws
    stage.renew()
    assert problem.draws - before == COUNT


def test_nothing_else_of_the_judge_lies_beside_the_inputs() -> None:
    """A worker can read all of the arena: between tensors, and in the gaps of strided ones."""
    for _ in range(50):
        torch.full((1 << 14,), 255, dtype=torch.uint8)  # what freed memory may hold
    stage, _ = staged(lambda: [torch.randn(8, 40)[:, ::2], torch.randn(33)])
    stage.renew()
    stage.write()
    arena = stage._arena.flat().clone()
    for places in stage._places:
        for place in places:
            place.zero_()
    spoilt = stage._arena.flat()
    assert int(arena.count_nonzero()) > 0
    assert int(spoilt.count_nonzero()) == 0


def test_inputs_whose_elements_belong_together_are_drawn() -> None:
    stage, problem = staged(in_order)
    before = problem.draws
    stage.renew()
    stage.write()
    assert problem.draws - before == COUNT
    for first, _ in stage._places:
        assert torch.equal(first, first.sort().values)


def test_few_elements_are_not_mixed() -> None:
    """They would not give distinct ones for every call."""
    stage, problem = staged(lambda: [torch.randn(8)])
    before = problem.draws
    stage.renew()
    assert problem.draws - before == COUNT


def views() -> list[Any]:
    """A transpose, every second column, one row many times: gaps, and bytes that serve twice."""
    return [torch.randn(13, 9).t(), torch.randn(9, 26)[:, ::2], torch.randn(1, 5).expand(7, 5)]


@pytest.mark.parametrize("draw", [normal, views])
@pytest.mark.parametrize("grads", [False, True])
def test_the_image_of_fresh_values_is_a_slot(draw: Callable[[], list[Any]], grads: bool) -> None:
    stage, _ = staged(draw, grads=grads)
    batch = torch.cat([t.reshape(-1) for t in tensors_of(stage.values(0)[0])])
    image, values = stage.fresh(5)
    assert len(image) == stage.slot_bytes
    stage._arena.flat()[: stage.slot_bytes].copy_(image)
    given = input_pool.flat(values[0], values[1] or [])
    assert len(given) == len(stage.places(0)) == len(tensors_of(draw())) + grads
    for place, tensor in zip(stage.places(0), given, strict=True):
        assert torch.equal(place, tensor)
    again, other = stage.fresh(5)[0], stage.fresh(6)[0]
    assert torch.equal(image, again) and not torch.equal(image, other)
    assert not torch.equal(batch, torch.cat([t.reshape(-1) for t in tensors_of(values[0])]))


def test_fresh_values_share_no_memory_with_what_was_drawn() -> None:
    """A reference that writes into its inputs must not change what others are held to."""
    always = torch.randn(6, 4)
    stage, _ = staged(lambda: [always, always])
    (_, (one, _)), (_, (other, _)) = stage.fresh(0), stage.fresh(1)
    one[0].add_(1)
    assert torch.equal(one[1], always) and torch.equal(other[0], always)
    expanded, _ = staged(views)
    (_, _, row), _ = expanded.fresh(0)[1]
    assert row.stride() == (0, 1)
