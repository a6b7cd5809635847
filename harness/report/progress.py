"""Shows the progress of a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from harness.domain import Status, Verdict
from harness.report.text import clean, seconds

_STYLES = {Status.PASSED: "green", Status.SKIPPED: "yellow"}


class Progress(Protocol):
    """Shows the events of a run, which come from several threads."""

    def __enter__(self) -> Progress:
        """Begin to show."""

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was."""

    def started(self, pair: str, device: str) -> None:
        """A pair begins."""

    def phase(self, pair: str, phase: str) -> None:
        """A pair enters a phase."""

    def finished(self, verdict: Verdict) -> None:
        """A pair has its verdict."""

    def reused(self, verdict: Verdict) -> None:
        """A pair's verdict was taken from the resume file."""


def open_progress(pairs: int, stream: TextIO | None = None, *, verbose: bool = False) -> Progress:
    """Return the progress display for a stream.

    Args:
        pairs: number of pairs.
        stream: for the output; None is stderr.
        verbose: plain lines show every phase, not only the coarse ones.
    """
    stream = stream or sys.stderr
    console = Console(file=stream, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return _LiveProgress(pairs, console)
    return _PlainProgress(pairs, stream, verbose=verbose)


class _Board:
    """The running pairs with start and phase, and the number of finished pairs."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs
        self.done = 0
        self.mutex = threading.Lock()
        self._running: dict[str, tuple[float, str]] = {}

    def start(self, pair: str) -> None:
        self._running[pair] = (time.monotonic(), "start")

    def enter(self, pair: str, phase: str) -> str:
        """Record a phase; returns the one before it."""
        began, before = self._running.get(pair, (time.monotonic(), ""))
        self._running[pair] = (began, phase)
        return before

    def finish(self, pair: str) -> float:
        """Count a pair as done; returns its seconds."""
        self.done += 1
        began, _ = self._running.pop(pair, (time.monotonic(), ""))
        return time.monotonic() - began

    def running(self) -> list[tuple[str, str, float]]:
        """Return pair, phase and seconds of each running pair."""
        now = time.monotonic()
        return [(pair, phase, now - began) for pair, (began, phase) in self._running.items()]


class _PlainProgress:
    """Prints one line per pair and coarse phase, for logs and pipes."""

    def __init__(self, pairs: int, stream: TextIO, *, verbose: bool) -> None:
        self._board = _Board(pairs)
        self._stream = stream
        self._verbose = verbose

    def __enter__(self) -> _PlainProgress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def started(self, pair: str, device: str) -> None:
        with self._board.mutex:
            self._board.start(pair)

    def phase(self, pair: str, phase: str) -> None:
        with self._board.mutex:
            before = self._board.enter(pair, phase)
            if before != phase if self._verbose else before.split(" ")[0] != phase.split(" ")[0]:
                self._say(f"{pair}: {phase}")

    def finished(self, verdict: Verdict) -> None:
        with self._board.mutex:
            spent = seconds(self._board.finish(verdict.pair))
            left = self._board.pairs - self._board.done
            self._say(
                f"[{self._board.done}/{self._board.pairs}] {verdict.pair}: "
                f"{verdict.status.value} after {spent}, {left} left"
            )

    def reused(self, verdict: Verdict) -> None:
        with self._board.mutex:
            self._board.finish(verdict.pair)
            self._say(
                f"[{self._board.done}/{self._board.pairs}] {verdict.pair}: "
                f"{verdict.status.value} from the resume file"
            )

    def _say(self, line: str) -> None:
        self._stream.write(clean(line) + "\n")
        self._stream.flush()


class _LiveProgress:
    """Redraws a line per running pair; lines of finished pairs scroll up above them."""

    def __init__(self, pairs: int, console: Console) -> None:
        self._board = _Board(pairs)
        self._console = console
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=8, transient=True
        )

    def __enter__(self) -> _LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def started(self, pair: str, device: str) -> None:
        with self._board.mutex:
            self._board.start(pair)

    def phase(self, pair: str, phase: str) -> None:
        with self._board.mutex:
            self._board.enter(pair, phase)

    def finished(self, verdict: Verdict) -> None:
        with self._board.mutex:
            spent = seconds(self._board.finish(verdict.pair))
        self._scroll(verdict, spent)

    def reused(self, verdict: Verdict) -> None:
        with self._board.mutex:
            self._board.finish(verdict.pair)
        self._scroll(verdict, "from the resume file")

    def _scroll(self, verdict: Verdict, after: str) -> None:
        line = Text.assemble(
            (f"{verdict.status.value:<9} ", _STYLES.get(verdict.status, "red")),
            f"{clean(verdict.pair)} ",
            (after, "dim"),
        )
        self._console.print(line)

    def _render(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        with self._board.mutex:
            running = self._board.running()
            left = self._board.pairs - self._board.done - len(running)
            done = f"{self._board.done} of {self._board.pairs} done, {left} waiting"
        for pair, phase, spent in running:
            grid.add_row(
                self._spinner, Text(clean(pair)), Text(clean(phase), "cyan"), Text(seconds(spent))
            )
        grid.add_row("", Text(done, "dim"), "", "")
        return grid
