"""The timed worker: what the judge sees of a worker, with workers that the test makes up.

Their outputs lie in this process; the judge reads them as it reads a worker's, through a file.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from harness import ipc
from harness.domain import CANDIDATE
from harness.ipc import mailbox
from harness.judge.timing.timed_worker import Timed, TimedWorker
from harness.judge.workers import replies

Act = Callable[["FakeWorker", mailbox.BatchMailbox, list[int]], None]


class MisdescribedError(Exception):
    """What the judge says of claims that cannot be."""


class FakeWorker:
    """A worker that lives in the test: what it does with a batch is passed in."""

    def __init__(self, act: Act) -> None:
        self.act = act
        self.running = True
        self.events: list[str] = []
        self.number = 0
        self.outputs: list[torch.Tensor] = []
        self.lies: dict[str, Any] = {}
        self.page: ipc.HostArena
        self.memory_fd = os.open("/proc/self/mem", os.O_RDONLY)
        self.max_outbox_bytes = 1 << 20

    def share(self, which: str, arena: ipc.HostArena) -> None:
        assert which == "mailbox"
        self.page = arena

    @property
    def words(self) -> np.ndarray:
        return self.page.flat().numpy()[: mailbox.BATCH_BYTES].view(np.int64)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self.running, "a stopped worker cannot take requests"
        assert do == "ready"
        self.events.append("ready")
        return {"allocations": []}

    def send(self, do: str, **fields: Any) -> None:
        assert self.running, "a stopped worker cannot take requests"
        self.number = fields["number"]
        self.words[mailbox._READY] = self.number

    def look(self, deadline: float, may_answer: Callable[[], bool]) -> None:
        assert may_answer(), "the fake worker is late: nothing it does takes time"

    def tampered(self, how: str) -> Exception:
        return MisdescribedError(how)

    def pause(self) -> None:
        self.running = False
        self.events.append("stopped")

    def resume(self) -> None:
        self.running = True
        self.events.append("let go")
        words = self.words
        if words[mailbox._GO] == self.number != words[mailbox._DONE]:
            order = words[mailbox._ORDER_AT :][: int(words[mailbox._COUNT])].tolist()
            self.act(self, mailbox.BatchMailbox(self.page), order)

    def see_it_stood(self) -> None:
        self.events.append("looked at")

    def resume_family(self) -> None:
        self.events.append("family let go")

    def answer(self) -> dict[str, Any]:
        forms = [ipc.described(t) for t in self.outputs[-1:]]
        true = {"claimed_ms": 1.0, "allocations": [], "forms": forms, "state": []}
        true |= {"moving": [], "moving_at": []}
        try:
            return replies.read("go", {"ok": True, **true, **self.lies})
        except ipc.WireViolation as error:
            raise MisdescribedError(str(error)) from None


def compute(worker: FakeWorker, page: mailbox.BatchMailbox, order: list[int]) -> None:
    """Give 3 x 5 numbers that tell the slot, in no time."""
    worker.outputs = [torch.arange(15.0).reshape(3, 5) + 100 * slot for slot in order]
    page.done(worker.number, [t.data_ptr() for t in worker.outputs], 1)


@pytest.fixture
def timed_workers() -> Iterator[Callable[..., TimedWorker]]:
    made: list[TimedWorker] = []

    def make(worker: FakeWorker, **more: Any) -> TimedWorker:
        made.append(TimedWorker(CANDIDATE, worker, torch.device("cpu"), timeout_s=1.0, **more))
        return made[-1]

    yield make
    for timed_worker in made:
        os.close(timed_worker.worker.memory_fd)


def run(
    timed_worker: TimedWorker, order: list[int], most: int = 2, seed: int = 1, whole: bool = True
) -> Timed:
    timed_worker.prepare("eval", [])
    return timed_worker.run(order, random.Random(seed), most, whole)


def test_candidate_stands_still_until_go(timed_workers: Callable[..., TimedWorker]) -> None:
    worker = FakeWorker(compute)
    timed_worker = timed_workers(worker)
    timed_worker.prepare("eval", [])
    assert worker.events == ["ready", "stopped"]
    timed = timed_worker.run([2, 0, 1], random.Random(1), 2, whole=False)
    assert worker.events[1:] == ["stopped", "looked at", "family let go", "let go"]
    assert timed.order == (2, 0, 1)
    timed_worker.suspend()
    timed_worker.suspend()
    assert worker.events[5:] == ["stopped"]


def test_a_helper_has_no_head_start_on_the_clock(timed_workers: Callable[..., TimedWorker]) -> None:
    """What a candidate started is let go on after the clock has been, and after the look."""
    worker = FakeWorker(compute)
    started_after: list[int] = []

    def now() -> float:
        started_after.append(len(worker.events))
        return 0.0

    run(timed_workers(worker, clock=now), [0])
    assert worker.events[: started_after[0]] == ["ready", "stopped", "looked at"]


def test_order_is_written_with_go_and_not_before(timed_workers: Callable[..., TimedWorker]) -> None:
    seen: list[list[int]] = []

    def note(worker: FakeWorker, page: mailbox.BatchMailbox, order: list[int]) -> None:
        seen.append(order)
        compute(worker, page, order)

    worker = FakeWorker(note)
    timed_worker = timed_workers(worker)
    timed_worker.prepare("eval", [])
    assert worker.words[mailbox._COUNT] == 0
    timed_worker.run([5, 3], random.Random(1), 1, whole=False)
    assert seen == [[5, 3]]


def test_clock_stops_when_the_judge_has_seen(timed_workers: Callable[..., TimedWorker]) -> None:
    """Done is a claim: who makes the judge wait for what it wants to see is not done."""
    now = 0.0
    timed_worker = timed_workers(FakeWorker(compute), clock=lambda: now)
    run(timed_worker, [0])
    read = timed_worker._peer_memory.elements

    def slowly(*which: Any) -> torch.Tensor | None:
        nonlocal now
        now += 0.1
        return read(*which)

    timed_worker._peer_memory.elements = slowly  # type: ignore[method-assign]
    assert run(timed_worker, [0, 1, 2], most=3).total_ms == pytest.approx(300.0)
    timed_worker.keep = 1  # the same one three times: every role is looked at as often
    assert run(timed_worker, [0, 1, 2], most=3).total_ms == pytest.approx(300.0)


def test_judge_sees_the_outputs_that_it_chose(timed_workers: Callable[..., TimedWorker]) -> None:
    timed_worker = timed_workers(FakeWorker(compute))
    first = run(timed_worker, [7, 4, 9]).seen
    assert first.layout is None  # nobody has said yet what a call gives
    seen = run(timed_worker, [7, 4, 9], most=8).seen
    assert seen.layout is not None
    assert 2 in seen.elements, "the last one always"
    for position, (got,) in seen.elements.items():
        slot = [7, 4, 9][position]
        want = torch.from_numpy(seen.numbers[position]) % 15 + 100.0 * slot
        assert torch.equal(got, want.float())
    assert seen.whole is not None
    slot = [7, 4, 9][seen.chosen]
    assert torch.equal(seen.whole[0], torch.arange(15.0).reshape(3, 5) + 100 * slot)


def test_what_is_written_after_done_is_not_seen(timed_workers: Callable[..., TimedWorker]) -> None:
    def late(worker: FakeWorker, page: mailbox.BatchMailbox, order: list[int]) -> None:
        worker.outputs = [torch.full((3, 5), float("nan")) for _ in order]
        page.done(worker.number, [t.data_ptr() for t in worker.outputs], 1)

    worker = FakeWorker(late)
    timed_worker = timed_workers(worker)
    run(timed_worker, [0, 1])
    answer = worker.answer

    def finish_late() -> dict[str, Any]:
        for tensor in worker.outputs:
            tensor.fill_(1.0)
        return answer()

    worker.answer = finish_late  # type: ignore[method-assign]
    seen = run(timed_worker, [0, 1]).seen
    assert seen.whole is not None
    assert seen.whole[0].isnan().all()
    assert all(got.isnan().all() for (got,) in seen.elements.values())


def test_worker_is_not_told_what_is_looked_at(timed_workers: Callable[..., TimedWorker]) -> None:
    """Who knows which outputs are looked at need compute no others."""
    worker = FakeWorker(compute)
    timed_worker = timed_workers(worker)
    at_done: list[bytes] = []

    def note(worker: FakeWorker, page: mailbox.BatchMailbox, order: list[int]) -> None:
        compute(worker, page, order)
        at_done.append(worker.words.tobytes())

    worker.act = note
    run(timed_worker, [0, 1, 2], most=3)
    assert at_done == [worker.words.tobytes()]
    assert worker.events == ["ready", "stopped", "looked at", "family let go", "let go"]


def test_elements_that_are_looked_at_differ_from_batch_to_batch(
    timed_workers: Callable[..., TimedWorker],
) -> None:
    timed_worker, secret = timed_workers(FakeWorker(compute)), random.Random(1)
    numbers = []
    for _ in range(2):
        timed_worker.prepare("eval", [])
        seen = timed_worker.run([0], secret, 1, whole=False).seen
        numbers.append(seen.numbers[0])
    assert not np.array_equal(*numbers)


def test_every_look_is_at_other_elements_even_of_one_output(
    timed_workers: Callable[..., TimedWorker],
) -> None:
    """The reference may keep one output of several: its second look is as long as another's."""
    timed_worker = timed_workers(FakeWorker(compute))
    run(timed_worker, [0])
    looks: list[tuple[int, ...]] = []
    read = timed_worker._peer_memory.elements

    def note(address: int, form: Any, prepared: Any) -> torch.Tensor | None:
        looks.append(tuple(prepared))
        return read(address, form, prepared)

    timed_worker._peer_memory.elements = note  # type: ignore[method-assign]
    timed_worker.keep = 1
    run(timed_worker, [0, 1, 2], most=3)
    assert len(looks) == len(set(looks)) == 3


