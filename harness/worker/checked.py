"""Requests of correctness: one call whose outputs go to the judge."""

from __future__ import annotations

from typing import Any

import torch

from harness.usercode import modules
from harness.worker import calls, launches
from harness.worker.state import State

_LAG_CYCLES = 4_000_000
"""Some two milliseconds of a GPU's clock."""


class CheckedCalls:
    """Answers the requests of checked calls."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._output_bytes: list[int] = []
        self._input_bytes: list[int] = []

    def do_call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call the module once and return everything that the judge compares."""
        state = self._state
        sizes = self._output_bytes or self._input_bytes
        calls.poison([s for s in sizes if s <= request["poison_limit_bytes"]], state.device)
        if state.kind == "cuda":
            # The current stream is busy for a while: work on a stream that does not wait for it
            # then runs too early, and the answer is wrong.
            torch.cuda._sleep(_LAG_CYCLES)
        inputs, output_grads = self._arguments(request)
        previous = state.previous_output
        if state.runtime is not None:
            state.runtime.set_thread_order(request["order"], request["rng"])
        self._input_bytes = [modules.nbytes(t) for t in modules.tensors_of(inputs)]
        calls.pause(state.device, request["pause_before_s"])
        with (
            launches.counted(state.device, request["count_launches"]) as kernels,
            state.user_code(),
        ):
            output, gradients = modules.call(
                state.module, request["mode"], inputs, request["rng"], output_grads
            )
        # The worker does not wait here. Later work on the current stream reads the outputs, as in
        # a user's program.
        calls.pause(state.device, request["pause_after_s"])
        odd = calls.oddities(output, parameters=request["parameters"])
        self._output_bytes = [modules.nbytes(t) for t in modules.tensors_of(output)]
        state.previous_output = output if request["keep"] else None
        answer: dict[str, Any] = {
            "odd": odd[:10],
            "aliases": modules.aliases(output, inputs)[:100],
            "missing_grads": gradients.missing if gradients else "",
            "kernels": kernels,
        }
        values: dict[str, Any] = {"output": None if odd else output}
        if request["return_state"]:
            values["state"] = modules.module_state(state.module)
        if gradients is not None:
            values["input_grads"] = gradients.inputs
            values["state_grads"] = gradients.state
        if request["return_previous"] and previous is not None:
            values["previous"] = previous
        return state.encode(values, answer)

    def _arguments(self, request: dict[str, Any]) -> tuple[Any, list[torch.Tensor | None] | None]:
        """Return the inputs of a call and the gradients of its outputs."""
        state = self._state
        if request["untouched"]:
            inputs = state.inputs.current
        else:
            inputs = state.inputs.refresh(state.decode(request["args"], request["table"]))
        if request["grads"] is None:
            return inputs, None
        grads = state.decode(request["grads"], request["table"])
        return inputs, [g if g is None else g.to(state.device) for g in grads]

    def do_again(self, request: dict[str, Any]) -> dict[str, Any]:
        """Encode the last answer once more, into an arena that can hold it."""
        return self._state.encode_again()

    def do_inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the last call's arguments as they are now, so that the judge sees changes."""
        return self._state.encode({"inputs": self._state.inputs.current}, {})

    def do_limit_memory(self, request: dict[str, Any]) -> None:
        """Have torch refuse GPU memory beyond a limit, until the checked calls are over."""
        total = torch.cuda.get_device_properties(self._state.device).total_memory
        share = min(1.0, request["bytes"] / total)
        torch.cuda.set_per_process_memory_fraction(share, self._state.device)

    def do_finish(self, request: dict[str, Any]) -> None:
        """Free all inputs and outputs: the allocator then finds writes outside of them."""
        if self._state.kind == "cuda":  # timed batches keep many outputs
            torch.cuda.set_per_process_memory_fraction(1.0, self._state.device)
        self._state.forget_calls()
