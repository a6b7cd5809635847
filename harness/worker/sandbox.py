"""Takes the judge's rights away from a worker, before any code of a solution runs.

As root, the worker changes to a user id of its own, so that it can neither read nor signal the
judge. Otherwise the judge has made itself undumpable, which closes /proc/PID/mem and ptrace to
its own user. What could not be had is returned as a note for the verdict.

``python -m harness.worker.sandbox UID COMMAND...`` becomes another program with a worker's rights.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> bool:
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return bool(_libc.prctl(option, *padded) == 0)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hide_memory() -> bool:
    """Make this process undumpable: its own user cannot ptrace it or read its memory."""
    return _prctl(_PR_SET_DUMPABLE, 0)


def confine(uid: int | None, *, hide: bool, max_data_bytes: int | None) -> list[str]:
    """Drop to uid where this process is root, limit resources, forbid new privileges.

    Args:
        uid: user id to change to; None stays.
        hide: make the process undumpable, for a worker whose memory others must not read.
        max_data_bytes: limit of private writable memory (RLIMIT_DATA); None sets none.

    Returns:
        What could not be had, one line each.
    """
    notes = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if max_data_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (max_data_bytes, max_data_bytes))
    if uid is not None and os.geteuid() == 0:
        keep_reading = not _world_readable(os.path.realpath(sys.executable))
        if keep_reading:
            # The interpreter lies where only root looks (a private home, say). Reading files is
            # then kept as a single capability; it opens no other process's memory.
            _prctl(_PR_SET_KEEPCAPS, 1)
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            notes.append(f"the candidate runs as root: no user id of its own ({error})")
        else:
            if keep_reading and not _keep_only_read_search():
                notes.append("the interpreter is readable by root only: lazy imports may fail")
    elif uid is not None:
        notes.append(
            "not root: the candidate shares the judge's user id (its memory is closed to it, "
            "signals are not)"
        )
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # A change of user id clears both of these.
    die_with_parent()
    _prctl(_PR_SET_DUMPABLE, 0 if hide else 1)
    return notes


def _world_readable(path: str) -> bool:
    """Return whether any user may reach path: every folder above it grants search to others."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).parents)


def _keep_only_read_search() -> bool:
    bit = 1 << _CAP_DAC_READ_SEARCH
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("<6I", bit, bit, bit, 0, 0, 0)
    if _libc.capset(header, data) != 0:
        return False
    return _prctl(_PR_CAP_AMBIENT, 2, _CAP_DAC_READ_SEARCH)


def main() -> None:
    """Give up rights and become the command that is named."""
    uid, *command = sys.argv[1:]
    for note in confine(int(uid), hide=False, max_data_bytes=None):
        print(note, file=sys.stderr)
    os.execv(command[0], command)  # noqa: S606 - the judge's own words, none of a solution's


if __name__ == "__main__":
    main()
