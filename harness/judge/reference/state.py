"""Gives the candidate the reference's state: matches names, and makes values worth testing with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.domain import Refusal, Status

_LARGE_ELEMENTS = 1 << 20
_LARGEST_INDEX = 1 << 24


class StateMismatch(Refusal):
    """The judge cannot match the candidate's parameters and buffers to the reference's.

    Attributes:
        lists: the state of both sides, line by line; empty where the description is malformed.
    """

    def __init__(self, message: str, lists: str = "") -> None:
        super().__init__(Status.STATE_MISMATCHED, " ".join(message.split()))
        self.lists = tuple(lists.splitlines())


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which reference tensor each of the candidate's tensors gets.

    Attributes:
        source: candidate name -> reference name, one entry per distinct candidate tensor.
        unheld: reference names that the candidate does not hold; constants only.
        notes: one line per name that needed more than its own name.
    """

    source: Mapping[str, str]
    unheld: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Entry:
    name: str
    names: list[str]
    kind: str
    shape: tuple[int, ...]
    dtype: str


def _entries(described: Sequence[Mapping[str, Any]]) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for item in described:
        name, tie = item["name"], item["tie"]
        if tie in entries:
            entries[tie].names.append(name)
        else:
            entries[name] = _Entry(name, [name], item["kind"], tuple(item["shape"]), item["dtype"])
    return list(entries.values())


def match(
    reference: Sequence[Mapping[str, Any]],
    candidate: Sequence[Mapping[str, Any]],
    constants: frozenset[str],
    *,
    training: bool,
) -> Match:
    """Match the candidate's state to the reference's.

    By name; then by a suffix that is unique on both sides (``bn.weight`` and ``weight``); then by
    position among tensors of equal kind, shape and dtype, where both sides have as many.

    Args:
        reference: description of the reference's state (see modules.describe_state).
        candidate: the same as the candidate's worker claims it.
        constants: reference names that need not be held: masks and counters never perturbed.
        training: gradients are compared; else a parameter may be held as a buffer. The other way
            round it never may: an optimiser would train a running statistic.

    Raises:
        StateMismatch: anything else; the message shows both lists side by side.
    """
    theirs = _entries(candidate)
    ours = _entries(reference)
    by_name = {n: e for e in ours for n in e.names}
    source: dict[str, str] = {}
    notes: list[str] = []
    used: set[str] = set()

    def take(entry: _Entry, origin: _Entry, how: str) -> None:
        if entry.shape != origin.shape:
            raise StateMismatch(
                f"{entry.name} is {list(entry.shape)}, the reference's {origin.name} is "
                f"{list(origin.shape)}",
                side_by_side(ours, theirs),
            )
        if not _kinds_agree(entry, origin, training):
            raise StateMismatch(
                f"{entry.name} is a {entry.kind}, the reference's {origin.name} is a {origin.kind}",
                side_by_side(ours, theirs),
            )
        source[entry.name] = origin.name
        used.add(origin.name)
        if how:
            notes.append(f"{entry.name} <- {origin.name} (by {how})")

    left: list[_Entry] = []
    for entry in theirs:
        origins = {by_name[n].name: by_name[n] for n in entry.names if n in by_name}
        if len(origins) > 1:
            raise StateMismatch(
                f"{' and '.join(entry.names)} are one tensor, but the reference holds "
                f"{' and '.join(origins)} apart",
                side_by_side(ours, theirs),
            )
        if origins:
            take(entry, next(iter(origins.values())), "")
        else:
            left.append(entry)
    free = [e for e in ours if e.name not in used]
    for entry in list(left):
        hits = [o for o in free if _suffix(entry, o, training)]
        rivals = [e for e in left if hits and _suffix(e, hits[0], training)]
        if len(hits) == 1 and len(rivals) == 1:
            take(entry, hits[0], "suffix")
            left.remove(entry)
            free.remove(hits[0])
    groups = {(e.kind, e.shape, e.dtype) for e in left}
    for group in sorted(groups, key=str):
        here = [e for e in left if (e.kind, e.shape, e.dtype) == group]
        there = [e for e in free if (e.kind, e.shape, e.dtype) == group]
        if len(here) == len(there):
            for entry, origin in zip(here, there, strict=False):
                take(entry, origin, "position")
                left.remove(entry)
                free.remove(origin)
    extra = [e for e in left if e.kind == "parameter"]
    unheld = [e.name for e in free]
    lost = [n for n in unheld if n not in constants]
    if extra or lost:
        what = []
        if lost:
            what.append(f"nothing of the candidate takes the reference's {', '.join(lost)}")
        if extra:
            names = ", ".join(e.name for e in extra)
            what.append(f"nothing of the reference gives the candidate's {names}")
        raise StateMismatch("; ".join(what), side_by_side(ours, theirs))
    notes += [f"{e.name}: a buffer of the candidate's own" for e in left]
    notes += [f"{n}: constant of the reference that the candidate does not hold" for n in unheld]
    return Match(source=source, unheld=tuple(unheld), notes=tuple(notes))


