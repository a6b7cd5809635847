"""One call of a solution for a profiler: ``python -m harness.worker.profile_call FOLDER``.

It loads the solution as a worker does, from what the judge left in the folder, calls it once to
warm up and a second time between cudaProfilerStart and cudaProfilerStop. No wire leads back: what
is wanted of this process is what the profiler around it writes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from harness import ipc
from harness.usercode import modules
from harness.worker import calls
from harness.worker.__main__ import Worker


class ProfiledCall(Worker):
    """A worker that nobody asks anything: it does one request and ends.

    Args:
        arena: holds the tensors of the request.
    """

    def __init__(self, arena: ipc.Arena) -> None:
        super().__init__(None)  # type: ignore[arg-type] # it never sends: see _send
        self._inbox = arena

    def _send(self, message: dict[str, Any]) -> None:
        """Say nothing: there is no judge at the other end."""

    def run(self, request: dict[str, Any]) -> None:
        """Load, warm up with one call, and make the call that is profiled.

        Args:
            request: see harness/judge/timing/ncu.py, which writes it.
        """
        table = request["table"]
        self.do_load({**request["load"], "init": request["init"], "table": table})
        with self._stream():
            self.do_state({"values": request["state"], "table": table})
            inputs = self._inputs.fresh(self._decode(request["args"], table))
            drawn: list[torch.Tensor | None] = []

            def draw(outputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
                drawn[:] = [torch.randn_like(o) if o.requires_grad else None for o in outputs]
                return drawn

            self._call(request, inputs, draw if request["grads"] else None)
            if self._kind == "cuda":
                torch.cuda.profiler.start()
            self._call(request, inputs, drawn if request["grads"] else None)
            if self._kind == "cuda":
                torch.cuda.profiler.stop()

    def _call(self, request: dict[str, Any], inputs: Any, grads: modules.OutputGrads) -> None:
        with self._user_code():
            _, gradients = modules.call(
                self._model(), request["mode"], inputs, request["rng"], grads
            )
        calls.synchronize(self._device)
        if gradients is not None and gradients.missing:
            print(f"gradients: {gradients.missing}", file=sys.stderr)


def main() -> None:
    """Do what the folder asks for."""
    folder = Path(sys.argv[1])
    os.chdir(folder)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    descriptor = os.open(folder / "tensors", os.O_RDWR | os.O_CLOEXEC)
    ProfiledCall(ipc.HostArena(descriptor, request["arena_bytes"])).run(request)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads and exit handlers of a candidate have no say in how this process ends.
    os._exit(0)


if __name__ == "__main__":
    main()
