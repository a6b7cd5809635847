"""The run-time library in this process: settings, counters, findings, allocator."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

from harness.domain import Finding, HarnessError
from harness.worker.cuda_on_cpu.sites import resolve
from harness.worker.cuda_on_cpu.support import obtain

_ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}


class Runtime:
    """The CPU runner in one worker process. A process has only one: the library's state is global.

    Args:
        support_dir: folder of ``prepare``. Missing parts are built.
        answer_cuda: True on ``emulated``. On ``cpu`` a kernel launch is a finding and an error.
        findings_path: file to which a fault that ends the process appends one JSON line.
    """

    def __init__(
        self, support_dir: Path, *, answer_cuda: bool, findings_path: Path | None = None
    ) -> None:
        support = obtain(Path(support_dir))
        # Global, so that extensions find its symbols.
        self._library = ctypes.CDLL(str(support.runtime), mode=ctypes.RTLD_GLOBAL)
        self._library.emu_launches.restype = ctypes.c_uint64
        self._library.emu_launches_without_stream.restype = ctypes.c_uint64
        self._library.emu_take_findings.restype = ctypes.c_char_p
        self._library.emu_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._library.emu_install_crash_handler.argtypes = [ctypes.c_char_p]
        self._library.emu_configure(int(answer_cuda))
        path = str(findings_path).encode() if findings_path else None
        self._library.emu_install_crash_handler(path)

    @property
    def launches(self) -> int:
        """Return the number of kernel launches that completed in this process so far."""
        return int(self._library.emu_launches())

    @property
    def launches_without_stream(self) -> int:
        """Return how many of them named no stream, or the default stream."""
        return int(self._library.emu_launches_without_stream())

    def take_findings(self) -> list[Finding]:
        """Return the findings since the last call, one per defect, and forget them."""
        text = self._library.emu_take_findings()
        return [_finding(f) for f in json.loads(text.decode("utf-8", "replace"))]

    def set_thread_order(self, order: str, seed: int = 0) -> None:
        """Set the order in which blocks, and threads of a block, start.

        Args:
            order: ``forward``, ``reverse`` or ``shuffled``.
            seed: of the shuffle; each launch draws its own order from it.
        """
        if order not in _ORDERS:
            raise HarnessError(f"thread order {order!r}: not one of {sorted(_ORDERS)}")
        self._library.emu_set_order(_ORDERS[order], seed & (2**64 - 1))

    def guard_allocations(self, guarded: bool) -> None:
        """Give torch a CPU allocator with guard pages and NaN poison, or its own one again."""
        self._library.emu_guard_allocations(int(guarded))


def read_findings(path: Path) -> list[Finding]:
    """Return the findings that a dying process wrote to its ``findings_path``."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [_finding(json.loads(line)) for line in lines if line.strip()]


def _finding(raw: dict[str, Any]) -> Finding:
    file, line = str(raw.get("file", "")), int(raw.get("line", 0))
    site = raw.get("site")
    if site:
        file, line = resolve(str(site[0]), int(site[1])) or (file, line)
    detail = str(raw.get("detail", ""))
    other = raw.get("other")
    if other:
        found = resolve(str(other[0]), int(other[1]))
        if found:
            detail = f"the other access is at line {found[1]}" + (f"; {detail}" if detail else "")
    times = int(raw.get("times", 1))
    if times > 1:
        detail += ("; " if detail else "") + f"seen {times} times"
    block, thread = raw.get("block"), raw.get("thread")
    message = str(raw.get("message", ""))
    kernel = str(raw.get("kernel", ""))
    where = f"{kernel or 'host code'}"
    if line:
        where += f", line {line}"
    if block and thread:
        where += f", block {_index(block)}, thread {_index(thread)}"
    return Finding(
        kind=str(raw["kind"]),
        message=f"{where}: {message}",
        kernel=kernel,
        file=file,
        line=line,
        block=_triple(block),
        thread=_triple(thread),
        detail=detail,
    )


def _triple(values: list[int] | None) -> tuple[int, int, int] | None:
    return (int(values[0]), int(values[1]), int(values[2])) if values else None


def _index(values: list[int]) -> str:
    return "(" + ",".join(str(v) for v in values) + ")"