def _kinds_agree(entry: _Entry, origin: _Entry, training: bool) -> bool:
    held_as_buffer = entry.kind == "buffer" and origin.kind == "parameter"
    return entry.kind == origin.kind or (held_as_buffer and not training)


def _suffix(entry: _Entry, origin: _Entry, training: bool) -> bool:
    if entry.shape != origin.shape or not _kinds_agree(entry, origin, training):
        return False
    return any(
        a.rpartition(".")[2] == b.rpartition(".")[2] for a in entry.names for b in origin.names
    )


def side_by_side(ours: Sequence[_Entry], theirs: Sequence[_Entry]) -> str:
    """Return both lists as two columns of text."""

    def line(e: _Entry) -> str:
        return f"{' = '.join(e.names)} {e.kind} {list(e.shape)} {e.dtype}"

    left, right = [line(e) for e in ours], [line(e) for e in theirs]
    width = max([len(s) for s in left] + [len("reference")])
    rows = max(len(left), len(right))
    left += [""] * (rows - len(left))
    right += [""] * (rows - len(right))
    head = f"  {'reference'.ljust(width)} | candidate"
    body = [f"  {a.ljust(width)} | {b}" for a, b in zip(left[:40], right[:40], strict=False)]
    return "\n".join([head, *body])


def is_constant(name: str, tensor: torch.Tensor, kind: str) -> bool:
    """Return whether a state tensor is a constant by its looks, and is then never perturbed.

    Buffers of integers or booleans, with infinities, or with a pattern of zeros and ones: masks,
    index tables, counters. Parameters and other floating buffers are perturbed, and integers that
    are weights.
    """
    if _is_quantised(tensor):
        return False
    if kind == "parameter":
        return not (tensor.is_floating_point() or tensor.is_complex())
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    if not bool(torch.isfinite(tensor).all()):
        return True
    mixed = bool((tensor == 0).any()) and bool((tensor != 0).any())
    return mixed and tensor.numel() > 1


def _normal(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return normal numbers in a tensor's shape, on its device.

    Those of a large tensor on a GPU are drawn there: the CPU takes 2.4 s for 2**26 of them.
    """
    if value.device.type == "cpu" or value.numel() < _LARGE_ELEMENTS:
        return torch.randn(value.shape, generator=generator).to(value.device)
    seed = int(torch.randint(1 << 62, (1,), generator=generator))
    there = torch.Generator(device=value.device).manual_seed(seed)
    return torch.randn(value.shape, generator=there, device=value.device)


def _is_quantised(tensor: torch.Tensor) -> bool:
    """Return whether integers look like weights: bytes of many values, or packed words.

    An index or a counter stays below the size of what it counts. Packed words reach far beyond.
    """
    if tensor.numel() < 64 or tensor.dtype not in (
        torch.int8,
        torch.uint8,
        torch.int32,
        torch.int64,
    ):
        return False
    if tensor.element_size() == 1:
        return int(tensor.unique().numel()) >= 4
    return int(tensor.abs().flatten().median()) > _LARGEST_INDEX


def perturbed(
    state: Mapping[str, torch.Tensor],
    kinds: Mapping[str, str],
    generator: torch.Generator,
    boldness: int,
) -> dict[str, torch.Tensor]:
    """Return new values for a state, each in its domain.

    A freshly built normalisation has mean 0, variance 1, weight 1 and bias 0, where the identity
    passes. A tensor that was positive throughout stays so (it may be a variance) unless it is a
    parameter and boldness is 2; zero tensors get small normal values; all others are scaled and
    shifted relative to their own size. Quantised weights change places. Constants stay.

    Args:
        state: name -> tensor, constructed values, any device.
        kinds: name -> ``parameter`` or ``buffer``.
        generator: on the CPU; its draws are the secret.
        boldness: 2 parameters may change sign, 1 positive stays positive, 0 returns the state.
    """
    changed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach()
        if boldness == 0 or is_constant(name, value, kinds[name]):
            changed[name] = value.clone()
            continue
        real = value.abs() if value.is_complex() else value
        if not (value.is_floating_point() or value.is_complex()):
            # Values that occur, elsewhere: each is one that the reference can unpack.
            order = torch.randperm(value.numel(), generator=generator).to(value.device)
            changed[name] = value.flatten()[order].view(value.shape)
            continue
        noise = _normal(value, generator)
        if not bool((value != 0).any()):
            fresh = 0.5 * noise
        elif not value.is_complex() and bool((value > 0).all()):
            if kinds[name] == "parameter" and boldness == 2 and value.numel() > 1:
                fresh = real.double() * (1 + 0.6 * noise)
            else:
                fresh = real.double() * torch.exp(0.4 * noise)
        else:
            size = real.double().square().mean().sqrt()
            fresh = value * (1 + 0.2 * noise) + 0.1 * size * torch.roll(noise.flatten(), 1).view(
                noise.shape
            )
        changed[name] = fresh.to(value.dtype)
    return changed
