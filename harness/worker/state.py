"""The state of a worker between requests: its module, its arenas, its last answer."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch

from harness import ipc
from harness.domain import to_json
from harness.usercode import pretend_cuda
from harness.worker import calls
from harness.worker.build import Builder


class State:
    """Everything that requests share.

    Attributes:
        kind: ``cpu``, ``emulated`` or ``cuda``.
        device: where the module lies.
        arenas: the judge's shared memory by purpose: ``in``, ``out``, ``stage``, ``mailbox``,
            ``call mailbox``.
        loaded: the module, once it is loaded.
        builder: builds the module's extensions.
        runtime: the CPU runner, off the GPU.
        inputs: buffers of checked calls.
        batch: inputs and outputs of timed calls.
        previous_output: of the last checked call, if the judge asks for it later.
        descriptors: sent to the judge with the next message, and closed then.
    """

    def __init__(self) -> None:
        self.kind = "cpu"
        self.device = torch.device("cpu")
        self.arenas: dict[str, ipc.Arena] = {}
        self.loaded: torch.nn.Module | None = None
        self.builder: Builder | None = None
        self.runtime: Any = None
        self.inputs = calls.Inputs(self.device)
        self.batch = calls.Batch(self.device)
        self.previous_output: Any = None
        self.descriptors: list[int] = []
        self._last: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._other_stream: torch.cuda.Stream | None = None

    @property
    def module(self) -> torch.nn.Module:
        """Return the loaded module."""
        if self.loaded is None:
            raise RuntimeError("no module is loaded")
        return self.loaded

    def forget_calls(self) -> None:
        """Let go of the inputs and outputs of checked calls."""
        self.inputs = calls.Inputs(self.device)
        self.previous_output = self._last = None
        gc.collect()

    def host_arena(self, which: str) -> ipc.HostArena:
        """Return an arena that lies in host memory on every device."""
        arena = self.arenas[which]
        assert isinstance(arena, ipc.HostArena)
        return arena

    def decode(self, description: Any, table: Any) -> Any:
        """Return a value that the judge wrote to the inbox."""
        return ipc.Decoder(self.arenas.get("in"), table, private=False).decode(description)

    def encode(self, values: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        """Write values to the outbox; return the answer with their descriptions.

        If the outbox is too small, the answer says so. The judge then shares a larger one and asks
        again.
        """
        self._last = (values, answer)
        encoder = ipc.Encoder(self.arenas.get("out"), names=False)
        described = {name: encoder.encode(value) for name, value in values.items()}
        try:
            encoder.finish()
        except ipc.TooSmall as error:
            return {"too_small": error.needed_bytes, "tensors": len(encoder.table)}
        calls.synchronize(self.device)
        self._last = None
        return {**answer, "values": described, "table": encoder.table}

    def encode_again(self) -> dict[str, Any]:
        """Write the values of the last answer once more, to an outbox that can hold them."""
        if self._last is None:
            raise RuntimeError("nothing to encode again")
        return self.encode(*self._last)

    @contextlib.contextmanager
    def user_code(self) -> Iterator[None]:
        """Run a user's code: off the GPU, torch.cuda answers as on a GPU."""
        if self.kind == "cuda":
            yield
        else:
            with pretend_cuda.pretend(answer_cuda=self.kind == "emulated"):
                yield

    @contextlib.contextmanager
    def stream(self, *, other: bool = False) -> Iterator[None]:
        """Make the default stream current, as in a user's program, or another one.

        A solution may have left a stream of its own current after the call before.

        Args:
            other: a stream that does not wait for the default one, nor the default one for it.
        """
        if self.device.type != "cuda":
            yield
            return
        stream = torch.cuda.default_stream(self.device)
        if other:
            if self._other_stream is None:
                self._other_stream = torch.cuda.Stream(self.device)
            stream = self._other_stream
        with torch.cuda.stream(stream):
            yield

    def facts(self) -> dict[str, Any]:
        """Return what goes with every answer.

        These are failed builds (a solution may build in any call, and hide a failure), and the
        findings and launches of the CPU runner.
        """
        found: dict[str, Any] = {}
        builder, runtime = self.builder, self.runtime
        if builder is not None and (builder.failures or builder.unsupported):
            found["build_failures"] = builder.failures[:5]
            found["unsupported"] = builder.unsupported[:5]
        if runtime is not None:
            found["findings"] = [to_json(f) for f in runtime.take_findings()][:20]
            found["launches"] = runtime.launches
            found["launches_without_stream"] = runtime.launches_without_stream
        return found
