"""Inputs of timed batches, which the judge writes while the candidate stands still.

A candidate that sees the inputs of a batch before *go* can compute ahead. So workers map the memory
of all inputs once, and the judge writes into it only after the candidate has been stopped. The
candidate is resumed together with *go*.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from harness import ipc
from harness.judge.check import trials
from harness.judge.reference.problem import InvalidReference, Problem
from harness.judge.reference.seeds import derived
from harness.judge.timing import independence
from harness.judge.timing.timed_worker import TimedWorker
from harness.usercode.modules import mapped, tensors_of

_DRAW_S = 0.06
"""Time for fresh draws per batch. Further inputs are made from them if it does not suffice."""
_FAST_DRAW_S = 0.03
_KEEP_BYTES = 1 << 28
"""Draws up to this size are kept; larger ones are drawn again when they are needed."""
_MIX_S = 0.004
"""Time for fresh draws of inputs with independent elements. Further inputs are mixed from them."""
_MIX_BYTES = 1 << 25
"""Larger inputs are not mixed: that takes several times as much memory, and time."""
_MIXED_LEAST = 32
"""Tensors of fewer elements are not mixed: they would not differ from call to call."""

Values = tuple[list[Any], list[torch.Tensor | None] | None]
"""Inputs of a call, and its output gradients where there are any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where the inputs and output gradients of one call lie.

    Attributes:
        places: tensors over the arena; none without an arena.
        nbytes: from the first byte to behind the last.
        described: ``table``, ``args`` and ``grads`` for a worker that maps the arena.
    """

    places: list[torch.Tensor]
    nbytes: int
    described: dict[str, Any]


class InputPool:
    """Distinct inputs for the calls of a batch, and the output gradients of gradient calls.

    Args:
        problem: draws inputs.
        grads: draws output gradients for a seed; None without gradients.
        seed: secret until the verdict is written.

    Attributes:
        count: number of slots.
        slot_bytes: bytes of one slot.
    """

    def __init__(
        self, problem: Problem, grads: Callable[[int], list[torch.Tensor | None]] | None, seed: int
    ) -> None:
        self._problem = problem
        self._draw_grads = grads
        self._seed = seed
        self._epoch = 0
        template = problem.inputs(derived(seed, "timed", 0, 0))
        small = sum(t.numel() * t.element_size() for t in tensors_of(template)) < _KEEP_BYTES
        self._template = template if small else [mapped(v, _form) for v in template]
        self._template_grads = [g if g is None else _form(g) for g in grads(0)] if grads else None
        self.slot_bytes = self.slot(None).nbytes
        del template
        began = time.perf_counter()
        self._base(0)
        self._wait()
        self._draw_s = max(time.perf_counter() - began, 1e-5)
        self._bases = 1
        self._mixable = (
            small
            and all(
                t.is_floating_point() and t.numel() >= _MIXED_LEAST
                for t in self._template_tensors()
            )
            and independence.independent(lambda: problem.inputs(derived(seed, "watched")))
        )
        self._arena: Any = None
        self._places: list[list[torch.Tensor]] = []
        self._kept: _Kept | None = None
        self._image: ipc.HostArena | None = None
        self.count = 0

    @property
    def draw_s(self) -> float:
        """Return the seconds of one draw."""
        return self._draw_s

    def slot(self, arena: ipc.Arena | None, at: int = 0) -> Slot:
        """Return one slot laid out in an arena as all slots are; without one, only its size."""
        placer = ipc.Placer(arena, at)
        args = placer.encode(self._template)
        grads = None if self._template_grads is None else placer.encode(self._template_grads)
        return Slot(
            places=placer.places,
            nbytes=placer.needed_bytes - at,
            described={"table": placer.table, "args": args, "grads": grads},
        )

    def _template_tensors(self) -> list[torch.Tensor]:
        return tensors_of(self._template) + tensors_of(self._template_grads)

    def place(self, count: int, timed_workers: list[TimedWorker]) -> None:
        """Allocate count slots and let every worker map them."""
        grads = self._template_grads
        needed = count * self.slot_bytes
        self.close(timed_workers)
        arena = self._new_arena(max(needed, 1 << 12))
        placer = ipc.Placer(arena)
        self._places, args, described = [], [], []
        for _ in range(count):
            before = len(placer.places)
            args.append(placer.encode(self._template))
            described.append(None if grads is None else placer.encode(grads))
            self._places.append(placer.places[before:])
        self._arena = arena
        self.count = count
        dense = all(0 not in t.stride() for t in self._template_tensors())
        if dense and placer.table and needed <= _KEEP_BYTES:
            self._kept = _Kept(placer.table, count, needed, self._problem.device)
        for timed_worker in timed_workers:
            timed_worker.stage(arena, placer.table, args, described)

    def _new_arena(self, size_bytes: int) -> Any:
        device = self._problem.device
        if device.type == "cuda":
            from harness.ipc import device_arena

            return device_arena.DeviceArena.create(size_bytes, str(device))
        return ipc.HostArena.create(size_bytes)

    def close(self, timed_workers: list[TimedWorker]) -> None:
        """Free the places, after the workers have unmapped them."""
        if self._arena is None:
            return
        for timed_worker in timed_workers:
            timed_worker.clear()
        self._places = []
        self._kept = None
        self._arena.close()
        self._arena = None

    def renew(self) -> None:
        """Draw new values for every place, if the judge has memory of its own to keep them.

        It is called before a worker is stopped, so that the worker does not wait for the draws.
        """
        self._epoch += 1
        if self._kept is not None:
            self._fill(self._kept)
            self._wait()

    def write(self) -> None:
        """Write the values of the present epoch into every place, perhaps for the second time.

        Values that are kept are copied; others are drawn, again if need be.
        """
        if self._kept is None:
            self._draw_into(self._places)
        else:
            if not self._kept.filled:
                self._fill(self._kept)
            self._kept.copy_to(self._arena.flat())
        self._wait()

    def _fill(self, kept: _Kept) -> None:
        draws = max(8, int(_MIX_S / self._draw_s))
        if self._mixable and self.count > draws and self.count * self.slot_bytes <= _MIX_BYTES:
            with self._problem.running():
                drawn = [flat(*self._base(which)) for which in range(draws)]
            kept.mix(drawn, derived(self._seed, "mixed", self._epoch))
        else:
            self._draw_into(kept.places)
        kept.filled = True

    def _draw_into(self, targets: list[list[torch.Tensor]]) -> None:
        bases = max(1, min(self.count, int(_DRAW_S / self._draw_s)))
        if self._draw_s < _FAST_DRAW_S and self.slot_bytes > _KEEP_BYTES:
            bases = self.count  # rolling and scaling gigabytes costs as much as drawing them
        drawn: dict[int, tuple[list[Any], list[torch.Tensor | None]]] = {}
        keep = bases * self.slot_bytes < _KEEP_BYTES
        # One message to the fleet, not two for each draw: each one wakes it.
        with torch.no_grad(), self._problem.running():
            for slot, places in enumerate(targets):
                which = slot % bases
                if which not in drawn:
                    if not keep:
                        drawn.clear()
                    drawn[which] = self._base(which)
                tensors = flat(*self._made(drawn[which], slot, bases))
                for place, tensor in zip(places, tensors, strict=True):
                    _write(place, tensor)
                del tensors
        self._bases = bases

    def values(self, slot: int) -> Values:
        """Return the inputs and output gradients of a slot once more, as private tensors."""
        if self._kept is not None:
            found = iter([_private(place) for place in self._kept.places[slot]])
            inputs = [mapped(v, lambda t: next(found)) for v in self._template]
            grads = [g if g is None else next(found) for g in self._template_grads or []]
        else:
            base = self._base(slot % self._bases)
            inputs, grads = self._made(base, slot, self._bases)
        return inputs, grads if self._draw_grads else None

    def fresh(self, number: int) -> tuple[torch.Tensor, Values]:
        """Draw values that are in no slot.

        Args:
            number: the same number gives the same values.

        Returns:
            The values as bytes of a slot on the host, and as tensors.
        """
        if self._image is None:
            self._image = ipc.HostArena.create(self.slot_bytes)
            self._image_places = self.slot(self._image).places
        drawn = self._drawn(derived(self._seed, "alone", number))
        with torch.no_grad():
            for place, tensor in zip(self._image_places, flat(*drawn), strict=True):
                _write(place, tensor)
        # get_inputs() may return the same memory each time, or twice in one call. If the reference
        # writes into its inputs, that must not change the inputs of other calls.
        inputs = [mapped(v, _private) for v in drawn[0]]
        grads = [g if g is None else _private(g) for g in drawn[1]]
        return self._image.flat()[: self.slot_bytes].clone(), (
            inputs,
            grads if self._draw_grads else None,
        )

    def places(self, slot: int) -> list[torch.Tensor]:
        """Return the memory of a slot's inputs and output gradients, with its present contents."""
        return self._places[slot]

    def _base(self, which: int) -> tuple[list[Any], list[torch.Tensor | None]]:
        return self._drawn(derived(self._seed, "timed", self._epoch, which))

    def _drawn(self, seed: int) -> tuple[list[Any], list[torch.Tensor | None]]:
        inputs = self._problem.inputs(seed)
        if [t.shape for t in tensors_of(inputs)] != [t.shape for t in tensors_of(self._template)]:
            inputs = self._template
            if any(t.is_meta for t in tensors_of(inputs)):
                raise InvalidReference(
                    f"{self._problem.path}: get_inputs() draws other shapes each time; "
                    "only one shape at a time can be timed"
                )
        # Only tensors can be written anew. Other arguments stay as they were staged.
        fresh = iter(tensors_of(inputs))
        inputs = [mapped(v, lambda t: next(fresh).to(t.dtype)) for v in self._template]
        return inputs, self._draw_grads(seed) if self._draw_grads else []

    def _made(
        self, base: tuple[list[Any], list[torch.Tensor | None]], slot: int, bases: int
    ) -> tuple[list[Any], list[torch.Tensor | None]]:
        """Return a slot's values: a draw as it is, or one rolled and scaled by secret amounts."""
        if slot < bases:
            return base
        secret = derived(self._seed, "made", self._epoch, slot)
        factor = 1 - (secret % 9973 + 1) / 1e5

        def other(t: torch.Tensor) -> torch.Tensor:
            return trials.rolled(t, 1 + secret % 65537, factor)

        inputs, grads = base
        return [mapped(v, other) for v in inputs], [g if g is None else other(g) for g in grads]

    def _wait(self) -> None:
        if self._problem.device.type == "cuda":
            torch.cuda.synchronize(self._problem.device)


