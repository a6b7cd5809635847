"""Isolated calls: what passes over the mailbox, and that nothing comes before its time."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import ipc
from harness.ipc import mailbox
from harness.judge.timing.input_pool import InputPool
from harness.judge.timing.isolated_calls import CallInputs, IsolatedCalls
from harness.judge.timing.timed_worker import Timed
from harness.judge.workers.peer_memory import Layout, PeerMemory
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


def pages(nbytes: int, into: int = 64) -> mailbox.CallMailbox:
    return mailbox.CallMailbox(ipc.HostArena.create(mailbox.call_mailbox_bytes(into, nbytes)), into)


def forms(tensors: list[torch.Tensor | None]) -> list[ipc.Form | None]:
    return [ipc.form(ipc.described(t)) for t in tensors]


def test_what_is_put_in_the_mailbox_is_found_there() -> None:
    both = pages(1 << 16)
    packed = mailbox.PackedOutputs(both.outputs)
    for change in (1, 2):  # the second time over what the first one laid out
        given = [None if t is None else (t if t.dtype == torch.bool else t * change) for t in FORMS]
        packed.put(given)
        found = mailbox.packed(both.outputs, forms(given))
        for there, tensor in zip(found, given, strict=True):
            if tensor is None or not tensor.numel():
                assert there is None
            else:
                assert there is not None and there.is_contiguous()
                assert torch.equal(there, tensor)


def test_other_forms_than_before_are_laid_out_anew() -> None:
    both = pages(1 << 12)
    packed = mailbox.PackedOutputs(both.outputs)
    for given in ([VALUES], [VALUES.reshape(4, 6).t()], [VALUES.double(), VALUES]):
        packed.put(given)
        found = mailbox.packed(both.outputs, forms(given))
        assert all(torch.equal(a, b) for a, b in zip(found, given, strict=True))


def test_what_does_not_fit_is_not_there() -> None:
    claims = forms([VALUES, torch.empty(1 << 20, device="meta"), VALUES])
    assert [t is None for t in mailbox.packed(pages(4096).outputs, claims)] == [False, True, True]


def test_what_claims_more_elements_than_there_are_bytes_is_not_there() -> None:
    claims = forms([VALUES[:1].expand(1 << 20), VALUES])
    assert mailbox.packed(pages(4096).outputs, claims) == [None, None]


class Peer:
    """A worker of the test's in a thread, which runs what it is given over the mailbox."""

    max_outbox_bytes = 1 << 20

    def __init__(self, run: Callable[[mailbox.CallMailbox, int], None], into: int) -> None:
        self._run, self._into = run, into
        self.thread: threading.Thread

    def share(self, which: str, arena: ipc.HostArena) -> None:
        assert which == "call mailbox"
        self.arena = arena

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        return {}

    def send(self, do: str, **fields: Any) -> None:
        assert do == "alone"
        self.told = fields
        work = (mailbox.CallMailbox(self.arena, self._into), fields["number"])
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


class Bench:
    """IsolatedCalls over a worker in a thread, whose tensors lie in this process.

    Args:
        run: what the worker does.
        on_gpu: whether it has to copy, as one whose tensors lie in a GPU's memory.
    """

    def __init__(
        self, run: Callable[[Bench, mailbox.CallMailbox, int], None], *, on_gpu: bool
    ) -> None:
        problem: Any = SimpleNamespace(
            path="reference.py", device=CPU, inputs=lambda seed: [torch.randn(8)]
        )
        self.stage = InputPool(problem, None, seed=3)
        self.place = torch.zeros(self.stage.slot_bytes, dtype=torch.uint8)
        self.stage._places = [[self.place[:32].view(torch.float32)]]
        self.peer = Peer(lambda over, number: run(self, over, number), self.stage.slot_bytes)
        layout = Layout(forms=tuple(forms([VALUES[:8]])))
        self._memory = os.open("/proc/self/mem", os.O_RDONLY)
        peer_memory = PeerMemory(self._memory, CPU, 1 << 20)
        timed_worker: Any = SimpleNamespace(
            on_gpu=on_gpu,
            layout=layout,
            values=0,
            worker=self.peer,
            resume=lambda: None,
            timeout_s=10.0,
            plan_read=lambda numbers: peer_memory.plan_read(layout.forms[0], numbers),
            elements=lambda where, at: [peer_memory.elements(int(where[0]), layout.forms[0], at)],
            whole=lambda where: [peer_memory.whole(int(where[0]), layout.forms[0])],
        )
        self.isolated_calls = IsolatedCalls(timed_worker, self.stage, random.Random(3))

    def timed(self, count: int = 6, *, empty: bool = False) -> list[tuple[Timed, torch.Tensor]]:
        """Return what the judge takes of some calls, each with its input."""
        given = []
        for number in range(count):
            image, values = self.stage.fresh(number)
            given.append(CallInputs(image=image, values=values, seed=0))
        times, kept = self.isolated_calls.run("eval", given, 2, 3, empty=empty)
        os.close(self._memory)
        assert len(times) == count - 2 and min(times) > 0
        assert [t.seen.inputs is not None for t, _ in kept] == [False, False, True]
        return [(timed, values[0][0]) for timed, values in kept]


