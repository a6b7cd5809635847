"""Shared pages over which judge and worker start and stop timed calls.

A message over a socket takes tens of microseconds and a wake-up from the scheduler. A word in
shared memory that both sides poll takes one cache line.

A ``BatchMailbox`` serves batched calls, whose inputs all lie in the worker before *go*. It carries
three numbers of a batch: *ready*, *go* and *done*. With *go* it carries the order of the calls,
which the worker may not know before. With *done* it carries the addresses of the outputs, and the
judge reads the outputs there itself.

A ``CallMailbox`` serves isolated calls. The inputs of a call reach the worker together with *go*,
and the next ones follow when the judge has the outputs. On a CPU the module reads its inputs in
the mailbox, and the judge is told the addresses of the outputs. On a GPU the worker copies both:
the judge cannot reach GPU memory without waiting for its turn on the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from harness.domain import HarnessError
from harness.ipc.arena import HostArena, aligned
from harness.ipc.tensor_spec import TensorSpec, address

MAX_CALLS = 1000
MAX_WORDS = 64_000
"""Addresses and numbers of all calls of a batch."""
MAX_TENSORS = 4000
"""Tensors of one call that are known: outputs, gradients of inputs, gradients of parameters."""
END = -1
"""A worker receives it in place of a seed when no call follows."""

_GO, _DONE, _SEED = range(0, 24, 8)  # a cache line each
_READY, _COUNT, _WIDTH = range(24, 48, 8)
_ORDER_AT = 48
_WHERE_AT = _ORDER_AT + MAX_CALLS
BATCH_BYTES = (_WHERE_AT + MAX_WORDS) * 8
_CALL_WHERE_AT = 64
_CALL_HEAD_BYTES = 64 * 1024
_SPINS = 2000


class _Page:
    """The words that both kinds of mailbox have.

    Args:
        words: shared by judge and worker.
        nap_s: sleep between two polls of the judge; 0 polls without a break. Where judge and
            worker share few cores, a judge that never sleeps takes time from the timed call.
    """

    def __init__(self, words: np.ndarray, nap_s: float = 0.0) -> None:
        self._words = words
        self._nap_s = nap_s

    def is_done(self, number: int) -> bool:
        """Return whether the worker has said *done* of a batch or call."""
        return bool(self._words[_DONE] == number)

    def wait_done(self, number: int, look: Callable[[], None]) -> None:
        """Wait for *done*; ``look`` is called from time to time, and may raise."""
        self._wait(_DONE, number, look)

    def _await_go(self, number: int) -> int:
        """Wait, as the worker, for *go*; return the seed that came with it."""
        words = self._words
        while words[_GO] != number:
            pass
        return int(words[_SEED])

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


class BatchMailbox(_Page):
    """One end of the mailbox for batched calls.

    Args:
        arena: shared by judge and worker, at least BATCH_BYTES long.
        nap_s: sleep between two polls of the judge; 0 polls without a break.
    """

    def __init__(self, arena: HostArena, nap_s: float = 0.0) -> None:
        if arena.size_bytes < BATCH_BYTES:
            raise HarnessError("the arena is too small for the mailbox of batched calls")
        super().__init__(arena.flat().numpy()[:BATCH_BYTES].view(np.int64), nap_s)

    # --- the worker's end -----------------------------------------------------------------------

    def await_go(self, number: int) -> tuple[list[int], int]:
        """Say *ready* for a batch, wait for *go*, return the order of its calls and a seed.

        The seed is that of the first call; 0 where generators are left as they are.
        """
        words = self._words
        words[_READY] = number
        seed = self._await_go(number)
        count = int(words[_COUNT])
        order: list[int] = words[_ORDER_AT : _ORDER_AT + count].tolist()
        return order, seed

    def done(self, number: int, where: Sequence[int], width: int) -> None:
        """Say *done*, and where each tensor of each call lies.

        Args:
            number: of the batch.
            where: words, call by call: the address of each tensor, 0 for one without memory, then
                what word_of made of each other value. MAX_WORDS at most.
            width: words of one call.
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
        """Let a batch begin."""
        self._words[_GO] = number

    def where(self, count: int) -> np.ndarray:
        """Return words by call, as they are now: addresses of tensors, then other values.

        Args:
            count: calls of the batch.
        """
        words = self._words
        width = int(words[_WIDTH])
        if not 0 < width * count <= MAX_WORDS:
            return np.zeros((count, 0), dtype=np.int64)
        found: np.ndarray = words[_WHERE_AT : _WHERE_AT + count * width].copy()
        return found.reshape(count, width)

    def wait_ready(self, number: int, look: Callable[[], None]) -> None:
        """Wait for *ready*; ``look`` is called from time to time, and may raise."""
        self._wait(_READY, number, look)