class _Kept:
    """All values of the pool in memory of the judge's own, laid out as in the arena.

    Args:
        table: places by the arena's description, slot by slot, every slot alike.
        count: slots.
        nbytes: of all of them.
        device: where.

    Attributes:
        places: one tensor per tensor of a slot, by slot.
        filled: whether there are values.
    """

    def __init__(
        self, table: list[dict[str, Any]], count: int, nbytes: int, device: torch.device
    ) -> None:
        # Zeros: gaps between the tensors are copied too, and workers can read them.
        self._flat = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        each = len(table) // count
        self._columns = []
        for i, entry in enumerate(table[:each]):
            dtype = ipc.DTYPES[entry["dtype"]]
            step = table[each + i]["offset"] - entry["offset"] if count > 1 else 0
            self._columns.append(
                self._flat.view(dtype).as_strided(
                    (count, *entry["shape"]),
                    (step // dtype.itemsize, *entry["strides"]),
                    entry["offset"] // dtype.itemsize,
                )
            )
        self.places = [[column[slot] for column in self._columns] for slot in range(count)]
        self.filled = False

    def copy_to(self, arena: torch.Tensor) -> None:
        """Copy all values to where the workers read them."""
        arena[: len(self._flat)].copy_(self._flat)

    def mix(self, draws: list[list[torch.Tensor]], seed: int) -> None:
        """Fill every slot with mixtures of two draws.

        Each element is near that of one draw, on the way to the other's. So it stays within the
        interval that it is drawn from, and hardly any value occurs twice: an answer that was kept
        under a value is useless. Multiples or shifts of one draw would tell each other's outputs.

        Args:
            draws: several draws of the floating tensors of a slot.
            seed: of the choice of the two draws, and of either of them for each element.
        """
        device = self._flat.device
        generator = torch.Generator(device=device).manual_seed(seed)

        def chosen(below: int) -> torch.Tensor:
            return torch.randint(below, (len(self.places),), generator=generator, device=device)

        one = chosen(len(draws))
        other = (one + 1 + chosen(len(draws) - 1)) % len(draws)
        for i, column in enumerate(self._columns):
            drawn = torch.stack([tensors[i] for tensors in draws])
            wide = torch.promote_types(drawn.dtype, torch.float32)
            way = torch.rand(column.shape, generator=generator, device=device, dtype=wide)
            way = way / 8 + (way >= 0.5) * 0.875  # within a sixteenth of one end or the other
            column.copy_(torch.lerp(drawn[one].to(wide), drawn[other].to(wide), way))


def flat(inputs: list[Any], grads: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return all tensors of a slot, in the order of their places."""
    return tensors_of(inputs) + [g for g in grads if g is not None]


def _private(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy with the same strides."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    _write(copy, tensor)
    return copy


def _form(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor's shape, strides and dtype, without its memory."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def _write(place: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a value into its place; an expanded layout is written once."""
    for d, step in enumerate(place.stride()):
        if step == 0 and place.shape[d] > 1:
            place, value = place.narrow(d, 0, 1), value.narrow(d, 0, 1)
    place.copy_(value)