def test_only_outputs_that_are_kept_are_looked_at(
    timed_workers: Callable[..., TimedWorker],
) -> None:
    timed_worker = timed_workers(FakeWorker(compute))
    timed_worker.keep = 1
    seen = run(timed_worker, [0, 1, 2, 3], most=8).seen
    assert set(seen.elements) == {3}


VAST = {"dtype": "float32", "on_gpu": False, "conjugate": False, "negative": False}


@pytest.mark.parametrize(
    "lies",
    [
        {"forms": None},
        {"forms": "none"},
        {"forms": [7]},
        {"forms": [{"dtype": "float32"}]},
        {"forms": [{**VAST, "dtype": "object", "shape": [1], "strides": [1]}]},
        {"forms": [{**VAST, "shape": [4], "strides": [-1]}]},
        {"forms": [{**VAST, "shape": [1 << 50], "strides": [1]}]},
        {"forms": [{**VAST, "shape": [1, 5], "strides": [10**30, 1]}]},
        {"forms": [{**VAST, "shape": "12", "strides": "11"}]},
        {"state": [1]},
        {"allocations": 7},
        {"allocations": [{"base": 4096, "bytes": 4096, "handle": "00" * 64}]},
        {"claimed_ms": 10**400},
        {"claimed_ms": -1.0},
        {"claimed_ms": "fast"},
    ],
)
def test_a_claim_that_cannot_be_is_the_workers_fault(
    lies: dict[str, Any], timed_workers: Callable[..., TimedWorker]
) -> None:
    worker = FakeWorker(compute)
    worker.lies = lies
    with pytest.raises(MisdescribedError):
        run(timed_workers(worker), [0])


