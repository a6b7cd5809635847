"""The tray: shared pages over which single calls get their inputs and give their outputs.

In a batch the inputs of all calls lie there at *go*. Here there is one call at a time: its inputs
reach the worker with the word that starts it, and the next ones follow when its outputs are the
judge's. On a CPU the module reads its inputs here, and the judge is told where the outputs lie. A
GPU's memory the judge cannot reach without taking turns on it: there the worker copies both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from harness import wire
from harness.domain import HarnessError

_GO, _DONE, _SEED = range(0, 24, 8)  # a cache line each
_WHERE_AT = 64
_HEAD_BYTES = 4096
_SPINS = 2000
END = -1


def size_bytes(into: int, out: int) -> int:
    """Return how large an arena must be for inputs and outputs of so many bytes."""
    return _HEAD_BYTES + wire.aligned(into) + wire.aligned(out)


class Tray:
    """One end.

    Args:
        arena: shared by judge and worker.
        into: bytes of a call's inputs.

    Attributes:
        inputs, outputs: the pages, uint8.
        inputs_at: where in the arena the inputs begin.
    """

    inputs_at = _HEAD_BYTES

    def __init__(self, arena: wire.HostArena, into: int) -> None:
        if arena.size_bytes < size_bytes(into, 0):
            raise HarnessError("the tray is too small")
        flat = arena.flat()
        self._words = flat[:_HEAD_BYTES].numpy().view(np.int64)
        self.inputs = flat[_HEAD_BYTES : _HEAD_BYTES + into]
        self.outputs = flat[_HEAD_BYTES + wire.aligned(into) :]

    def wait(self, number: int) -> int:
        """Wait, as the worker, for a call; return its seed, or END where there are no more."""
        words = self._words
        while words[_GO] != number:
            pass
        return int(words[_SEED])

    def done(self, number: int, where: Sequence[int] = ()) -> None:
        """Say, as the worker, that a call's outputs lie on the tray, or where they lie.

        Args:
            number: of the call.
            where: addresses, bell.MAX_TENSORS at most.
        """
        words = self._words
        if where:
            words[_WHERE_AT : _WHERE_AT + len(where)] = where
        words[_DONE] = number

    def where(self, count: int) -> np.ndarray:
        """Return so many addresses, as they were when this was called."""
        found: np.ndarray = self._words[_WHERE_AT : _WHERE_AT + count].copy()
        return found

    def go(self, number: int, seed: int) -> None:
        """Let the worker make a call whose inputs lie on the tray; END: there are no more."""
        self._words[_SEED] = seed
        self._words[_GO] = number

    def is_done(self, number: int) -> bool:
        """Return whether a call is said to be done."""
        return bool(self._words[_DONE] == number)

    def wait_done(self, number: int, look: Callable[[], None]) -> None:
        """Wait, as the judge, for a call's outputs; look is called now and then, and may raise."""
        words = self._words
        while True:
            for _ in range(_SPINS):
                if words[_DONE] == number:
                    return
            look()


class Outlay:
    """Where a call's tensors go on the tray: one behind the other, as far as they have memory.

    Without strides: tensors of the same shapes take as many bytes, whoever made them.

    Args:
        pages: the tray's outputs.
    """

    def __init__(self, pages: torch.Tensor) -> None:
        self._pages = pages
        self._forms: list[tuple[torch.dtype, torch.Size]] = []
        self._places: list[torch.Tensor] = []

    def put(self, tensors: Sequence[torch.Tensor | None]) -> None:
        """Copy tensors to the tray; on a GPU, when their stream comes to it."""
        given = [t for t in tensors if t is not None and t.numel() and wire.address(t)]
        forms = [(t.dtype, t.shape) for t in given]
        if forms != self._forms:
            described = [wire.form(wire.described(t)) for t in given]
            self._places = [t for t in laid_out(self._pages, described) if t is not None]
            self._forms = forms
        for place, tensor in zip(self._places, given, strict=True):
            place.copy_(tensor.detach(), non_blocking=True)


def laid_out_bytes(form: wire.Form | None) -> int:
    """Return what a tensor of a form takes on the tray."""
    return 0 if form is None else form.elements * form.dtype.itemsize


def laid_out(pages: torch.Tensor, forms: Sequence[wire.Form | None]) -> list[torch.Tensor | None]:
    """Return the tensors of such forms that lie one behind the other on pages.

    None for what has no memory, and for what does not fit: forms are claims.
    """
    found: list[torch.Tensor | None] = []
    at = 0
    for form in forms:
        end = at + laid_out_bytes(form)
        there = form is not None and at < end <= len(pages)
        found.append(pages[at:end].view(form.dtype).view(form.shape) if form and there else None)
        at = wire.aligned(end)
    return found
