"""The user id and the environment of a process that executes a solution's code.

If the judge is root, a solution runs under a user id of its own, without capabilities. Three things
can prevent that:

- The worker needs files below a folder that only root may enter (an interpreter or a checkout in
  /root). A judge that may mount (CAP_SYS_ADMIN) shows the worker just these files, in a mount
  namespace of the worker's own. In a default container it may not mount. There the worker keeps
  the judge's user id and loses every capability. It must not keep the capability that reads all
  files, since a solution could then read any file. The judge changes no mode on the disk.
- The judge lacks a capability that a change of user takes. The worker keeps the judge's user id.
- The solution's own file is private. Its owner has to open it. The pair is SKIPPED and says so.

An ordinary user always gets a worker with the judge's user id. Such a worker cannot read the
judge's memory, but it can send signals and change files. The verdict has a note about it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.machine import left_files
from harness.machine.environment import PACKAGE, find_nvcc

_uids = itertools.count(1)

PACKAGE_ROOT = PACKAGE.parent

_NEEDED = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""Capabilities that a judge needs to run a worker as another user and to end it, by bit."""
_PRINT_UNREADABLE = (
    'for p; do test -r "$p" && { test ! -d "$p" || test -x "$p"; } || echo "$p"; done'
)
_PROBE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What keeps the processes of one solution away from the judge.

    Attributes:
        own_user: they get a user id of their own.
        expose: files and folders that they can reach only in a mount namespace of their own, with
            the closed folder above each.
        note: for the verdict, where they keep the judge's user id: why, and what helps.
        private: a file that they need and cannot read under any user id; mostly the solution's own.
    """

    own_user: bool
    expose: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    private: Path | None = None

    @property
    def opening(self) -> str:
        """The command that lets them read the private file."""
        closed = _closed_above(self.private) if self.private else None
        return f"chmod o+x {closed}" if closed else f"chmod o+r {self.private}"

    def uid(self) -> int | None:
        """Return a user id for one more process; None is the judge's."""
        return fresh_uid() if self.own_user else None

    def exposed_with(self, folder: Path) -> dict[str, str]:
        """Return what to expose to a process with this folder, which may lie in a closed one."""
        closed = _closed_above(folder) if self.own_user else None
        return {**self.expose, **({str(folder): str(closed)} if closed else {})}


def confinement(solution: Path, cache: Sequence[Path]) -> Confinement:
    """Return how the processes of a solution can be confined on this machine.

    Args:
        solution: its file.
        cache: files and folders of the cache that the solution's processes read.
    """
    if os.geteuid() != 0:
        return Confinement(own_user=False, note=_shared("this user may not change to another one"))
    needed = [*map(str, _read_by_every_worker()), *map(str, cache), str(solution)]
    lacking = _lacking_capabilities()
    if lacking:
        return _as_judge(
            needed,
            f"root lacks {', '.join(lacking)} here",
            "let this container have what a default one has",
        )
    spec: dict[str, Any] = {"uid": fresh_uid(), "expose": {}}
    exposed: dict[str, str] = {}
    try:
        unreadable = _unreadable_for(spec["uid"], needed)
        if not unreadable:
            return Confinement(own_user=True)
        spec["expose"] = exposed = _to_expose(solution, cache)
        if exposed:
            unreadable = _unreadable_within(spec, needed)
    except (OSError, subprocess.SubprocessError) as error:
        if not spec["expose"]:
            return _as_judge(needed, f"this system lets root become no other user: {error}", "")
        exposed = {}
    if unreadable == [str(solution)] and not solution.stat().st_mode & 0o004:
        return Confinement(own_user=True, expose=exposed, private=solution)
    if unreadable:
        first = Path(unreadable[0])
        closed = _closed_above(first) or first
        return _as_judge(
            needed,
            f"other users may not read {first}",
            f"keep Python, this checkout and the solution outside {closed}"
            if closed != first
            else f"let other users read it (chmod -R o+rX {first})",
        )
    return Confinement(own_user=True, expose=exposed)


def _as_judge(needed: Sequence[str], why: str, remedy: str) -> Confinement:
    """Return the confinement of workers that keep root's user id and lose all capabilities."""
    try:
        unreadable = _unreadable_within({}, needed)
    except (OSError, subprocess.SubprocessError):
        unreadable = []  # the worker itself will report its fault
    return Confinement(
        own_user=False,
        note=_shared(why, remedy),
        private=Path(unreadable[0]) if unreadable else None,
    )