def call_mailbox_bytes(into: int, out: int) -> int:
    """Return the size of an arena for the inputs and outputs of a call, given in bytes."""
    return _CALL_HEAD_BYTES + aligned(into) + aligned(out)


class CallMailbox(_Page):
    """One end of the mailbox for isolated calls.

    Args:
        arena: shared by judge and worker.
        into: bytes of a call's inputs.

    Attributes:
        inputs, outputs: the pages, uint8.
        inputs_at: offset of the inputs in the arena.
    """

    inputs_at = _CALL_HEAD_BYTES

    def __init__(self, arena: HostArena, into: int) -> None:
        if arena.size_bytes < call_mailbox_bytes(into, 0):
            raise HarnessError("the arena is too small for the mailbox of isolated calls")
        flat = arena.flat()
        super().__init__(flat[:_CALL_HEAD_BYTES].numpy().view(np.int64))
        self.inputs = flat[_CALL_HEAD_BYTES : _CALL_HEAD_BYTES + into]
        self.outputs = flat[_CALL_HEAD_BYTES + aligned(into) :]

    def await_go(self, number: int) -> int:
        """Wait, as the worker, for a call; return its seed, or END if no call follows."""
        return self._await_go(number)

    def done(self, number: int, where: Sequence[int] = ()) -> None:
        """Say, as the worker, that a call is done; its outputs lie in the mailbox or at addresses.

        Args:
            number: of the call.
            where: words as for a batch.
        """
        words = self._words
        if where:
            words[_CALL_WHERE_AT : _CALL_WHERE_AT + len(where)] = where
        words[_DONE] = number

    def where(self, count: int) -> np.ndarray:
        """Return the first words, as they are now."""
        found: np.ndarray = self._words[_CALL_WHERE_AT : _CALL_WHERE_AT + count].copy()
        return found

    def go(self, number: int, seed: int) -> None:
        """Let the worker make a call whose inputs lie in the mailbox; END: no call follows."""
        self._words[_SEED] = seed
        self._words[_GO] = number


class PackedOutputs:
    """Copies a call's tensors into the mailbox, one after the other.

    Tensors without memory are left out. Strides do not matter: in the mailbox a tensor is dense.

    Args:
        pages: the mailbox's outputs.
    """

    def __init__(self, pages: torch.Tensor) -> None:
        self._pages = pages
        self._forms: list[tuple[torch.dtype, torch.Size]] = []
        self._places: list[torch.Tensor] = []

    def put(self, tensors: Sequence[torch.Tensor | None]) -> None:
        """Copy tensors to the pages; on a GPU, in the order of their stream."""
        given = [t for t in tensors if t is not None and t.numel() and address(t)]
        forms = [(t.dtype, t.shape) for t in given]
        if forms != self._forms:
            specs = [TensorSpec.of(t) for t in given]
            self._places = [t for t in packed(self._pages, specs) if t is not None]
            self._forms = forms
        for place, tensor in zip(self._places, given, strict=True):
            place.copy_(tensor.detach(), non_blocking=True)


def packed_bytes(spec: TensorSpec | None) -> int:
    """Return how many bytes a tensor takes in the mailbox."""
    return 0 if spec is None else spec.dense_bytes


def packed(pages: torch.Tensor, specs: Sequence[TensorSpec | None]) -> list[torch.Tensor | None]:
    """Return the tensors on pages, which PackedOutputs has put there.

    Descriptions are claims of the worker. So the answer is None for a tensor that does not fit, as
    for one without memory.
    """
    found: list[torch.Tensor | None] = []
    at = 0
    for spec in specs:
        end = at + packed_bytes(spec)
        there = spec is not None and at < end <= len(pages)
        found.append(spec.dense(pages[at:end]) if spec and there else None)
        at = aligned(end)
    return found
