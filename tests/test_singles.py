"""Single calls: what passes over the tray, and that nothing comes before its time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import tray, wire
from harness.judge.baton import Timed
from harness.judge.sight import Layout
from harness.judge.singles import Hand, Singles
from harness.worker.calls import Batch

CPU = torch.device("cpu")
VALUES = torch.arange(24.0)
FORMS = [
    VALUES.reshape(4, 6),
    VALUES.reshape(4, 6).t(),
    VALUES[::3],
    VALUES[:1].expand(5, 4),
    VALUES[:0],
    torch.tensor(3.5),
    None,
    torch.arange(6).to(torch.bool),
    torch.view_as_complex(VALUES.reshape(12, 2)).conj(),
    VALUES.to(torch.bfloat16),
]


def pages(nbytes: int, into: int = 64) -> tray.Tray:
    return tray.Tray(wire.HostArena.create(tray.size_bytes(into, nbytes)), into)


def forms(tensors: list[torch.Tensor | None]) -> list[wire.Form | None]:
    return [wire.form(wire.described(t)) for t in tensors]


def test_what_is_put_on_the_tray_is_found_there() -> None:
    both = pages(1 << 16)
    outlay = tray.Outlay(both.outputs)
    for change in (1, 2):  # the second time over what the first one laid out
        given = [None if t is None else (t if t.dtype == torch.bool else t * change) for t in FORMS]
        outlay.put(given)
        found = tray.laid_out(both.outputs, forms(given))
        for there, tensor in zip(found, given, strict=True):
            if tensor is None or not tensor.numel():
                assert there is None
            else:
                assert there is not None and there.stride() == tensor.stride()
                assert torch.equal(there, tensor)


def test_other_forms_than_before_are_laid_out_anew() -> None:
    both = pages(1 << 12)
    outlay = tray.Outlay(both.outputs)
    for given in ([VALUES], [VALUES.reshape(4, 6).t()], [VALUES.double(), VALUES]):
        outlay.put(given)
        found = tray.laid_out(both.outputs, forms(given))
        assert all(torch.equal(a, b) for a, b in zip(found, given, strict=True))


def test_what_does_not_fit_is_not_there() -> None:
    claims = forms([VALUES, torch.empty(1 << 20, device="meta"), VALUES])
    assert [t is None for t in tray.laid_out(pages(4096).outputs, claims)] == [False, True, True]


class Peer:
    """A worker of the test's in a thread, which runs what it is given over the tray."""

    def __init__(self, run: Callable[[tray.Tray, int], None], into: int) -> None:
        self._run, self._into = run, into
        self.max_outbox_bytes = 1 << 20
        self.thread: threading.Thread

    def share(self, which: str, arena: wire.HostArena) -> None:
        assert which == "tray"
        self._tray = tray.Tray(arena, self._into)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        return {}

    def send(self, do: str, **fields: Any) -> None:
        assert do == "alone"
        work = (self._tray, fields["number"])
        self.thread = threading.Thread(target=self._run, args=work, daemon=True)
        self.thread.start()

    def answer(self) -> dict[str, Any]:
        self.thread.join(10)
        assert not self.thread.is_alive(), "it did not learn that there are no more calls"
        return {}

    def look(self, deadline: float, may_answer: Callable[[], bool]) -> None:
        if not self.thread.is_alive():
            raise RuntimeError("it ended early")


class Doubles(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def staged(values: torch.Tensor) -> Hand:
    return Hand(image=values.view(torch.uint8), values=([values], None), seed=0)


def timed(run: Callable[[tray.Tray, int], None], hands: list[Hand]) -> list[tuple[Timed, Any]]:
    """Return what the judge takes from a worker that gives one tensor of eight numbers."""
    into = hands[0].image.numel()
    layout = Layout(forms=tuple(forms([VALUES[:8]])))
    baton: Any = SimpleNamespace(
        layout=layout, worker=Peer(run, into), wake=lambda: None, timeout_s=10.0
    )
    checks: Any = SimpleNamespace(see_inputs=lambda slots: {slot: [] for slot in slots})
    times, kept = Singles(baton, into, random.Random(3)).run("eval", hands, 2, 3, checks)
    assert len(times) == len(hands) - 2 and min(times) > 0
    assert [t.seen.inputs is not None for t, _ in kept] == [False, False, True]
    return kept


@pytest.fixture
def hands() -> list[Hand]:
    return [staged(torch.randn(8)) for _ in range(6)]


def test_each_call_has_its_own_inputs_and_gives_their_outputs(hands: list[Hand]) -> None:
    place = torch.zeros(32, dtype=torch.uint8)
    batch = Batch(CPU)
    batch.stage([place.view(torch.float32)], None)

    def run(over: tray.Tray, number: int) -> None:
        batch.run_alone(Doubles(), over, place, number)

    for one, ((x,), _) in timed(run, hands):
        assert one.seen.whole is not None and one.seen.whole[0] is not None
        assert torch.equal(one.seen.whole[0], 2 * x)
        (got,) = one.seen.elements[0]
        assert got is not None
        assert torch.equal(got, torch.take(2 * x, torch.from_numpy(one.seen.numbers[0]) % 8))


def test_who_is_done_before_the_work_is_has_nothing_to_show(hands: list[Hand]) -> None:
    """Nobody who gathers calls to make them at once sees the next before this one is done."""

    def run(over: tray.Tray, number: int) -> None:
        gathered = []
        while over.wait(number) != tray.END:
            gathered.append(over.inputs.clone())
            over.done(number)
            number += 1
        over.outputs[:32] = (2 * gathered[-1].view(torch.float32)).view(torch.uint8)

    for one, ((x,), _) in timed(run, hands):
        assert one.seen.whole is not None and one.seen.whole[0] is not None
        assert not torch.equal(one.seen.whole[0], 2 * x)


def test_a_worker_that_ends_early_is_noticed(hands: list[Hand]) -> None:
    with pytest.raises(RuntimeError, match="ended early"):
        timed(lambda over, number: None, hands)
