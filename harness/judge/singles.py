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

from harness import bell, tray, wire
from harness.judge.baton import Baton, Seen, Timed
from harness.judge.staging import Stage, Values
from harness.judge.timed_outputs import parts

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
        stage: says how inputs lie.
        secret: chooses what is checked.
        clock: seconds; tests inject their own.
    """

    def __init__(
        self,
        baton: Baton,
        stage: Stage,
        secret: random.Random,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._baton = baton
        self._secret = secret
        self._clock = clock
        self._number = 0
        # What a worker claims to give beyond that is not there.
        self._out = min(out_bytes(baton), baton.worker.max_outbox_bytes) if baton.on_gpu else 0
        arena = wire.HostArena.create(tray.size_bytes(stage.slot_bytes, self._out))
        self._tray = tray.Tray(arena, stage.slot_bytes)
        # On a GPU the module reads where a batch's first call would.
        self._slot = stage.slot(arena, tray.Tray.inputs_at)
        self._places = stage.places(SLOT) if baton.on_gpu else self._slot.places
        baton.wake()
        baton.worker.share("tray", arena)

    def run(
        self, mode: str, hands: Sequence[Hand], first: int, keep: int
    ) -> tuple[list[float], list[tuple[Timed, Values]]]:
        """Make one call after the other.

        Args:
            mode: forward, eval or train.
            hands: a call each.
            first: how many of them do not count.
            keep: of how many others to keep the outputs: the last, and what the secret chooses.
                What it takes to copy them is on the clock, for all calls alike.

        Returns:
            Milliseconds of each that counts, from before its inputs were handed over until its
            outputs were the judge's; what is to be checked, with its inputs.
        """
        baton, pages, last = self._baton, self._tray, len(hands) - 1
        counted = range(first, last)
        kept = {last, *self._secret.sample(counted, min(keep - 1, len(counted)))}
        take = self._taker(kept)
        baton.wake()
        baton.worker.ask("ready", mode=mode, poison=[])
        baton.worker.send(
            "alone", number=self._number + 1, bytes=len(pages.inputs), **self._slot.described
        )
        times: list[float] = []
        found: dict[int, list[torch.Tensor | None]] = {}
        for position, hand in enumerate(hands):
            self._number += 1
            look = self._looker()
            began = self._clock()
            pages.inputs.copy_(hand.image)
            pages.go(self._number, hand.seed)
            pages.wait_done(self._number, look)
            found[position if position in kept else -1] = take(position)
            times.append((self._clock() - began) * 1e3)
        # As long as it may be asked for more: inputs must be as they were before it is not.
        inputs = {SLOT: parts(self._places)}
        self._number += 1
        pages.go(self._number, tray.END)
        baton.worker.answer()
        return times[first:], [
            (
                self._timed(found[p], times[p], hands[p].seed, inputs if p == last else None),
                hands[p].values,
            )
            for p in sorted(kept)
        ]

    def _taker(self, kept: set[int]) -> Callable[[int], list[torch.Tensor | None]]:
        """Return what takes the outputs of the call at a position, when it is done."""
        layout = self._baton.layout
        forms = layout.forms[: bell.MAX_TENSORS] if layout else ()
        if not self._baton.on_gpu:
            return lambda position: self._baton.whole(self._tray.where(len(forms)))
        most = self._baton.worker.max_outbox_bytes
        buffers = {p: torch.zeros(self._out, dtype=torch.uint8) for p in (*kept, -1)}

        def take(position: int) -> list[torch.Tensor | None]:
            buffer = buffers.get(position, buffers[-1])
            buffer.copy_(self._tray.outputs[: self._out])
            return tray.laid_out(buffer, forms, most) if position in kept else []

        return take

    def _timed(
        self, whole: list[torch.Tensor | None], ms: float, seed: int, inputs: object
    ) -> Timed:
        numbers = np.random.default_rng(self._secret.getrandbits(128)).integers(
            0, 1 << 62, _ELEMENTS
        )
        chosen = torch.from_numpy(numbers)
        with self._baton.claims():
            elements = [None if t is None else torch.take(t, chosen % t.numel()) for t in whole]
        seen = Seen(
            layout=self._baton.layout,
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
