"""Decides at which size a pair is judged: as asked, else the largest that fits into memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from harness.domain import Options, Pair, Refusal, Status, UsageError
from harness.judge.policy import Policy
from harness.judge.reference import reduce
from harness.judge.reference.reduce import Footprint
from harness.pairs.settings import Settings
from harness.pairs.sizes import overrides_of
from harness.usercode import source

_FLOPS_LIKE_A_BYTE = 50
"""How much work weighs as much as a byte where the judge looks for the constant to halve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size that a pair is judged at.

    Attributes:
        name: ``full``, ``small``, a size that the problem names, or ``NAME=VALUE,...``: what
            ``--size`` takes.
        overrides: module-level constants to replace.
        halved: the constants as text where the judge halved them; empty otherwise.
        need_bytes: estimate of the device memory that judge and workers take together; None where
            the choice did not need it or the problem does not run on meta tensors.
        note: for the verdict; empty where there is nothing to say.
    """

    name: str
    overrides: Mapping[str, Any]
    halved: str = ""
    need_bytes: int | None = None
    note: str = ""


def capacity_bytes(options: Options, device: torch.device) -> int | None:
    """Return what a pair may need before it has its device; None where sizes do not depend on it.

    The judge does not ask a GPU yet: that would create a context of half a gigabyte in each judge
    that waits. 39 of them took 27 GiB of a card, and pairs were judged at smaller sizes (H200,
    2026-11-30).
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
    """The sizes of one pair: the judge chooses one, and remembers whether its memory sufficed.

    Args:
        pair, options, settings, policy: what is judged and how.
        train: whether a mode computes gradients.
        at_most_bytes: memory ran out at a size that needs more; None where that has not happened.

    Attributes:
        chosen: the last size that was chosen.
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
        self.chosen: Size | None = None
        self._pair = pair
        self._options = options
        self._settings = settings
        self._policy = policy
        self._train = train
        self._at_most = at_most_bytes
        self._available: int | None = None
        self._ran_short = False
        self._needs: dict[str, int | None] = {}

    # --- which size -----------------------------------------------------------------------------

    def choose(self, available_bytes: int | None) -> Size:
        """Return the size that the user asked for, else the largest that fits.

        Args:
            available_bytes: memory of the device; None where sizes do not depend on it.

        Raises:
            UsageError: the problem has no such size.
            Refusal: the problem has no such constants (SKIPPED).
        """
        self._available = available_bytes
        self.chosen = self._choice(available_bytes)
        return self.chosen

    def _choice(self, available_bytes: int | None) -> Size:
        quick = self._options.quick
        if self._options.size is not None:
            return self._named(self._options.size)
        if quick or available_bytes is None:
            on_gpu = self._options.device.startswith("cuda")
            return self._named("full" if on_gpu and not quick else "small")
        full, fixed = self._need("full", {}), self._policy.memory_fixed_bytes
        room = available_bytes
        if self._at_most is not None:
            room = min(room, self._at_most)
        if full is None or full <= fixed + (room - fixed) * self._policy.memory_overdraft:
            return Size(name="full", overrides={}, need_bytes=full)
        note = f"full needs about {_gib(full)}, {_gib(available_bytes)} are free"
        if self._at_most is not None:
            note += "; memory ran out at a larger size"
        fitting = self._largest(room)
        return dataclasses.replace(fitting, note=f"size {fitting.name}: {note}")

    def _named(self, name: str) -> Size:
        overrides = overrides_of(name, self._settings)
        if overrides is None:
            return self._small()
        if name not in ("full", *self._settings.sizes):
            try:
                source.overridden(source.parse(self._pair.problem), overrides)
            except UsageError as error:
                raise Refusal(Status.SKIPPED, f"--size {name}: {error}") from None
        return Size(name=name, overrides=overrides)

    def _small(self) -> Size:
        """Return the small size of a problem that names none: its constants are halved."""
        policy = self._policy

        def held(cost: Footprint) -> int:
            return cost.state_bytes + cost.input_bytes + cost.output_bytes

        changes = reduce.halved(
            self._pair.problem,
            lambda cost: held(cost) + cost.flops / _FLOPS_LIKE_A_BYTE,
            lambda cost: held(cost) <= policy.small_bytes and cost.flops <= policy.small_flops,
        )
        text = _text(changes)
        note = f"reduced size: {text}; paths for the full size did not run" if text else ""
        return Size(name="small", overrides=changes, halved=text, note=note)

    def _largest(self, room: int) -> Size:
        """Return the largest size that takes at most so much room."""
        fitting = {
            name: need
            for name, overrides in self._settings.sizes.items()
            if (need := self._need(name, overrides)) is not None and need <= room
        }
        best = max(fitting, key=lambda name: fitting[name], default="")
        if not best:
            return self._halved(room) or self._named("small")
        fixed = self._policy.memory_fixed_bytes
        overrides = self._settings.sizes[best]
        named = Size(name=best, overrides=overrides, need_bytes=fitting[best])
        if fitting[best] < fixed + self._policy.memory_named_share * (room - fixed):
            return self._halved(room) or named
        return named

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

    # --- did its memory suffice -----------------------------------------------------------------

    def needed_bytes(self) -> int | None:
        """Return what the chosen size needs; None where it does not run on meta tensors."""
        return None if self.chosen is None else self._need(self.chosen.name, self.chosen.overrides)

    def had_room(self) -> bool:
        """Return whether the candidate had so much memory that running out is its own fault."""
        needed = self.needed_bytes()
        if self._available is None or needed is None:
            return True
        return needed <= self._policy.memory_room * self._available

    def short_of_memory(self, what: str) -> tuple[Status, str]:
        """Return the verdict where memory ran out and nobody is to blame."""
        self._ran_short = self._options.size is None
        needed, available = self.needed_bytes(), self._available
        figures = [f"at size {self.chosen.name if self.chosen else ''}"]
        figures += [f"about {_gib(needed)} are needed"] if needed is not None else []
        figures += [f"{_gib(available)} were free"] if available is not None else []
        return Status.SKIPPED, f"{what} ({', '.join(figures)}). Next: --size small"

    def can_shrink(self) -> bool:
        """Return whether memory ran out and a smaller size is left to try."""
        return self._ran_short and self.chosen is not None and self.chosen.name != "small"

    def _need(self, name: str, overrides: Mapping[str, Any]) -> int | None:
        if name not in self._needs:
            cost = reduce.footprint(self._pair.problem, overrides, self._train)
            self._needs[name] = None if cost is None else need_bytes(cost, self._policy)
        return self._needs[name]


def _text(changes: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value!r}".replace(" ", "") for name, value in changes.items())


def _gib(nbytes: int) -> str:
    """Return bytes as text for a message."""
    return f"{nbytes / 2**30:.1f} GiB"