def honest(bench: Bench, over: mailbox.CallMailbox, number: int) -> None:
    batch = Batch(CPU)
    if bench.isolated_calls._timed_worker.on_gpu:
        batch.stage([bench.place[:32].view(torch.float32)], None)
        batch.run_alone(Doubles(), over, bench.place, number, bench.peer.told["empty"])
    else:
        decoder = ipc.Placed(bench.peer.arena, bench.peer.told["table"])
        batch.stage(decoder.decode(bench.peer.told["args"]), None)
        batch.run_alone(Doubles(), over, None, number, bench.peer.told["empty"])


@pytest.mark.parametrize("on_gpu", [False, True])
def test_each_call_has_its_own_inputs_and_gives_their_outputs(on_gpu: bool) -> None:
    for one, x in Bench(honest, on_gpu=on_gpu).timed():
        assert one.seen.whole is not None and one.seen.whole[0] is not None
        assert torch.equal(one.seen.whole[0], 2 * x)
        (got,) = one.seen.elements[0]
        assert got is not None
        assert torch.equal(got, torch.take(2 * x, torch.from_numpy(one.seen.numbers[0]) % 8))
    ((_, found),) = one.seen.inputs[0]
    assert torch.equal(found, x)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_empty_calls_go_the_same_way_without_a_call(on_gpu: bool) -> None:
    found = [one.seen.elements[0][0] for one, _ in Bench(honest, on_gpu=on_gpu).timed(empty=True)]
    wholes = [one.seen.whole[0] for one, _ in Bench(honest, on_gpu=on_gpu).timed(empty=True)]
    assert all(f is not None for f in found)
    assert torch.equal(wholes[0], wholes[-1]), "it has been called again"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_who_is_done_before_the_work_is_has_nothing_to_show(on_gpu: bool) -> None:
    """Nobody who gathers calls to make them at once sees the next before this one is done."""

    def run(bench: Bench, over: mailbox.CallMailbox, number: int) -> None:
        gathered, outputs = [], []
        while over.await_go(number) != mailbox.END:
            gathered.append(over.inputs[:32].view(torch.float32).clone())
            outputs.append(torch.zeros(8))
            over.done(number, [outputs[-1].data_ptr()])
            number += 1
        for output, x in zip(outputs, gathered, strict=True):
            output.copy_(2 * x)
        if on_gpu:
            over.outputs[:32] = outputs[-1].view(torch.uint8)

    for one, x in Bench(run, on_gpu=on_gpu).timed():
        (got,) = one.seen.elements[0]
        assert got is not None
        assert not torch.equal(got, torch.take(2 * x, torch.from_numpy(one.seen.numbers[0]) % 8))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_inputs_are_looked_at_before_the_worker_learns_that_it_was_the_last(on_gpu: bool) -> None:
    def run(bench: Bench, over: mailbox.CallMailbox, number: int) -> None:
        outputs = []
        while over.await_go(number) != mailbox.END:
            inputs = over.inputs[:32].view(torch.float32)
            outputs.append(2 * inputs)
            if on_gpu:
                over.outputs[:32] = outputs[-1].view(torch.uint8)
                inputs = bench.place[:32].view(torch.float32)
            inputs.fill_(7.0)
            over.done(number, [outputs[-1].data_ptr()])
            number += 1
        inputs.zero_()

    *_, (one, _) = Bench(run, on_gpu=on_gpu).timed()
    ((_, found),) = one.seen.inputs[0]
    assert torch.equal(found, torch.full((8,), 7.0))


def test_a_worker_that_ends_early_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="ended early"):
        Bench(lambda bench, over, number: None, on_gpu=False).timed()
