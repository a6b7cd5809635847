"""Calls the module: one checked call, or a batch for the judge's clock. Reports raw tensors only.

The candidate's code runs in the same process, so everything that this code reports is a claim.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from harness import ipc
from harness.ipc import mailbox
from harness.usercode import modules
from harness.usercode.modules import require_grad

_POISON_BYTE = 0xFF
"""All bits set is a NaN in float16, bfloat16, float32 and float64, and -1 in integers."""
_SMALL_BYTES = 1 << 20


def oddities(value: Any, path: str = "output", *, parameters: bool) -> list[str]:
    """Return the places in a value that are no plain tensors: subclasses, extra attributes.

    Args:
        value: what the module returned.
        path: its name in messages.
        parameters: whether torch.nn.Parameter is allowed, because the reference returns one, too.
    """
    if isinstance(value, torch.Tensor):
        plain = (torch.Tensor, torch.nn.Parameter) if parameters else (torch.Tensor,)
        if type(value) not in plain:
            return [f"{path} is a {type(value).__qualname__}, not a plain torch.Tensor"]
        if type(value) is torch.Tensor and value.__dict__:
            return [f"{path} carries Python attributes: {', '.join(sorted(value.__dict__))}"]
        return []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = [(repr(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    return [o for k, v in items for o in oddities(v, f"{path}[{k}]", parameters=parameters)]


def _same_form(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(_same_form(x, y) for x, y in zip(a, b, strict=False))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_same_form(a[k], b[k]) for k in a)
    nesting = (torch.Tensor, list, tuple, dict)
    return not isinstance(a, nesting) and not isinstance(b, nesting)


class Inputs:
    """Input buffers that are overwritten in place: a cache by pointer then gives a wrong answer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: Any = []

    @property
    def current(self) -> Any:
        """Return the buffers as the last call left them."""
        return self._buffers

    def refresh(self, value: Any) -> Any:
        """Return value with its tensors in buffers of this process, reused if they fit."""
        if not _same_form(self._buffers, value):
            self._buffers = []  # freed before the new ones are taken
            self._buffers = self.fresh(value)
            return self._buffers
        buffers = iter(modules.tensors_of(self._buffers))
        with torch.no_grad():
            self._buffers = modules.mapped(value, lambda new: self._copied(next(buffers), new))
        return self._buffers

    def fresh(self, value: Any) -> Any:
        """Return value with every tensor copied into new memory on this worker's device."""
        return modules.mapped(value, lambda tensor: own_copy(tensor, self._device))

    def _copied(self, buffer: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if 0 in buffer.stride() and buffer.numel() > 1:
            return own_copy(value, self._device)
        # The same tensor object as before: an answer kept by its identity must become wrong.
        return buffer.copy_(value)


def own_copy(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy in memory of this process, with the same strides; expanded stays expanded."""
    base = value
    for d, step in enumerate(value.stride()):
        if step == 0 and value.shape[d] > 1:
            base = base.narrow(d, 0, 1)
    buffer = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device=device)
    buffer.copy_(base)
    return buffer.expand_as(value) if base is not value else buffer


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pause(device: torch.device, pause_s: float) -> None:
    """Wait for all work on the device and then for some seconds; 0 s waits for nothing."""
    if pause_s:
        synchronize(device)
        time.sleep(pause_s)
        synchronize(device)


def poison(sizes_bytes: Sequence[int], device: torch.device) -> list[int]:
    """Leave NaN patterns in the memory that the allocator will return next; return its addresses.

    On a GPU, this takes blocks of the given sizes, fills them and gives them back to the caching
    allocator. On the CPU the allocator itself poisons (see cuda_on_cpu), and this does nothing.
    """
    if device.type == "cuda":
        held = poisoned_blocks(sizes_bytes, device)
        synchronize(device)
        return [block.data_ptr() for block in held]
    return []


def poisoned_blocks(sizes_bytes: Sequence[int], device: torch.device) -> list[torch.Tensor]:
    """Return blocks of memory filled with NaN patterns.

    One launch fills many small ones: a launch for each would take as long as a timed batch.
    """
    held: list[torch.Tensor] = []
    small: dict[int, list[torch.Tensor]] = {}
    for size in sizes_bytes:
        if size:
            held.append(torch.empty(size, dtype=torch.uint8, device=device))
            alike = small.setdefault(size, []) if size <= _SMALL_BYTES else []
            alike.append(held[-1])
            if len(alike) == 1:
                held[-1].fill_(_POISON_BYTE)
    for first, *others in small.values():
        if others:
            torch._foreach_copy_(others, [first] * len(others))
    return held


def _words(output: Any, gradients: modules.Gradients | None) -> list[int]:
    """Return the addresses of the tensors of a call, and its other values as words."""
    # The common case, one tensor, takes the shortest way: calls can be short.
    if gradients is None and type(output) is torch.Tensor and output.layout is torch.strided:
        return [output.data_ptr()]
    given = modules.given_tensors(output, gradients)[: mailbox.MAX_TENSORS]
    return [*map(ipc.address, given), *map(modules.word_of, modules.values_of(output))]


class Batch:
    """Staged inputs and the outputs of the last timed run over them.

    Attributes:
        outputs: what the module returned, and its gradients if there are any, by position in the
            order of the last run. None for calls whose outputs were not kept.
        where: addresses of the tensors of each call, in that order.
        width: addresses per call.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inputs: list[Any] = []
        self._grads: list[list[Any] | None] = []
        self.outputs: list[tuple[Any, modules.Gradients | None] | None] = []
        self.where: list[int] = []
        self.width = 0

    def stage(self, inputs: Any, output_grads: list[Any] | None) -> None:
        """Keep one more set of inputs for later runs."""
        self._inputs.append(inputs if output_grads is None else require_grad(inputs))
        self._grads.append(output_grads)

    def clear(self) -> None:
        """Forget all inputs and outputs."""
        self._inputs.clear()
        self._grads.clear()
        self.outputs = []

    def run(
        self, module: torch.nn.Module, order: Sequence[int], keep: int, seed: int
    ) -> float | None:
        """Call the module on the slots in order; return the milliseconds that CUDA events claim.

        Args:
            module: already in its mode.
            order: slots, in the judge's secret order.
            keep: outputs to keep, counted from the last.
            seed: of all generators before the first call; each further call gets the next number.
                0 if the reference draws nothing.
        """
        device = self._device
        events = None
        if device.type == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        started = time.perf_counter()
        kept: list[tuple[Any, modules.Gradients | None] | None] = []
        where: list[int] = []
        for position, slot in enumerate(order):
            grads = self._grads[slot]
            if seed:
                modules.seed_everything(seed + position)
            if grads is None:
                with torch.no_grad():
                    output = module(*self._inputs[slot])
                kept.append((output, None))
                where += _words(output, None)
            else:
                output = module(*self._inputs[slot])
                found = modules.differentiate(output, self._inputs[slot], module, grads)
                kept.append((modules.mapped(output, torch.Tensor.detach), found))
                where += _words(output, found)
                del found
            del output
            if position >= keep:
                kept[position - keep] = None  # with keep 0, this very one
        if events:
            events[1].record()
        synchronize(device)
        claimed = (time.perf_counter() - started) * 1e3
        self.outputs, self.where = kept, where
        self.width = len(where) // max(len(order), 1)
        return float(events[0].elapsed_time(events[1])) if events else claimed

    def run_alone(
        self,
        module: torch.nn.Module,
        pages: mailbox.CallMailbox,
        place: torch.Tensor | None,
        number: int,
        empty: bool = False,
    ) -> None:
        """Call the module on slot 0 until the judge ends it; inputs come over the mailbox.

        Args:
            module: already in its mode.
            pages: bring the inputs and take the outputs.
            place: the bytes of slot 0; None if the module reads them in the mailbox.
            number: of the first call.
            empty: later calls return the output of the first one. Their time is that of the mailbox
                alone.
        """
        inputs, grads, device = self._inputs[0], self._grads[0], self._device
        packed = None if place is None else mailbox.PackedOutputs(pages.outputs)
        output, found, first = None, None, number
        while (seed := pages.await_go(number)) != mailbox.END:
            if place is not None:
                place.copy_(pages.inputs, non_blocking=True)
            if seed:
                modules.seed_everything(seed)
            if empty and number > first:
                pass
            elif grads is None:
                with torch.no_grad():
                    output = module(*inputs)
            else:
                output = module(*inputs)
                found = modules.differentiate(output, inputs, module, grads)
                output = modules.mapped(output, torch.Tensor.detach)
            if packed is not None:
                packed.put(modules.given_tensors(output, found)[: mailbox.MAX_TENSORS])
                said = [modules.word_of(v) for v in modules.values_of(output)]
                synchronize(device)
                pages.done(number, said)
            else:
                pages.done(number, _words(output, found))
            number += 1

    def forms(self, moving: Sequence[torch.Tensor | None]) -> dict[str, Any]:
        """Describe the tensors of the last call, in the order of their addresses.

        The last ones are gradients of the module's state, with their names in ``state``.

        Args:
            moving: tensors of the module's state that its calls change: described, too.
        """
        output, gradients = self.outputs[-1] or (None, None)
        given = modules.given_tensors(output, gradients)
        return {
            "forms": [ipc.described(t) for t in given[: mailbox.MAX_TENSORS]],
            "state": list(gradients.state) if gradients else [],
            "moving": [ipc.described(t) for t in moving],
            "moving_at": [0 if t is None else ipc.address(t) for t in moving],
        }
