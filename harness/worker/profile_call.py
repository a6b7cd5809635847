"""One call of a solution for a profiler: ``python -m harness.worker.profile_call FOLDER``.

It loads the solution as a worker does, from the judge's files in the folder. It calls the solution
once to warm up, and a second time between cudaProfilerStart and cudaProfilerStop. It sends nothing
back: the profiler around it writes the result.
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
from harness.worker.prepare import Preparation
from harness.worker.state import State


def profiled_call(arena: ipc.Arena, request: dict[str, Any]) -> None:
    """Load the solution, warm up with one call, and make the call that is profiled.

    Args:
        arena: holds the tensors of the request.
        request: see harness/judge/timing/ncu.py, which writes it.
    """
    state, table = State(), request["table"]
    state.arenas["in"] = arena
    preparation = Preparation(state, list, lambda event, name: None)
    preparation.do_load({**request["load"], "init": request["init"], "table": table})
    drawn: list[torch.Tensor | None] = []

    def draw(outputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
        drawn[:] = [torch.randn_like(o) if o.requires_grad else None for o in outputs]
        return drawn

    def call(grads: modules.OutputGrads) -> None:
        with state.user_code():
            _, gradients = modules.call(
                state.module, request["mode"], inputs, request["rng"], grads
            )
        calls.synchronize(state.device)
        if gradients is not None and gradients.missing:
            print(f"gradients: {gradients.missing}", file=sys.stderr)

    with state.stream():
        preparation.do_state({"values": request["state"], "table": table})
        inputs = state.inputs.fresh(state.decode(request["args"], table))
        call(draw if request["grads"] else None)
        if state.kind == "cuda":
            torch.cuda.profiler.start()
        call(drawn if request["grads"] else None)
        if state.kind == "cuda":
            torch.cuda.profiler.stop()


def main() -> None:
    """Make the call of the folder's request."""
    folder = Path(sys.argv[1])
    os.chdir(folder)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    descriptor = os.open(folder / "tensors", os.O_RDWR | os.O_CLOEXEC)
    profiled_call(ipc.HostArena(descriptor, request["arena_bytes"]), request)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: threads and exit handlers of a candidate do not run.
    os._exit(0)


if __name__ == "__main__":
    main()
