"""Runs one call of the solution under Nsight Compute, apart from the judge's clock.

The profiler and the solution in it have the rights of a worker (harness/worker/sandbox.py). Their
report is a claim. A failure becomes a note.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness import ipc
from harness.domain import KernelProfile
from harness.judge.timing import ncu_report
from harness.judge.workers.drain import Drain
from harness.judge.workers.identity import PACKAGE_ROOT, Confinement, environment_in
from harness.judge.workers.processes import kill_leftovers, live
from harness.machine import folders, left_files
from harness.machine.environment import find_ncu

MAX_LAUNCHES = 64
"""Each launch is run several times over: once for every group of counters that fits."""
_MAX_REPORT_BYTES = 8 << 20
_NO_PERMISSION = "ERR_NVGPUCTRPERM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The call to be profiled.

    Attributes:
        load: the fields of a load request that every process shares: see WorkerPool.load_fields.
        init: constructor arguments.
        state: the solution's parameters and buffers, by its names for them.
        args: arguments of the call, on any device.
        mode: forward, eval or train.
        rng: seed of all generators before the call.
    """

    load: Mapping[str, Any]
    init: Any
    state: Mapping[str, torch.Tensor]
    args: Any
    mode: str
    rng: int


def profile(
    make_call: Callable[[Path], Call],
    confinement: Confinement,
    *,
    log: Path,
    warm_l2: bool,
    timeout_s: float,
) -> tuple[tuple[KernelProfile, ...], str]:
    """Return the kernels of one call, and a note if there is one.

    Args:
        make_call: returns the call; its argument is the folder for extensions that the cache lacks.
        confinement: of the process that runs the solution, and of ncu around it.
        log: takes the output of ncu and the solution.
        warm_l2: leave the L2 cache as the call before left it.
        timeout_s: limit for all of it.

    Raises:
        OSError: there is no room on disk for the call's tensors.
    """
    ncu = find_ncu()
    if ncu is None:
        return (), _note(
            "ncu was not found",
            "install Nsight Compute (the CUDA toolkit brings it), or put its folder on PATH",
        )
    folder = folders.temporary("harness-ncu-")
    uid = confinement.uid()
    spec = {"uid": uid, "expose": confinement.exposed_with(folder)}
    try:
        _write(make_call(folder / "build"), folder, uid)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # the profiled process needs it: counting saves and restores
        report = folder / "report.csv"
        code = _run(command(ncu, folder, report, spec, warm_l2), folder, uid, log, timeout_s)
        return judged(code, _text_of(report), timeout_s)
    finally:
        left_files.remove_tree(folder)


def command(
    ncu: str, folder: Path, report: Path, spec: Mapping[str, Any], warm_l2: bool
) -> list[str]:
    """Return the command line: sandbox, ncu in it, the call in that.

    Clocks stay as they are: the harness changes no setting of a card. The section WarpStateStats
    names the stall reasons of this GPU; they differ between architectures.
    """
    options = {
        "--clock-control": "none",
        "--cache-control": "none" if warm_l2 else "all",
        "--profile-from-start": "off",
        "--target-processes": "application-only",
        "--launch-count": str(MAX_LAUNCHES),
        "--page": "raw",
        "--print-units": "base",
        "--section": "WarpStateStats",
        "--metrics": ",".join(ncu_report.METRICS),
        # A file, so that output of the solution does not mix with the table.
        "--log-file": str(report),
    }
    words = [sys.executable, "-m", "harness.worker.sandbox", json.dumps(spec), ncu, "--csv"]
    words += [word for option in options.items() for word in option]
    return [*words, sys.executable, "-m", "harness.worker.profile_call", str(folder)]


def judged(code: int | None, text: str, timeout_s: float) -> tuple[tuple[KernelProfile, ...], str]:
    """Return kernels and note of a finished run of ncu.

    Args:
        code: its exit code, None if it was ended because time was up.
        text: its report.
        timeout_s: its time limit.
    """
    if code is None:
        return (), _note(
            f"it did not end within {timeout_s:.0f} s",
            "a smaller size (--size small), or leave out --ncu",
        )
    said = ncu_report.complaints(text)
    if any(_NO_PERMISSION in line for line in said):
        return (), _note(
            f"the driver keeps its counters from ordinary users ({_NO_PERMISSION})",
            "load the nvidia module with NVreg_RestrictProfilingToAdminUsers=0. Root does not "
            "help: a solution never runs with its rights",
        )
    try:
        kernels = ncu_report.read_report(text)
    except ncu_report.Unreadable as error:
        why = said[0] if said else f"its report cannot be read: {error}"
        return (), _note(f"{why} (exit code {code})", "the pair's log has what it printed")
    if code:
        return kernels, _note(
            f"it ended with exit code {code}, so kernels may be missing",
            "the pair's log has what it printed",
        )
    if len(kernels) >= MAX_LAUNCHES:
        return kernels, f"--ncu: the first {MAX_LAUNCHES} kernel launches of the call only"
    return kernels, ""


def _note(what: str, then: str) -> str:
    return f"--ncu: {what}. Next: {then}"


def _write(call: Call, folder: Path, uid: int | None) -> None:
    """Write request and tensors for harness/worker/profile_call.py."""
    values = {"init": call.init, "state": dict(call.state), "args": call.args}
    counted = ipc.Encoder(None)
    for value in values.values():
        counted.encode(value)
    size = max(counted.needed_bytes, mmap.PAGESIZE)
    arena = ipc.HostArena(_file_of(size, folder / "tensors"), size)
    try:
        encoder = ipc.Encoder(arena)
        request = {
            "load": {**call.load, "findings": "", "guarded": False, "compile": None},
            **{name: encoder.encode(value) for name, value in values.items()},
            "table": encoder.table,
            "arena_bytes": size,
            "mode": call.mode,
            "grads": call.mode == "train",
            "rng": call.rng,
        }
        encoder.finish()
    finally:
        arena.close()
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    if uid is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, uid, uid)


def _file_of(size_bytes: int, path: Path) -> int:
    """Return the descriptor of a new file whose room on disk is reserved.

    Without reserved room, writing through a mapping to a full disk would kill the judge.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _run(
    words: list[str], folder: Path, uid: int | None, log: Path, timeout_s: float
) -> int | None:
    """Run the profiler to its end; return its exit code, None if time was up."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment_in(folder) | {"LC_ALL": "C"},
        cwd=PACKAGE_ROOT,
        start_new_session=True,
    )
    live.add(process.pid)
    assert process.stdout is not None
    drain = Drain(process.stdout, log, "Nsight Compute")  # type: ignore[arg-type]
    drain.start()
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        live.discard(process.pid)
        kill_leftovers(uid)
        drain.join(2)


def _text_of(report: Path) -> str:
    """Return the report's text, empty if there is none.

    The solution could put anything in its place. So only a plain file is opened.
    """
    try:
        return left_files.head_of(report, _MAX_REPORT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
