"""Decides at which size a pair is judged: as asked, else the largest that fits into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from harness.domain import Options, Pair, Refusal, Status, UsageError
from harness.judge.policy import Policy
from harness.judge.reference import reduce
from harness.judge.reference.reduce import Footprint
from harness.pairs.settings import Settings, constants_of
from harness.usercode import source


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size that a pair is judged at.

    Attributes:
        name: ``full``, ``small``, a size that the problem names, or ``NAME=VALUE,...``: what
            ``--size`` takes.
        overrides: module-level constants to replace.
        halved: the constants as text where they were halved and not named; empty otherwise.
        need_bytes: estimate of the device memory that judge and workers take together; None where
            it was not needed or the problem does not run on meta tensors.
        note: for the verdict; empty where there is nothing to say.
    """

    name: str
    overrides: Mapping[str, Any]
    halved: str = ""
    need_bytes: int | None = None
    note: str = ""


def capacity_bytes(options: Options, device: torch.device) -> int | None:
    """Return what a pair may need before it has its device; None where sizes do not depend on it.

    A GPU is not asked: each judge that waits for it would hold half a gigabyte for its context. 39
    of them took 27 GiB of a card, and pairs were judged at smaller sizes (H200, 2026-11-30).
    """
    if options.memory_bytes is not None or device.type != "cuda":
        return options.memory_bytes
    return 1 << 62


def free_bytes(options: Options, device: torch.device) -> int | None:
    """Return the memory that is free on a device now; None where sizes do not depend on it."""
    if options.memory_bytes is not None or device.type != "cuda":
        return options.memory_bytes
    return torch.cuda.mem_get_info(device)[0]


def need_bytes(footprint: Footprint, policy: Policy) -> int:
    """Return what judge and workers together take of a device's memory at a footprint."""
    return int(
        policy.memory_fixed_bytes
        + policy.memory_states * footprint.state_bytes
        + policy.memory_inputs * footprint.input_bytes
        + policy.memory_outputs * footprint.output_bytes
        + policy.memory_calls * footprint.call_bytes
    )


class Sizes:
    """The sizes of one pair.

    Args:
        pair, options, settings, policy: what is judged and how.
        train: whether a mode computes gradients.
        at_most_bytes: a size that needs more was tried, and memory ran out; None for no such.
    """

    def __init__(
        self,
        pair: Pair,
        options: Options,
        settings: Settings,
        policy: Policy,
        *,
        train: bool,
        at_most_bytes: int | None = None,
    ) -> None:
        self._pair = pair
        self._options = options
        self._named = settings.sizes
        self._policy = policy
        self._train = train
        self._at_most = at_most_bytes
        self._needs: dict[str, int | None] = {}

    def choose(self, available_bytes: int | None) -> Size:
        """Return the size that the user asked for, else the largest that fits.

        Args:
            available_bytes: memory of the device; None where sizes do not depend on it.

        Raises:
            UsageError: the problem has no such size.
            Refusal: the problem has no such constants (SKIPPED).
        """
        if self._options.size is not None:
            return self._asked(self._options.size)
        if self._options.quick or available_bytes is None:
            on_gpu = self._options.device.startswith("cuda") and not self._options.quick
            return self._asked("full" if on_gpu else "small")
        full, fixed = self._need("full", {}), self._policy.memory_fixed_bytes
        room = available_bytes
        if self._at_most is not None:
            room = min(room, self._at_most)
        if full is None or full <= fixed + (room - fixed) * self._policy.memory_overdraft:
            return Size(name="full", overrides={}, need_bytes=full)
        return self._largest(room, available_bytes, full)

    def need_of(self, size: Size) -> int | None:
        """Return the estimate for a size, None where it does not run on meta tensors."""
        return self._need(size.name, size.overrides)

    def _asked(self, name: str) -> Size:
        if name == "full":
            return Size(name=name, overrides={})
        if name in self._named:
            return Size(name=name, overrides=dict(self._named[name]))
        constants = constants_of(name)
        if constants is not None:
            try:
                source.overridden(source.parse(self._pair.problem), constants)
            except UsageError as error:
                raise Refusal(Status.SKIPPED, f"--size {name}: {error}") from None
            return Size(name=name, overrides=constants)
        if name != "small":
            known = ", ".join(["full", "small", *self._named])
            raise UsageError(
                f"{self._pair.problem}: no size {name!r}. Next: one of {known}, or NAME=VALUE,..."
            )
        changes = reduce.reduced(self._pair.problem, self._policy.small_input_bytes)
        text = _text(changes)
        note = f"reduced size: {text}; paths for the full size did not run" if text else ""
        return Size(name=name, overrides=changes, halved=text, note=note)

    def _largest(self, room: int, available: int, full: int) -> Size:
        """Return the largest size that takes at most so much room."""
        fitting = {
            name: need
            for name, overrides in self._named.items()
            if (need := self._need(name, overrides)) is not None and need <= room
        }
        best = max(fitting, key=lambda name: fitting[name], default="")
        worth = self._policy.memory_fixed_bytes + self._policy.memory_named_share * (
            room - self._policy.memory_fixed_bytes
        )
        chosen = self._asked("small")
        if best:
            chosen = Size(name=best, overrides=dict(self._named[best]), need_bytes=fitting[best])
        if not best or fitting[best] < worth:
            chosen = self._halved(room) or chosen
        why = f"size {chosen.name}: full needs about {gib(full)}, {gib(available)} are free"
        if self._at_most is not None:
            why += "; memory ran out at a larger size"
        return Size(
            name=chosen.name,
            overrides=chosen.overrides,
            halved=chosen.halved,
            need_bytes=chosen.need_bytes,
            note=why,
        )

    def _halved(self, room: int) -> Size | None:
        def need(cost: Footprint) -> int:
            return need_bytes(cost, self._policy)

        changes = reduce.halved(
            self._pair.problem, need, lambda cost: need(cost) <= room, self._train
        )
        text = _text(changes)
        needed = self._need(text, changes)
        if not changes or needed is None or needed > room:
            return None
        return Size(name=text, overrides=changes, halved=text, need_bytes=needed)

    def _need(self, name: str, overrides: Mapping[str, Any]) -> int | None:
        if name not in self._needs:
            cost = reduce.footprint(self._pair.problem, overrides, self._train)
            self._needs[name] = None if cost is None else need_bytes(cost, self._policy)
        return self._needs[name]


def _text(changes: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value!r}".replace(" ", "") for name, value in changes.items())


def gib(nbytes: int) -> str:
    """Return bytes as text for a message."""
    return f"{nbytes / 2**30:.1f} GiB"