def test_who_never_says_what_its_calls_give_is_not_left_alone(
    timed_workers: Callable[..., TimedWorker],
) -> None:
    """Without forms nothing could be read, and nothing would be checked."""
    worker = FakeWorker(compute)
    timed_worker = timed_workers(worker)
    true = worker.answer

    said = {"ok": True, "claimed_ms": 1.0, "allocations": true()["allocations"]}
    worker.answer = lambda: replies.read("go", said)  # type: ignore[method-assign]
    with pytest.raises(ipc.WireViolation, match="forms"):
        run(timed_worker, [0])


def test_only_the_first_batch_over_new_inputs_is_not_looked_at(
    timed_workers: Callable[..., TimedWorker],
) -> None:
    worker = FakeWorker(compute)
    timed_worker = timed_workers(worker)
    looked = [run(timed_worker, [0]).seen.layout is not None for _ in range(3)]
    ask = worker.ask

    def clear_too(do: str, **fields: Any) -> dict[str, Any]:
        return {} if do == "clear" else ask(do, **fields)

    worker.ask = clear_too  # type: ignore[method-assign]
    timed_worker.clear()
    looked += [run(timed_worker, [0]).seen.layout is not None for _ in range(3)]
    assert looked == [False, True, True] * 2


def test_a_tensor_that_would_fill_the_machine_is_not_read(
    timed_workers: Callable[..., TimedWorker],
) -> None:
    worker = FakeWorker(compute)
    worker.lies = {"forms": [{**VAST, "shape": [1 << 20, 1 << 20], "strides": [0, 0]}]}
    timed_worker = timed_workers(worker)
    run(timed_worker, [0])
    seen = run(timed_worker, [0]).seen
    assert seen.whole == [None]


@pytest.mark.parametrize("address", [8, 1 << 46, -16, (1 << 63) - 8])
def test_an_address_of_nothing_is_nothing_seen(
    address: int, timed_workers: Callable[..., TimedWorker]
) -> None:
    def lie(worker: FakeWorker, page: mailbox.BatchMailbox, order: list[int]) -> None:
        worker.outputs = [torch.ones(3) for _ in order]
        page.done(worker.number, [address] * len(order), 1)

    timed_worker = timed_workers(FakeWorker(lie))
    run(timed_worker, [0])
    seen = run(timed_worker, [0]).seen
    assert seen.elements == {0: [None]} and seen.whole == [None]
