"""A worker process: ``python -m harness.worker FD``. Loads one module and obeys the judge.

Reference worker and candidate worker run the same code and load different files. The worker holds
no expected value and no seed of the judge's, and decides nothing.

The requests are the ``do_`` methods of three classes, in the order of a pair's life:
``Preparation``, ``CheckedCalls``, ``TimedCalls``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from harness import ipc
from harness.domain import BuildFailed, Unsupported, UsageError
from harness.usercode import packages
from harness.worker import calls, sandbox
from harness.worker.checked import CheckedCalls
from harness.worker.model import LoadError
from harness.worker.prepare import Preparation
from harness.worker.state import State
from harness.worker.timed import TimedCalls

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
)


class Worker:
    """Answers the judge's requests, one at a time, until the wire closes.

    Attributes:
        handlers: what answers a request, by its name.
    """

    def __init__(self, channel: ipc.Channel) -> None:
        self._channel = channel
        self._send_lock = threading.Lock()
        self._state = State()
        parts = (
            Preparation(self._state, channel.take_fds, self._announce),
            CheckedCalls(self._state),
            TimedCalls(self._state),
        )
        self.handlers = {
            name.removeprefix("do_"): getattr(part, name)
            for part in parts
            for name in dir(part)
            if name.startswith("do_")
        }

    def serve(self) -> None:
        """Answer requests until the judge closes the wire."""
        while True:
            try:
                request = self._channel.receive()
            except ipc.WireClosed:
                return
            reply = {"id": request["id"], **self._answer(request)}
            with contextlib.suppress(AttributeError, ValueError, OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            self._send({**reply, **self._state.facts()})

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        state = self._state
        try:
            with state.stream(other=request.get("other_stream") is True):
                answer = self.handlers[request["do"]](request) or {}
            # The judge may write to the arenas again as soon as it has the answer.
            calls.synchronize(state.device)
            return {"ok": True, **answer}
        except BaseException as error:  # noqa: BLE001 - everything becomes an answer
            with contextlib.suppress(RuntimeError):  # the answer already carries an error
                calls.synchronize(state.device)
            traceback.print_exc()
            return {"ok": False, "error": describe(error)}

    def _announce(self, event: str, name: str) -> None:
        self._send({"event": event, "name": name})

    def _send(self, message: dict[str, Any]) -> None:
        with self._send_lock:
            descriptors = self._state.descriptors
            self._channel.send(message, descriptors)
            while descriptors:
                os.close(descriptors.pop())


def describe(error: BaseException) -> dict[str, Any]:
    """Return kind and message of what user code raised, as JSON."""
    text = f"{type(error).__name__}: {error}"
    lowered = text.lower()
    kind, message = "raised", text
    if missing := packages.missing(error):
        return {"kind": "unsupported", "message": missing}
    if isinstance(error, Unsupported):
        kind, message = "unsupported", str(error)
    elif isinstance(error, BuildFailed):
        kind, message = "build", str(error)
    elif isinstance(error, (LoadError, UsageError, SyntaxError)):
        kind, message = "load", str(error)
    elif isinstance(error, MemoryError) or any(sign in lowered for sign in _OUT_OF_MEMORY):
        kind = "oom"
    elif "illegal memory access" in lowered or "misaligned address" in lowered:
        kind = "memory"
    elif isinstance(error, (SystemExit, KeyboardInterrupt)):
        kind = "exit"
    frames = traceback.extract_tb(error.__traceback__)
    user = [f for f in frames if os.sep + "harness" + os.sep not in f.filename]
    place = f"{user[-1].filename}:{user[-1].lineno}" if user else ""
    return {"kind": kind, "message": message[:4000], "place": place}


def main() -> None:
    """Serve the judge on the inherited socket."""
    sandbox.die_with_parent()
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:  # inherited from the judge
            signal.signal(number, signal.SIG_DFL)
    Worker(ipc.Channel(socket.socket(fileno=int(sys.argv[1])))).serve()
    # At once: threads and exit handlers of a candidate do not run.
    os._exit(0)


if __name__ == "__main__":
    main()
