"""Requests of timing: staged inputs, batches and isolated calls under the judge's clock."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from harness import ipc
from harness.ipc import mailbox
from harness.usercode import modules
from harness.worker import calls, launches
from harness.worker.state import State


class TimedCalls:
    """Answers the requests of timed calls."""

    def __init__(self, state: State) -> None:
        self._state = state

    def do_stage(self, request: dict[str, Any]) -> None:
        """Map the inputs of timed batches; the judge writes them before each batch."""
        self._state.batch.clear()
        self._state.forget_calls()
        gc.freeze()
        decoder = ipc.Placed(self._state.arenas["stage"], request["table"])
        for args, grads in zip(request["args"], request["grads"], strict=True):
            _stage(self._state.batch, decoder, args, grads)

    def do_clear(self, request: dict[str, Any]) -> None:
        """Let go of all tensors of batches, and give cached memory back to the device."""
        self._state.batch.clear()
        self._state.forget_calls()
        if self._state.kind == "cuda":
            torch.cuda.empty_cache()

    def do_ready(self, request: dict[str, Any]) -> dict[str, Any]:
        """Leave NaN patterns in the memory of the next outputs, and describe that memory."""
        modules.set_mode(self._state.module, request["mode"])
        self._state.batch.outputs = []
        where = calls.poison(request["poison"], self._state.device)
        gc.collect()
        return {"allocations": self._allocations(where)}

    def do_go(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a batch between *go* and *done*; then describe its outputs."""
        page = mailbox.BatchMailbox(self._state.host_arena("mailbox"))
        number, module, batch = request["number"], self._state.module, self._state.batch
        with self._undisturbed():
            order, seed = page.await_go(number)
            claimed = batch.run(module, order, request["keep"], seed)
            page.done(number, batch.where[: mailbox.MAX_WORDS], batch.width)
        tensors = modules.module_state(module)
        moving = [tensors.get(name) for name in request["moving"]]
        forms = batch.forms(moving)
        tensors_of_call = len(forms["forms"])
        where = [w for i, w in enumerate(batch.where) if i % batch.width < tensors_of_call]
        allocations = self._allocations([*where, *forms["moving_at"]])
        return {"claimed_ms": claimed, "allocations": allocations, **forms}

    def do_alone(self, request: dict[str, Any]) -> None:
        """Make isolated calls, each when its inputs have arrived in the mailbox."""
        state, nbytes = self._state, request["bytes"]
        arena = state.host_arena("call mailbox")
        pages, place, batch = mailbox.CallMailbox(arena, nbytes), None, state.batch
        if state.kind == "cuda":
            place = state.arenas["stage"].flat()[:nbytes]
        else:
            batch = calls.Batch(state.device)
            decoder = ipc.Placed(arena, request["table"])
            _stage(batch, decoder, request["args"], request["grads"])
        with self._undisturbed():
            batch.run_alone(state.module, pages, place, request["number"], request["empty"])

    def do_profile(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure the kernels of one call with torch's profiler."""
        module, batch = self._state.module, self._state.batch
        modules.set_mode(module, request["mode"])
        batch.outputs = []
        with launches.durations(self._state.device) as spent:
            batch.run(module, request["order"], 0, 0)
        return {"device_ms": sum(spent) / len(request["order"])}

    def _allocations(self, where: Iterable[int]) -> list[dict[str, Any]]:
        """Describe the GPU memory around some addresses, which the judge maps."""
        if self._state.kind != "cuda":
            return []
        from harness.ipc import device_arena

        stage = self._state.arenas.get("stage")
        return device_arena.allocations(
            where, stage if isinstance(stage, device_arena.DeviceArena) else None
        )

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Prevent garbage collections and guarded allocations during timed calls."""
        runtime = self._state.runtime
        gc.disable()
        if runtime is not None:
            runtime.guard_allocations(False)
        try:
            yield
        finally:
            if runtime is not None:
                runtime.guard_allocations(True)
            gc.enable()


def _stage(batch: calls.Batch, decoder: ipc.Placed, args: Any, grads: Any) -> None:
    batch.stage(decoder.decode(args), None if grads is None else decoder.decode(grads))