def _shared(why: str, remedy: str = "") -> str:
    remedy = remedy or "run untrusted solutions as root of a container"
    return (
        "the candidate runs under the judge's user id, without any capability: it cannot read the "
        f"judge's memory, but it can send signals and change files ({why}; to give it a user id "
        f"of its own, {remedy})"
    )


def _lacking_capabilities() -> list[str]:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    held = int(found.group(1), 16) if found else ~0
    return [name for name, bit in _NEEDED.items() if not held >> bit & 1]


def _read_by_every_worker() -> Iterable[Path]:
    """Return one file each of the interpreter, its packages and the harness."""
    files = (sys.executable, os.__file__, np.__file__, torch.__file__, PACKAGE / "__init__.py")
    return (Path(str(file)).resolve() for file in files)


def _to_expose(solution: Path, cache: Sequence[Path]) -> dict[str, str]:
    """Return the needed paths below closed folders, with the closed folder above each.

    Of the checkout these are single folders, without problems and older reproducers.
    """
    wanted: list[Path | str] = [
        sys.prefix,
        sys.base_prefix,
        *(p for p in sys.path if p != str(PACKAGE_ROOT)),
    ]
    wanted += [PACKAGE, *cache, solution.parent, solution]
    wanted += [p for name in ("PATH", "LD_LIBRARY_PATH") for p in _listed(name)]
    nvcc = find_nvcc()
    wanted += [] if nvcc is None else [Path(nvcc).parents[1], Path(nvcc).resolve().parents[1]]
    paths = {Path(p).absolute() for p in wanted if str(p)}
    paths = {p for p in paths | {p.resolve() for p in paths} if p.exists()}
    closed = {p: folder for p in paths if (folder := _closed_above(p / "itself")) not in (None, p)}
    return {
        str(p): str(folder)
        for p, folder in sorted(closed.items())
        if not any(outer in p.parents for outer in closed)
    }


def _listed(name: str) -> list[str]:
    return os.environ.get(name, "").split(os.pathsep)


def _closed_above(path: Path) -> Path | None:
    """Return the topmost folder above a path that other users may not enter, or None."""
    return next((f for f in reversed(path.parents) if not f.stat().st_mode & 0o001), None)


def _unreadable_for(uid: int, paths: Sequence[str]) -> list[str]:
    """Return which paths a user cannot read. The kernel is asked: modes do not say everything."""
    return _said_unreadable(
        ["/bin/sh", "-c", _PRINT_UNREADABLE, "sh", *paths], user=uid, group=uid, extra_groups=[]
    )


def _unreadable_within(spec: dict[str, Any], paths: Sequence[str]) -> list[str]:
    """Return which paths a worker cannot read under this confinement."""
    words = [sys.executable, "-m", "harness.worker.sandbox", json.dumps(spec)]
    return _said_unreadable([*words, "/bin/sh", "-c", _PRINT_UNREADABLE, "sh", *paths])


def _said_unreadable(command: Sequence[str], **user: Any) -> list[str]:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PROBE_S,
        check=True,
        text=True,
        cwd="/",
        env=environment_in(Path(tempfile.gettempdir())),
        **user,
    )
    return str(done.stdout).splitlines()


def fresh_uid() -> int:
    """Return a user id that no account has; each call returns another one.

    A user namespace (rootless containers) has few ids. There all workers of a judge share one id,
    from a range that useradd leaves free.
    """
    users = left_files.users_of(os.getpid())
    wanted = users[next(_uids) % len(users)]
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
        ranges = [[int(n) for n in line.split()] for line in lines]
    except (OSError, ValueError):
        return wanted
    if any(first <= wanted < first + count for first, _, count in ranges):
        return wanted
    return 50_000 + os.getpid() % 10_000


def environment_in(folder: Path, compiled: Path | None = None) -> dict[str, str]:
    """Return the environment of a process that runs a solution, without anything personal.

    Args:
        folder: of the process; also its home.
        compiled: folder of torch.compile's cache; None is the folder above.
    """
    passed = {
        k: v
        for k, v in os.environ.items()
        if k.startswith(("CUDA", "LD_", "NVIDIA", "TORCH", "LANG", "LC_", "OMP_", "MKL_"))
        or k in ("PATH", "CC", "CXX", "TZ", "VIRTUAL_ENV", "MAX_JOBS", "CCACHE_DIR")
    }
    return passed | {
        "PYTHONPATH": str(PACKAGE_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "USER": "worker",
        "LOGNAME": "worker",
        # Each timed batch would stop and wake compiler processes that the worker has started.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str((compiled or folder) / "inductor"),
        "TRITON_CACHE_DIR": str((compiled or folder) / "triton"),
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
        "PYTHONUNBUFFERED": "1",
    }
