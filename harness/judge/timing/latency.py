"""Rounds of isolated calls of reference and candidate: their inputs come one at a time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import numpy as np

from harness.domain import CANDIDATE, REFERENCE
from harness.judge.timing import intervals
from harness.judge.timing.batches import BaselineFailed, Batches
from harness.judge.timing.clock import ClockPolicy
from harness.judge.timing.input_pool import InputPool
from harness.judge.timing.isolated_calls import CallInputs, out_bytes
from harness.judge.timing.overlap import Latency

_MORE = 4
"""A round has fewer than so many calls more than wanted: the candidate must not know which call is
the last, since the inputs of that one are checked."""
_FURTHER = 1.2
"""Rounds are evaluated again when there are so many times as many as before."""
_DRAW_S, _CALLS_S = 0.03, 0.1
"""Limits for the draws of a round, and for the calls of a role in it. There is at least one."""
_WAY = "way"

T = TypeVar("T")


class IsolatedRounds:
    """Measures the latency of one pair.

    Args:
        batches: of both roles; all have run over the inputs that are staged now.
        input_pool: draws further inputs.
        policy: thresholds.
        secret: source of the order of roles, and of seeds.
        fail: called with a baseline that cannot be stopped meanwhile, and why.
        draws: whether the reference draws random numbers.
    """

    def __init__(
        self,
        batches: Batches,
        input_pool: InputPool,
        policy: ClockPolicy,
        secret: random.Random,
        fail: Callable[[str, str], None],
        *,
        draws: bool,
    ) -> None:
        self._batches = batches
        self._input_pool = input_pool
        self._policy = policy
        self._secret = secret
        self._fail = fail
        self._draws = draws
        self._used: list[CallInputs] = []
        self._drawn = 0
        self._wanted = 1

    def latency(
        self,
        figures_ms: Mapping[str, float],
        overhead_ms: float,
        tells: Callable[[Latency], bool],
    ) -> Latency:
        """Return the times of isolated calls.

        Args:
            figures_ms: of batched calls, by role.
            overhead_ms: of a batch.
            tells: whether times answer the question whether batched calls overlap. If not, more
                rounds are run where they are sharp.
        """
        policy, batches = self._policy, self._batches
        batches.alike = True  # caches count for more here than anywhere
        if self._fits_mailbox(figures_ms[REFERENCE]):
            most_ms = max(figures_ms.values())
            self._wanted = min(
                policy.isolated_calls,
                int(_DRAW_S / self._input_pool.draw_s),
                int(_CALLS_S * 1e3 / most_ms),
            )
            latency = self._isolated(tells)
        else:
            *_, times = self._rounds(policy.latency_batches, policy.latency_s, self._of_batches)
            latency = Latency(
                times,
                overhead_ms,
                policy.overlap_part,
                policy.overlap_gpu_ms if batches.on_gpu else policy.overlap_ms,
                hides=batches.on_gpu,
                hidden_times=policy.hidden_times,
            )
        batches.alike = False
        return latency

    def _isolated(self, tells: Callable[[Latency], bool]) -> Latency:
        policy, enough = self._policy, self._policy.isolated_least
        rounds = self._rounds(policy.isolated_rounds, policy.isolated_s, self._isolated_round)
        for count, times in enumerate(rounds, 1):
            if count >= enough:
                if tells(self._isolated_latency(times)):
                    break
                enough = math.ceil(count * _FURTHER)
        return self._isolated_latency(times)

    def _isolated_latency(self, times: Mapping[str, list[float]]) -> Latency:
        policy, on_gpu = self._policy, self._batches.on_gpu
        return Latency(
            {role: tuple(times[role]) for role in (REFERENCE, CANDIDATE)},
            float(intervals.middle_mean(np.array(times[_WAY]))),
            policy.isolated_part,
            policy.isolated_gpu_ms if on_gpu else policy.isolated_ms,
            hides=on_gpu,
            hidden_times=policy.hidden_times,
            sharp=True,
        )

    def _fits_mailbox(self, reference_ms: float) -> bool:
        reference, candidate = (self._batches.timed_workers[r] for r in (REFERENCE, CANDIDATE))
        if reference.layout is None or candidate.layout is None:
            return False
        most = max(self._input_pool.slot_bytes, out_bytes(reference))
        return reference_ms < self._policy.isolated_below_ms and most <= self._policy.isolated_bytes

    def _rounds(
        self, most: int, seconds: float, run: Callable[[list[str]], dict[str, float]]
    ) -> Iterator[dict[str, list[float]]]:
        """Run rounds until the time is up, but at least a few; yield the times of all so far."""
        times: dict[str, list[float]] = {}
        until = time.monotonic() + seconds
        for number in range(most):
            if time.monotonic() > until and number >= self._policy.latency_least:
                break
            roles = [REFERENCE, CANDIDATE]
            self._secret.shuffle(roles)
            for role, ms in run(roles).items():
                times.setdefault(role, []).append(ms)
            self._batches.check_pending()
            yield times

    def _of_batches(self, roles: list[str]) -> dict[str, float]:
        """Run a batch of one call of each: over one of all staged inputs.

        Before the candidate's next batch all are others.
        """
        run = partial(self._batches.run, calls=1, logged=False)
        return {role: self._unless_baselines_fail(run, role) for role in roles}

    def _isolated_round(self, roles: list[str]) -> dict[str, float]:
        """Make some calls of each role, one after the other, whose inputs were nowhere before.

        Messages without calls, to the reference's worker, measure the overhead.
        """
        new = self._fresh_inputs(max(self._wanted, 1) + self._secret.randrange(_MORE))
        first = self._used or self._fresh_inputs(min(self._policy.isolated_first, len(new)))
        self._used = (new + first)[: len(first)]
        run = partial(
            self._batches.run_alone,
            given=first + new,
            first=len(first),
            keep=self._policy.isolated_checked,
        )
        taken = {role: self._unless_baselines_fail(run, role) for role in roles}
        taken[_WAY] = self._unless_baselines_fail(partial(run, empty=True), REFERENCE)
        return {role: float(intervals.middle_mean(np.array(ms))) for role, ms in taken.items()}

    def _fresh_inputs(self, count: int) -> list[CallInputs]:
        given = []
        for _ in range(count):
            self._drawn += 1
            image, values = self._input_pool.fresh(self._drawn)
            seed = 1 + self._secret.getrandbits(60) if self._draws else 0
            given.append(CallInputs(image=image, values=values, seed=seed))
        return given

    def _unless_baselines_fail(self, run: Callable[[str], T], role: str) -> T:
        while True:
            try:
                return run(role)
            except BaselineFailed as failed:
                self._fail(failed.role, str(failed))
