"""The time of one pair over all its phases: how much is left, and which side used it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.domain import Refusal, Status

_GRACE_S = 2.0
"""The fleet acts so much later than the judge, which knows better what took the time."""
_NEXT = "Next: a smaller --size, or a longer --time-limit"


class OutOfTime(Refusal):
    """The pair's time is over. ``Budget.verdict`` says whether solution or problem is to blame."""

    def __init__(self) -> None:
        super().__init__(Status.TIMED_OUT, "no time was left")


class Budget:
    """One pair's time. It runs from now on, except while the pair waits or a compiler runs.

    Compilers have a limit of their own, over all builds of the pair: a public CUDA solution takes
    50 to 120 s to compile, and that is no fault.

    Args:
        limit_s: for all phases.
        build_limit_s: for all compilers.
        now: seconds that only grow.
    """

    def __init__(
        self,
        limit_s: float,
        build_limit_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit_s = limit_s
        self._build_limit_s = build_limit_s
        self._now = now
        self._began = now()
        self._paused_s = 0.0
        self._pauses = 0
        self._paused_at = 0.0
        self._compiled_s = 0.0
        self._candidate_s = 0.0
        self._asked = 0
        self._checks_began: tuple[float, float] | None = None
        self._over = False

    # --- what is left ---------------------------------------------------------------------------

    def spent_s(self) -> float:
        """Return how many seconds have been used."""
        until = self._paused_at if self._pauses else self._now()
        return until - self._began - self._paused_s

    def left_s(self) -> float:
        """Return how many seconds are left; below zero where the time is over."""
        return self.limit_s - self.spent_s()

    def deadline_s(self) -> float:
        """Return how many seconds the candidate may still work; endless after the checks."""
        return math.inf if self._over else self.left_s()

    def build_left_s(self) -> float:
        """Return how many seconds are left for compilers."""
        return max(0.0, self._build_limit_s - self._compiled_s)

    def fleet_s(self) -> float | None:
        """Return after how many seconds the fleet should end a reference; None after the checks."""
        return None if self._over else max(0.0, self.left_s()) + _GRACE_S

    # --- what counts -----------------------------------------------------------------------------

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Stop the time: the pair waits for others."""
        if not self._pauses:
            self._paused_at = self._now()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._paused_s += self._now() - self._paused_at

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Stop the time and count a compiler's instead."""
        began = self._now()
        try:
            with self.waiting():
                yield
        finally:
            self._compiled_s += self._now() - began

    @contextmanager
    def candidate(self) -> Iterator[None]:
        """Count the time as the candidate's work, too."""
        began = self.spent_s()
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1
            if not self._asked:
                self._candidate_s += self.spent_s() - began

    def begin_checks(self) -> None:
        """Begin to count the candidate's time apart from the reference's."""
        self._checks_began = self.spent_s(), self._candidate_s

    def end_checks(self) -> None:
        """End the limit on the candidate: from here on its speed is measured."""
        self._over = True

    def check(self) -> None:
        """Raise where no time is left.

        Raises:
            OutOfTime: no time is left.
        """
        if self.deadline_s() <= 0:
            raise OutOfTime

    def verdict(self, phase: str) -> tuple[Status, str]:
        """Return status and message for a pair whose time is over.

        The side that used more of the time since the checks began is to blame. Before the checks it
        is the solution: what else takes time there is the same for every pair.
        """
        candidate_s = self._candidate_s
        said = (
            f"during {phase}: the time for all phases of a pair is over ({self.limit_s:g} s); the "
            f"solution worked for {candidate_s:.1f} s of it"
        )
        if self._checks_began is None:
            return Status.TIMED_OUT, f"{said}. {_NEXT}"
        spent, before = self._checks_began
        candidates = candidate_s - before
        if candidates >= self.spent_s() - spent - candidates:
            return Status.TIMED_OUT, f"{said}. {_NEXT}"
        return (
            Status.INVALID_REFERENCE,
            f"{said}, and the reference and its checks took more. {_NEXT}",
        )
