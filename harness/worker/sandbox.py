"""Takes the judge's rights away from a worker, before any code of a solution runs.

As root, the worker changes to a user id of its own, so that it can neither read nor signal the
judge. If another user could not reach what the worker needs (an interpreter below a private home),
the worker first opens just these folders, in a mount namespace of its own. If neither is possible,
the worker keeps the judge's user id without any capability. The judge has made itself undumpable,
so that processes of its own user cannot use /proc/PID/mem or ptrace on it. The judge decides which
of these cases applies (harness/judge/workers/identity.py).

``python -m harness.worker.sandbox SPEC COMMAND...`` becomes another program with a worker's rights.
SPEC is JSON: ``{"uid": 1600000001, "expose": {"/root/.pyenv/versions/3.12": "/root"}}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 1, 1 << 2, 1 << 12, 1 << 14, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> bool:
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return bool(_libc.prctl(option, *padded) == 0)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def confine(
    *,
    untrusted: bool,
    uid: int | None = None,
    expose: Mapping[str, str] | None = None,
    max_data_bytes: int | None = None,
) -> None:
    """Take this process's rights away, limit its resources, forbid new privileges.

    Args:
        untrusted: the worker will run a solution, and loses every capability. A trusted worker
            becomes undumpable instead: other processes of its user must not read its memory.
        uid: user id to change to; None keeps the judge's.
        expose: files and folders that uid must reach, with the closed folder above each.
        max_data_bytes: limit of private writable memory (RLIMIT_DATA); None sets none.

    Raises:
        OSError: the system refuses a step. No code of a solution may run then.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if max_data_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (max_data_bytes, max_data_bytes))
    if expose:
        _open_closed_folders(expose)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if untrusted:
        _drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # A change of user id clears both settings, so they come last.
    die_with_parent()
    _prctl(_PR_SET_DUMPABLE, 1 if untrusted else 0)


def _open_closed_folders(expose: Mapping[str, str]) -> None:
    """Let any user reach some paths, in a mount namespace of this process's own.

    An empty folder is mounted over each closed one, and the paths are mounted in it at their
    places. The rest of a private home stays hidden. No file and no mode on disk changes.

    Raises:
        OSError: there is no right to mount (CAP_SYS_ADMIN), or a path is gone.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    held = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in expose]
    for folder in sorted(set(expose.values())):
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    umask = os.umask(0o022)
    for path, descriptor in held:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            Path(path).mkdir(parents=True, exist_ok=True)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        _mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC)
        os.close(descriptor)
    os.umask(umask)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    done = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _checked(done, f"mount on {target}")


def _drop_capabilities() -> None:
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, struct.pack("<6I", 0, 0, 0, 0, 0, 0)), "capset")


def _checked(code: int, what: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def main() -> None:
    """Give up rights and become the command that is named."""
    spec, *command = sys.argv[1:]
    confine(untrusted=True, **json.loads(spec))
    os.execv(command[0], command)  # noqa: S606 - the judge's own words, none of a solution's


if __name__ == "__main__":
    main()
