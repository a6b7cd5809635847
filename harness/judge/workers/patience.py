"""How long the judge waits for one reply, and for how much longer because of compilers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from harness import ipc
from harness.judge.workers.budget import Budget

_MOST_EVENTS = 1000
"""Of one request. Each extension takes two, and seconds."""


class Patience:
    """The time that one request may take.

    A worker says when it begins and ends to compile. That alone gives it no time: the time of
    compilers is that in which the judge sees one run below the worker.

    Args:
        limit_s: for the request, compilers aside.
        budget: of the pair.
        now: seconds that only grow.
    """

    def __init__(
        self, limit_s: float, budget: Budget, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s = limit_s
        self._budget = budget
        self._now = now
        self._began = now()
        self._build_limit_s = budget.build_left_s()
        self._compiled_s = self._compiled_before_s = 0.0
        self._seen_at: float | None = None
        self._counted = contextlib.ExitStack()
        self._claims = 0
        self._events = 0

    @property
    def claims_to_compile(self) -> bool:
        """Return whether the worker says that it compiles."""
        return self._claims > 0

    @property
    def has_compiler_time(self) -> bool:
        """Return whether the pair's compilers had any time left when the request began."""
        return self._build_limit_s > 0

    def hear(self, event: str) -> None:
        """Take note of what the worker says of its compiling.

        Raises:
            WireViolation: it says so too often, or ends what it has not begun.
        """
        self._events += 1
        self._claims += 1 if event == "compiling" else -1
        if self._claims < 0 or self._events > _MOST_EVENTS:
            raise ipc.WireViolation("it reports compilers that never began, or far too many")
        if not self._claims:
            self.see(compiler=False)
            if self._compiled_s > self._compiled_before_s:
                # What was built has yet to be loaded: the limit is for what follows.
                self._began, self._compiled_before_s = self._now(), self._compiled_s

    def see(self, *, compiler: bool) -> None:
        """Take note of whether a compiler runs below the worker."""
        counts = compiler and self._claims > 0
        if counts and self._seen_at is None:
            self._seen_at = self._now()
            self._counted.enter_context(self._budget.compiling())
        elif not counts and self._seen_at is not None:
            self._compiled_s += self._now() - self._seen_at
            self._seen_at = None
            self._counted.close()

    def close(self) -> None:
        """Let the pair's time run again."""
        self.see(compiler=False)

    def is_over(self) -> bool:
        """Return whether the request has taken too long."""
        spent_s = self._now() - self._began - (self._compiling_s() - self._compiled_before_s)
        out_of_time = spent_s > self._limit_s or self._budget.deadline_s() <= 0
        return out_of_time or self.compilers_took_too_long()

    def compilers_took_too_long(self) -> bool:
        """Return whether the pair's time for compilers ended during the request."""
        return self._compiling_s() > self._build_limit_s > 0

    def _compiling_s(self) -> float:
        since = 0.0 if self._seen_at is None else self._now() - self._seen_at
        return self._compiled_s + since

    def said(self) -> str:
        """Return in words why it is over."""
        if self.compilers_took_too_long():
            return f"was still compiling after {self._compiling_s():.0f} s"
        text = f"gave no answer within {self._limit_s:.0f} s"
        if self._claims:
            text += "; it said that it was compiling, and no compiler ran"
        return text
