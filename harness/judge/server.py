"""Forks judges from one process that has imported torch: ``python -m harness.judge.server FD``.

Importing torch and the judge takes about two seconds of processor time. A run over many pairs pays
that once: the fleet starts this server, and each judge is a fork of it. The server never reads a
request and never touches CUDA, so a fork of it holds no more than a fresh judge does: a judge gets
its pipes from the fleet and reads its own request.

The fleet talks to the server over a socket pair, one JSON object a message, one answer to each:

==============================================  ===============================================
``{"do": "fork"}``, with stdin, stdout, stderr  ``{"pid": P}``: a judge in a session of its own
``{"do": "state", "pid": P}``                   ``{"code": C, "status": S}`` as of waitid; C is 0
                                                while the judge runs
``{"do": "reap", "pid": P}``                    ``{}``, as soon as the judge has ended
==============================================  ===============================================

A judge that has ended stays a zombie until the fleet asks to reap it: until then its number and
that of its process group belong to nobody else. When the fleet closes the socket, or dies, the
server ends, and the kernel ends its judges.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch

from harness.judge.__main__ import ignore_signals
from harness.judge.__main__ import main as judge

_PR_SET_DUMPABLE = 4
_MESSAGE_BYTES = 4096
_FD_LIMIT = 4096
_LOOK_S = 1.0
"""How often the server looks whether the fleet still lives: a process that the user's program has
forked may hold the other end of the socket open."""
_LATE = ("torch._decomp", "torch._dynamo", "torch._refs", "torch.fx.experimental.symbolic_shapes")
"""What torch imports at the first call on meta tensors: a judge measures a problem's memory by one.
That takes another second."""
_HEARD = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGCHLD}
_FLAGS = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT


class Server:
    """Answers one fleet until it is gone."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._fleet = os.getppid()
        self._signals = {n: signal.getsignal(n) for n in signal.valid_signals() - _HEARD}
        ignore_signals(_HEARD)
        self._judges: set[int] = set()

    def serve(self) -> None:
        """Answer requests until the fleet closes the socket or dies."""
        self._channel.settimeout(_LOOK_S)
        while os.getppid() == self._fleet:
            try:
                text, fds = self._receive()
            except TimeoutError:
                continue
            if not text:
                return
            request = json.loads(text)
            answer = self._answer(request["do"], request.get("pid"), fds)
            self._channel.send(json.dumps(answer).encode())

    def _receive(self) -> tuple[bytes, list[int]]:
        room = socket.CMSG_SPACE(3 * array.array("i").itemsize)
        text, extra, _, _ = self._channel.recvmsg(_MESSAGE_BYTES, room)
        fds = array.array("i")
        for level, kind, data in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return text, list(fds)

    def _answer(self, do: str, pid: int | None, fds: list[int]) -> dict[str, Any]:
        if do == "fork":
            return {"pid": self._fork(fds)}
        assert pid in self._judges, f"{pid} is no judge of this server"
        if do == "state":
            found = os.waitid(os.P_PID, pid, _FLAGS)
            code, status = (found.si_code, found.si_status) if found else (0, 0)
            return {"code": code, "status": status}
        os.waitpid(pid, 0)
        self._judges.remove(pid)
        return {}

    def _fork(self, fds: list[int]) -> int:
        ready, not_yet = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_judge(fds)
        for fd in (*fds, not_yet):
            os.close(fd)
        # Until the judge has a session of its own, the fleet could not end its process group. The
        # pipe ends as soon as the judge has closed what it inherited, or has died.
        os.read(ready, 1)
        os.close(ready)
        self._judges.add(pid)
        return pid

    def _become_judge(self, fds: list[int]) -> NoReturn:
        """Do what a fresh judge does; of the server it keeps the standard streams alone."""
        code = 1
        try:
            os.setsid()
            for stream, fd in enumerate(fds):
                os.dup2(fd, stream)
            self._channel.detach()
            os.closerange(3, _FD_LIMIT)
            for number, handler in self._signals.items():
                signal.signal(number, handler)
            # A judge forks its workers before it hides its own memory: it reads theirs.
            _set_dumpable(True)
            judge()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:  # noqa: BLE001 - the edge of a process: as the interpreter does
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _set_dumpable(may_be_read: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, int(may_be_read), 0, 0, 0)


def _has_opened_a_gpu() -> bool:
    """Say whether this process holds a device file of the driver's."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the folder's own descriptor has gone
            if str(link.readlink()).startswith("/dev/nvidia"):
                return True
    return False


def main() -> None:
    """Serve the fleet at the other end of the socket whose number is the argument."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    # A solution that runs under our user id could write into every judge to come, or end them all.
    _set_dumpable(False)
    for name in _LATE:
        importlib.import_module(name)
    torch.manual_seed(0)  # this imports something, too; each judge seeds again
    if _has_opened_a_gpu():
        sys.exit("an import has opened a GPU, and CUDA does not survive a fork")
    server = Server(channel)
    channel.send(b"{}")
    server.serve()


if __name__ == "__main__":
    main()
