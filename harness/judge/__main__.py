"""A judge process: one JSON request on stdin, events and the verdict as JSON lines on stdout."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from harness.domain import Options, Pair, to_json
from harness.judge.judge import judged
from harness.judge.workers import prefork
from harness.machine import folders
from harness.pairs.settings import Settings

_WORKERS = 4 if (os.cpu_count() or 1) >= 8 else 2
"""A pair needs a worker each for the build, the candidate, the reference and torch.compile. On a
small machine memory is worth more than the seconds that the last two take to start."""
_HEARD = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGCHLD, signal.SIGUSR1}
"""No process can ignore the first two. The judge uses the others, or they do nothing by default."""
_FAULTS = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP,
    signal.SIGSYS, signal.SIGPIPE, signal.SIGXFSZ,
}  # fmt: skip
"""Signals that a process causes itself; Python ignores the last two anyway."""
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_SS_DISABLE = 2


class _SignalStack(ctypes.Structure):
    _fields_ = [
        ("ss_sp", ctypes.c_void_p),
        ("ss_flags", ctypes.c_int),
        ("ss_size", ctypes.c_size_t),
    ]


def ignore_signals(heard: set[signal.Signals]) -> None:
    """Ignore all signals but some: a solution under the judge's user id may send any.

    A fault of the judge itself still ends it: the kernel allows no other way.
    """
    for number in signal.valid_signals() - heard:
        # Mostly a handler that does nothing: compilers would inherit SIG_IGN, and SIGTERM would no
        # longer end them. For a fault a handler is no help: the fault would happen again.
        signal.signal(number, signal.SIG_IGN if number in _FAULTS else lambda *_: None)


def _close_doors() -> None:
    """Protect the judge from the solution and from a lost fleet.

    The judge ends with its parent, hides its memory from other processes of its user, adopts the
    processes that workers leave behind, and logs its stack when the fleet asks with SIGUSR1.
    """
    ignore_signals(_HEARD)
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    libc = ctypes.CDLL(None, use_errno=True)
    # faulthandler gives handlers a stack of 16 KiB. The frames of sixty signals at once overflow
    # it, and the kernel then ends the process. The process's own stack has room for them.
    libc.sigaltstack(ctypes.byref(_SignalStack(None, _SS_DISABLE, 0)), None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def share_what_is_made() -> None:
    """Let other users read the files that this process and its compilers make.

    If the judge is root, a solution runs as another user. With umask 077 it could not read the CPU
    runner's library that was just built for it.
    """
    if os.geteuid() == 0:
        os.umask(0o022)


def options_from(raw: dict[str, Any]) -> Options:
    """Return Options from the request's JSON; unknown fields are an error."""
    fields = dict(raw)
    for name in ("cache_dir", "log_dir"):
        if fields.get(name) is not None:
            fields[name] = Path(fields[name])
    for name in ("thread_orders", "baselines", "nvcc"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    return Options(**fields)


def main() -> None:
    """Judge the pair in the fleet's request."""
    prefork.prefork(_WORKERS)
    _close_doors()
    share_what_is_made()
    # A problem's prints must not reach the fleet's pipe: it gets a descriptor of its own.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()
    request = json.loads(sys.stdin.readline())
    folders.keep_temporary_in(Path(request["temporary"]))

    def emit(event: str, **fields: Any) -> None:
        with lock:
            events.write(json.dumps({"event": event, **fields}) + "\n")
            events.flush()

    def wait_for(what: str, need_bytes: int | None) -> int | None:
        emit("await", what=what, bytes=need_bytes)
        line = sys.stdin.readline()
        if not line:
            sys.exit(1)
        room: int | None = json.loads(line).get("bytes")
        return room

    raw = request["pair"]
    pair = Pair(
        name=raw["name"],
        problem=Path(raw["problem"]).resolve(),
        solution=Path(raw["solution"]).resolve(),
    )
    verdict = judged(
        pair,
        options_from(request["options"]),
        Settings.from_json(request["settings"]),
        Path(request["log"]),
        emit,
        wait_for,
    )
    prefork.end_waiting()
    emit("verdict", verdict=to_json(verdict))
    events.close()
    os._exit(0)


if __name__ == "__main__":
    main()
