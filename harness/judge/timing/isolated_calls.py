"""Isolated calls of one worker under the clock: each gets its inputs when the one before is done.

A solution cannot work ahead on inputs that do not exist yet. The judge leaves the GPU alone
meanwhile: two processes that take turns on a GPU wait 0.3 ms for it, and a worker could hide ten
calls behind that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness import ipc
from harness.ipc import mailbox
from harness.judge.timing.input_pool import InputPool, Values
from harness.judge.timing.timed_outputs import parts
from harness.judge.timing.timed_worker import Seen, Timed, TimedWorker

_ELEMENTS = 8
"""Elements of each tensor that are read on the clock; each is a system call on a CPU."""
SLOT = 0
"""The slot of the input pool that holds the inputs of isolated calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInputs:
    """Inputs of one call.

    Attributes:
        image: its inputs as they lie in a slot, uint8, on the host.
        values: the same as tensors.
        seed: of all generators, 0 leaves them as they are.
    """

    image: torch.Tensor
    values: Values
    seed: int


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Outputs of one call: numbers and values of elements read on the clock, and whole tensors.

    ``words`` stand for its values that are no tensors.
    """

    numbers: np.ndarray
    elements: list[torch.Tensor | None]
    whole: list[torch.Tensor | None]
    words: list[int]


_Take = Callable[[], Callable[[], _Outputs]]
"""Reads, on the clock, what proves that a call is done; returns a function that reads the rest."""


class IsolatedCalls:
    """Isolated calls of one worker.

    Args:
        timed_worker: has run a batch over the inputs that are staged now.
        input_pool: knows the layout of inputs.
        secret: chooses what is checked.
        clock: seconds; tests inject their own.
    """

    def __init__(
        self,
        timed_worker: TimedWorker,
        input_pool: InputPool,
        secret: random.Random,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._timed_worker = timed_worker
        self._secret = secret
        self._clock = clock
        self._number = 0
        # A worker may claim larger outputs; the rest is not there.
        self._out = (
            min(out_bytes(timed_worker), timed_worker.worker.max_outbox_bytes)
            if timed_worker.on_gpu
            else 0
        )
        arena = ipc.HostArena.create(mailbox.call_mailbox_bytes(input_pool.slot_bytes, self._out))
        self._mailbox = mailbox.CallMailbox(arena, input_pool.slot_bytes)
        # On a GPU the module reads where a batch's first call would.
        self._slot = input_pool.slot(arena, mailbox.CallMailbox.inputs_at)
        self._places = input_pool.places(SLOT) if timed_worker.on_gpu else self._slot.places
        timed_worker.resume()
        timed_worker.worker.share("call mailbox", arena)

    def run(
        self, mode: str, given: Sequence[CallInputs], first: int, keep: int, *, empty: bool = False
    ) -> tuple[list[float], list[tuple[Timed, Values]]]:
        """Make one call after the other.

        Args:
            mode: forward, eval or train.
            given: inputs of the calls.
            first: how many calls at the start do not count.
            keep: of how many others to keep the outputs: of the last one, and of some by lot. Every
                call's outputs are read on the clock.
            empty: the worker repeats the outputs of the first call, which measures the overhead of
                messages. Only a trusted worker may be told so.

        Returns:
            Milliseconds of each call that counts, from before its inputs were written until the
            judge had its outputs; the outputs to be checked, with their inputs.
        """
        timed_worker, pages, last = self._timed_worker, self._mailbox, len(given) - 1
        counted = range(first, last)
        kept = {last, *self._secret.sample(counted, min(keep - 1, len(counted)))}
        looking = self._in_mailbox(kept) if timed_worker.on_gpu else self._in_memory
        timed_worker.resume()
        timed_worker.worker.ask("ready", mode=mode, poison=[])
        timed_worker.worker.send(
            "alone",
            number=self._number + 1,
            bytes=len(pages.inputs),
            empty=empty,
            **self._slot.described,
        )
        times: list[float] = []
        seen: dict[int, _Outputs] = {}
        for position, hand in enumerate(given):
            self._number += 1
            look, take = self._looker(), looking(position)
            began = self._clock()
            pages.inputs.copy_(hand.image)
            pages.go(self._number, hand.seed)
            pages.wait_done(self._number, look)
            rest = take()
            times.append((self._clock() - began) * 1e3)
            if position in kept:
                seen[position] = rest()
        # Read before the worker learns that no call follows: it could restore them then.
        inputs = {SLOT: parts(self._places)}
        self._number += 1
        pages.go(self._number, mailbox.END)
        timed_worker.worker.answer()
        checked = []
        for p in sorted(kept):
            outputs = Seen(
                layout=timed_worker.layout,
                numbers={0: seen[p].numbers},
                elements={0: seen[p].elements},
                chosen=0,
                whole=seen[p].whole,
                words={0: seen[p].words},
                inputs=inputs if p == last else None,
            )
            one = Timed(
                total_ms=times[p], claimed_ms=None, order=(SLOT,), seed=given[p].seed, seen=outputs
            )
            checked.append((one, given[p].values))
        return times[first:], checked

    def _numbers(self) -> np.ndarray:
        once = np.random.default_rng(self._secret.getrandbits(128))
        return once.integers(0, 1 << 62, _ELEMENTS)

    def _in_memory(self, position: int) -> _Take:
        """Return a function that reads outputs in the worker's memory: some elements, then all."""
        timed_worker, count, numbers = (
            self._timed_worker,
            len(_forms(self._timed_worker)),
            self._numbers(),
        )
        prepared = timed_worker.plan_read(numbers)

        def take() -> Callable[[], _Outputs]:
            where = self._mailbox.where(count + timed_worker.values)
            elements = timed_worker.elements(where[:count], prepared)
            words = where[count:].tolist()
            return lambda: _Outputs(numbers, elements, timed_worker.whole(where[:count]), words)

        return take

    def _in_mailbox(self, kept: set[int]) -> Callable[[int], _Take]:
        """Return a function that prepares to take a call's outputs from the mailbox."""
        buffers = {p: torch.zeros(self._out, dtype=torch.uint8) for p in (*kept, -1)}

        def looking(position: int) -> _Take:
            buffer = buffers.get(position, buffers[-1])

            def take() -> Callable[[], _Outputs]:
                buffer.copy_(self._mailbox.outputs[: self._out])
                words = self._mailbox.where(self._timed_worker.values).tolist()
                return lambda: self._outputs(buffer, words)

            return take

        return looking

    def _outputs(self, buffer: torch.Tensor, words: list[int]) -> _Outputs:
        whole, numbers = mailbox.packed(buffer, _forms(self._timed_worker)), self._numbers()
        at = torch.from_numpy(numbers)
        elements = [None if t is None else torch.take(t, at % t.numel()) for t in whole]
        return _Outputs(numbers, elements, whole, words)

    def _looker(self) -> Callable[[], None]:
        number, deadline = self._number, time.monotonic() + self._timed_worker.timeout_s
        return lambda: self._timed_worker.worker.look(
            deadline, lambda: self._mailbox.is_done(number)
        )


def out_bytes(timed_worker: TimedWorker) -> int:
    """Return the bytes of one call's tensors in a mailbox, as the worker describes them."""
    return sum(ipc.aligned(mailbox.packed_bytes(form)) for form in _forms(timed_worker))


def _forms(timed_worker: TimedWorker) -> tuple[ipc.Form | None, ...]:
    return timed_worker.layout.forms[: mailbox.MAX_TENSORS] if timed_worker.layout else ()
