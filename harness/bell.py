"""The bell: one shared page over which the judge starts and stops its clock.

A message over a socket takes tens of microseconds and a wake-up from the scheduler; a word that
both sides spin on takes one cache line. The page carries no values, only *armed*, *go* and *done*,
each as the number of the batch, what a worker may not know before its time, the order of the calls
(with *go*), and where its outputs lie (with *done*): the judge reads them there itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from harness import wire
from harness.domain import HarnessError

MAX_CALLS = 1000
MAX_TENSORS = 64
"""Tensors of one call that are looked at: outputs, gradients of inputs, gradients of parameters."""

_ARMED, _GO, _DONE, _COUNT, _WIDTH = range(0, 40, 8)  # a cache line each
_SEED = _COUNT + 1
_ORDER_AT = 40
_WHERE_AT = _ORDER_AT + MAX_CALLS
_WORDS = _WHERE_AT + MAX_CALLS * MAX_TENSORS
BYTES = _WORDS * 8
_SPINS = 2000


class Bell:
    """One end of the page.

    Args:
        arena: shared by judge and worker, at least BYTES long.
        nap_s: sleep between two looks; 0 spins. Where judge and worker share few cores, a judge
            that spins takes from what it measures.
    """

    def __init__(self, arena: wire.HostArena, nap_s: float = 0.0) -> None:
        if arena.size_bytes < BYTES:
            raise HarnessError("the bell's page is too small")
        self._words = arena.flat().numpy()[:BYTES].view(np.int64)
        self._nap_s = nap_s

    # --- the worker's end -----------------------------------------------------------------------

    def arm(self, number: int) -> tuple[list[int], int]:
        """Say that batch number may begin, wait for *go*, return the order of its calls and a seed.

        The seed is of the first call; 0 where generators are left as they are.
        """
        words = self._words
        words[_ARMED] = number
        while words[_GO] != number:
            pass
        count = int(words[_COUNT])
        order: list[int] = words[_ORDER_AT : _ORDER_AT + count].tolist()
        return order, int(words[_SEED])

    def done(self, number: int, where: Sequence[int], width: int) -> None:
        """Say *done*, and where each tensor of each call lies.

        Args:
            number: of the batch.
            where: addresses, call by call; 0 for what has none.
            width: how many to a call, MAX_TENSORS at most.
        """
        words = self._words
        words[_WIDTH] = width
        words[_WHERE_AT : _WHERE_AT + len(where)] = where
        words[_DONE] = number

    # --- the judge's end ------------------------------------------------------------------------

    def write_order(self, order: Sequence[int], seed: int = 0) -> None:
        """Write the order and the seed of the next batch; the worker reads them after *go*."""
        if len(order) > MAX_CALLS:
            raise HarnessError(f"a batch has at most {MAX_CALLS} calls")
        self._words[_COUNT] = len(order)
        self._words[_SEED] = seed
        self._words[_ORDER_AT : _ORDER_AT + len(order)] = order

    def go(self, number: int) -> None:
        """Let batch number begin."""
        self._words[_GO] = number

    def where(self, count: int) -> np.ndarray:
        """Return addresses by call and tensor, as they were when this was called.

        Args:
            count: calls of the batch.
        """
        words = self._words
        width = int(words[_WIDTH])
        if not 0 < width <= MAX_TENSORS:
            return np.zeros((count, 0), dtype=np.int64)
        found: np.ndarray = words[_WHERE_AT : _WHERE_AT + count * width].copy()
        return found.reshape(count, width)

    def wait_armed(self, number: int, look: Callable[[], None]) -> None:
        """Wait until the worker stands ready; look is called now and then, and may raise."""
        self._wait(_ARMED, number, look)

    def wait_done(self, number: int, look: Callable[[], None]) -> None:
        """Wait for *done*."""
        self._wait(_DONE, number, look)

    def is_done(self, number: int) -> bool:
        """Return whether *done* was said of a batch."""
        return bool(self._words[_DONE] == number)

    def _wait(self, word: int, number: int, look: Callable[[], None]) -> None:
        words, nap_s = self._words, self._nap_s
        while True:
            if nap_s:
                for _ in range(20):
                    if words[word] == number:
                        return
                    time.sleep(nap_s)
            else:
                for _ in range(_SPINS):
                    if words[word] == number:
                        return
            look()
