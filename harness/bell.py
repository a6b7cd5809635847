"""The bell: one shared page over which the judge starts and stops its clock.

A message over a socket takes tens of microseconds and a wake-up from the scheduler; a word that
both sides spin on takes one cache line. The page carries no values, only *armed*, *go*, *done*
and *shown*, each as the number of the batch, and what a worker may not know before its time: the
order of the calls (with *go*) and which elements of which outputs the judge wants (after *done*).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from harness import wire
from harness.domain import HarnessError

MAX_CALLS = 1000
MAX_PICKS = 8
ELEMENTS = 256
"""Elements that are looked at in each tensor of a picked output."""
MAX_TENSORS = 32
CELL_BYTES = ELEMENTS * 16
"""Room for the elements of one tensor, the widest dtype (complex128) included."""
SHOW_BYTES = MAX_PICKS * MAX_TENSORS * CELL_BYTES

_ARMED, _GO, _DONE, _PICKED, _SHOWN, _COUNT, _PICKS = range(0, 56, 8)  # a cache line each
_PICK_AT = 64
_ELEMENT_AT = _PICK_AT + MAX_PICKS
_ORDER_AT = _ELEMENT_AT + ELEMENTS
_WORDS = _ORDER_AT + MAX_CALLS
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

    def arm(self, number: int) -> list[int]:
        """Say that batch number may begin, wait for *go*, return the order of its calls."""
        words = self._words
        words[_ARMED] = number
        while words[_GO] != number:
            pass
        count = int(words[_COUNT])
        order: list[int] = words[_ORDER_AT : _ORDER_AT + count].tolist()
        return order

    def done(self, number: int) -> tuple[list[int], np.ndarray]:
        """Say *done*, wait for what the judge wants to see: calls, and raw element numbers."""
        words = self._words
        words[_DONE] = number
        while words[_PICKED] != number:
            pass
        picks: list[int] = words[_PICK_AT : _PICK_AT + int(words[_PICKS])].tolist()
        return picks, words[_ELEMENT_AT : _ELEMENT_AT + ELEMENTS].copy()

    def shown(self, number: int) -> None:
        """Say that the elements lie where the judge can read them."""
        self._words[_SHOWN] = number

    # --- the judge's end ------------------------------------------------------------------------

    def write_order(self, order: Sequence[int]) -> None:
        """Write the order of the next batch; the worker reads it after *go*."""
        if len(order) > MAX_CALLS:
            raise HarnessError(f"a batch has at most {MAX_CALLS} calls")
        self._words[_COUNT] = len(order)
        self._words[_ORDER_AT : _ORDER_AT + len(order)] = order

    def go(self, number: int) -> None:
        """Let batch number begin."""
        self._words[_GO] = number

    def pick(self, number: int, picks: Sequence[int], elements: np.ndarray) -> None:
        """Say what the judge wants to see of batch number."""
        words = self._words
        words[_PICKS] = len(picks)
        words[_PICK_AT : _PICK_AT + len(picks)] = picks
        words[_ELEMENT_AT : _ELEMENT_AT + ELEMENTS] = elements
        words[_PICKED] = number

    def wait_armed(self, number: int, look: Callable[[], None]) -> None:
        """Wait until the worker stands ready; look is called now and then, and may raise."""
        self._wait(_ARMED, number, look)

    def wait_done(self, number: int, look: Callable[[], None]) -> None:
        """Wait for *done*."""
        self._wait(_DONE, number, look)

    def wait_shown(self, number: int, look: Callable[[], None]) -> None:
        """Wait until the picked elements can be read."""
        self._wait(_SHOWN, number, look)

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
