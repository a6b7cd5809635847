"""Finds the cause of a wrong answer by making the call again under other conditions.

Each sentence here is what an experiment showed. If none shows anything, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from harness.judge.check.structure import structure
from harness.judge.policy import Policy
from harness.judge.reference import similarity

Again = Callable[[float, float], "tuple[Any, bool] | None"]
"""(pause before the call, pause after it; seconds) -> the answer, and whether it was right. None
if the call could not be made again."""


class Experiments:
    """What can be tried with one wrong answer.

    Args:
        again: makes the same call once more.
        got: the wrong answer.
        policy: thresholds.
    """

    def __init__(self, again: Again, got: Any, policy: Policy) -> None:
        self._again = again
        self._got = got
        self._policy = policy

    def late(self, on_gpu: bool) -> str:
        """Return what waiting before or after the call changes; empty if neither helps.

        Args:
            on_gpu: whether there are streams that may not wait for each other.
        """
        pause_s = self._policy.pause_s
        if self._helps(0.0, pause_s):
            unwaited = ", and the current stream does not wait for it" if on_gpu else ""
            return (
                "it is right when the judge waits after the call: its work goes on after it has "
                f"returned{unwaited}"
            )
        if on_gpu and self._helps(pause_s, pause_s):
            return (
                "it is right when its inputs have been there for a while: it works on a stream "
                "that does not wait for the current one"
            )
        return ""

    def _helps(self, before_s: float, after_s: float) -> bool:
        """Return whether the call is right with these pauses, and only with them.

        It is tried twice with them: a result may come and go by itself.
        """
        pauses = (before_s, after_s)
        for tried, wanted in ((pauses, True), ((0.0, 0.0), False), (pauses, True)):
            found = self._again(*tried)
            if found is None or found[1] is not wanted:
                return False
        return True

    def repeats_differently(self) -> bool:
        """Return whether two more calls give unlike results."""
        outputs = [tried[0] for tried in (self._again(0.0, 0.0), self._again(0.0, 0.0)) if tried]
        if len(outputs) < 2 or structure(*outputs) is not None:
            return False
        return not similarity.near(outputs[0], outputs[1], self._policy.repeat_tolerance)

    def answers_of_another_call(self, alternatives: Iterable[tuple[str, Any]]) -> str:
        """Return the meaning of the alternative that this answer is; empty if it is none.

        Args:
            alternatives: a meaning and an answer each; all unlike the right answer.
        """
        if self._got is None:
            return ""
        for meaning, other in alternatives:
            form = structure(self._got, similarity.plain(other))
            if form is None and similarity.near(self._got, other, self._policy.same_answer):
                return meaning
        return ""
