"""Finds the cause of a wrong answer by making the call again under other conditions.

Each sentence here is what an experiment showed. Where none shows anything, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from harness.judge.check.structure import structure
from harness.judge.reference import similarity

_PAUSE_S = 0.2
"""For work on another stream or in another thread to come to its end."""
_ALIKE, UNLIKE = 1e-3, 1e-2
"""Of a tensor's largest element: an answer that is nearer than the one is the same, and what is
farther than the other is another one."""

Again = Callable[[float, float], "tuple[Any, bool] | None"]
"""(pause before the call, pause after it; seconds) -> what came, and whether it was right. None
where the call could not be made again."""


class Experiments:
    """What can be tried with one wrong answer.

    Args:
        again: makes the same call once more.
        got: the wrong answer.
    """

    def __init__(self, again: Again, got: Any) -> None:
        self._again = again
        self._got = got

    def late(self, on_gpu: bool) -> str:
        """Return what waiting before or after the call changes; empty where neither helps.

        Args:
            on_gpu: whether there are streams that may not wait for each other.
        """
        if self._helps(0.0, _PAUSE_S):
            unwaited = ", and the current stream does not wait for it" if on_gpu else ""
            return (
                "it is right when the judge waits after the call: its work goes on after it has "
                f"returned{unwaited}"
            )
        if on_gpu and self._helps(_PAUSE_S, _PAUSE_S):
            return (
                "it is right when its inputs have been there for a while: it works on a stream "
                "that does not wait for the current one"
            )
        return ""

    def _helps(self, before_s: float, after_s: float) -> bool:
        """Return whether the call is right with these pauses, and only with them.

        Twice, so that a result that comes and goes is not taken for it.
        """
        for pauses, wanted in (
            ((before_s, after_s), True),
            ((0.0, 0.0), False),
            ((before_s, after_s), True),
        ):
            tried = self._again(*pauses)
            if tried is None or tried[1] is not wanted:
                return False
        return True

    def repeats_differently(self) -> bool:
        """Return whether two more calls give unlike results."""
        outputs = [tried[0] for tried in (self._again(0.0, 0.0), self._again(0.0, 0.0)) if tried]
        if len(outputs) < 2 or structure(*outputs) is not None:
            return False
        return not similarity.near(outputs[0], outputs[1], 1e-6)

    def answers_of_another_call(self, alternatives: Iterable[tuple[str, Any]]) -> str:
        """Return which of some other answers this one is; empty for none.

        Args:
            alternatives: what it means, and the answer; each UNLIKE the right one.
        """
        if self._got is None:
            return ""
        for meaning, other in alternatives:
            if structure(self._got, similarity.plain(other)) is None and similarity.near(
                self._got, other, _ALIKE
            ):
                return meaning
        return ""
