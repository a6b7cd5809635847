"""Single calls under the clock: the inputs of each reach the worker when the ones before are done.

Nobody can work ahead on what is not there. The judge leaves the GPU alone meanwhile: two processes
that take turns on one wait 0.3 ms for it, behind which a worker could hide ten calls.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness import tray, wire
from harness.judge.baton import Baton, Seen, Timed
from harness.judge.staging import Values
from harness.judge.timed_outputs import OutputCheck

_ELEMENTS = 64
SLOT = 0
"""Where the inputs of single calls lie in the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """What one call is given.

    Attributes:
        image: its inputs as they lie in a slot, uint8, on the host.
        values: the same as tensors.
        seed: of all generators, 0 leaves them as they are.
    """

    image: torch.Tensor
    values: Values
    seed: int


class Singles:
    """Single calls of one worker.

    Args:
        baton: its own; it has run a batch over the inputs that are staged now.
        into: bytes of a slot.
        secret: chooses what is checked.
        clock: seconds; tests inject their own.
    """

    def __init__(
        self,
        baton: Baton,
        into: int,
        secret: random.Random,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._baton = baton
        self._secret = secret
        self._clock = clock
        self._number = 0
        self._into = into
        # What a worker claims to give beyond that is not there.
        self._out = min(out_bytes(baton), baton.worker.max_outbox_bytes)
        arena = wire.HostArena.create(tray.size_bytes(into, self._out))
        self._tray = tray.Tray(arena, into)
        baton.wake()
        baton.worker.share("tray", arena)

    def run(
        self, mode: str, hands: Sequence[Hand], first: int, keep: int, checks: OutputCheck | None
    ) -> tuple[list[float], list[tuple[Timed, Values]]]:
        """Make one call after the other.

        Args:
            mode: forward, eval or train.
            hands: a call each.
            first: how many of them do not count.
            keep: of how many others to keep the outputs: the last, and what the secret chooses.
                What it takes to copy them is on the clock, for all calls alike.
            checks: sees whether the last call left its inputs as they were; None for a worker that
                is believed.

        Returns:
            Milliseconds of each that counts, from before its inputs were handed over until its
            outputs were the judge's; what is to be checked, with its inputs.
        """
        baton, pages = self._baton, self._tray
        last = len(hands) - 1
        counted = range(first, last)
        kept = {last, *self._secret.sample(counted, min(keep - 1, len(counted)))}
        buffers = {p: torch.zeros(self._out, dtype=torch.uint8) for p in (*kept, -1)}
        baton.wake()
        baton.worker.ask("ready", mode=mode, poison=[])
        baton.worker.send("alone", number=self._number + 1, bytes=self._into)
        times: list[float] = []
        for position, hand in enumerate(hands):
            self._number += 1
            look = self._looker()
            buffer = buffers.get(position, buffers[-1])
            began = self._clock()
            pages.inputs.copy_(hand.image)
            pages.go(self._number, hand.seed)
            pages.wait_done(self._number, look)
            buffer.copy_(pages.outputs[: self._out])
            times.append((self._clock() - began) * 1e3)
        self._number += 1
        pages.go(self._number, tray.END)
        baton.worker.answer()
        if checks is None:
            return times[first:], []
        found = checks.see_inputs({SLOT})
        return times[first:], [
            (
                self._timed(buffers[p], times[p], hands[p].seed, found if p == last else None),
                hands[p].values,
            )
            for p in sorted(kept)
        ]

    def _timed(self, buffer: torch.Tensor, ms: float, seed: int, inputs: object) -> Timed:
        layout = self._baton.layout
        assert layout is not None
        whole = tray.laid_out(buffer, layout.forms)
        numbers = np.random.default_rng(self._secret.getrandbits(128)).integers(
            0, 1 << 62, _ELEMENTS
        )
        chosen = torch.from_numpy(numbers)
        elements = [None if t is None else torch.take(t, chosen % t.numel()) for t in whole]
        seen = Seen(
            layout=layout,
            numbers={0: numbers},
            elements={0: elements},
            chosen=0,
            whole=whole,
            inputs=inputs,
        )
        return Timed(total_ms=ms, claimed_ms=None, order=(SLOT,), seed=seed, seen=seen)

    def _looker(self) -> Callable[[], None]:
        number, deadline = self._number, time.monotonic() + self._baton.timeout_s
        return lambda: self._baton.worker.look(deadline, lambda: self._tray.is_done(number))


def out_bytes(baton: Baton) -> int:
    """Return what the tensors of one call take on a tray, as the worker describes them."""
    layout = baton.layout
    forms = layout.forms if layout else ()
    return sum(wire.aligned(f.span_bytes) for f in forms if f is not None)
