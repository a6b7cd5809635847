"""Gives the candidate the reference's state: matches names, and draws values for the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
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
        unheld: constants of the reference that the candidate does not hold.
        notes: one line per tensor that was not matched by its name.
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
        candidate: the same, as the candidate's worker claims it.
        constants: reference names that the candidate may lack: masks and counters, which the judge
            never perturbs.
        training: the judge compares gradients. Without them the candidate may hold a parameter as
            a buffer. It may never hold a buffer as a parameter: an optimiser would train it.

    Raises:
        StateMismatch: a tensor has no match.
    """
    theirs = _entries(candidate)
    ours = _entries(reference)
    by_name = {n: e for e in ours for n in e.names}
    source: dict[str, str] = {}
    notes: list[str] = []
    left: list[_Entry] = []

    def mismatch(message: str) -> StateMismatch:
        return StateMismatch(message, side_by_side(ours, theirs))

    def take(entry: _Entry, origin: _Entry, how: str) -> None:
        reference_has = f"the reference's {origin.name} is"
        if entry.shape != origin.shape:
            raise mismatch(
                f"{entry.name} is {list(entry.shape)}, {reference_has} {list(origin.shape)}"
            )
        if not _kinds_agree(entry, origin, training):
            raise mismatch(f"{entry.name} is a {entry.kind}, {reference_has} a {origin.kind}")
        source[entry.name] = origin.name
        if how:
            notes.append(f"{entry.name} <- {origin.name} (by {how})")
            left.remove(entry)
            free.remove(origin)

    for entry in theirs:
        origins = {by_name[n].name: by_name[n] for n in entry.names if n in by_name}
        if len(origins) > 1:
            raise mismatch(
                f"{' and '.join(entry.names)} are one tensor, but the reference holds "
                f"{' and '.join(origins)} apart"
            )
        if origins:
            take(entry, next(iter(origins.values())), "")
        else:
            left.append(entry)
    taken = set(source.values())
    free = [e for e in ours if e.name not in taken]
    for entry in list(left):
        hits = [o for o in free if _suffix(entry, o, training)]
        rivals = [e for e in left if hits and _suffix(e, hits[0], training)]
        if len(hits) == 1 and len(rivals) == 1:
            take(entry, hits[0], "suffix")
    for group in sorted({_group(e) for e in left}, key=str):
        here = [e for e in left if _group(e) == group]
        there = [e for e in free if _group(e) == group]
        if len(here) == len(there):
            for entry, origin in zip(here, there, strict=True):
                take(entry, origin, "position")
    lost = [e.name for e in free if e.name not in constants]
    extra = [e.name for e in left if e.kind == "parameter"]
    what = [f"nothing of the candidate takes the reference's {', '.join(lost)}"] if lost else []
    if extra:
        what.append(f"nothing of the reference gives the candidate's {', '.join(extra)}")
    if what:
        raise mismatch("; ".join(what))
    unheld = tuple(e.name for e in free)
    notes += [f"{e.name}: a buffer of the candidate's own" for e in left]
    notes += [f"{n}: constant of the reference that the candidate does not hold" for n in unheld]
    return Match(source=source, unheld=unheld, notes=tuple(notes))


def _group(entry: _Entry) -> tuple[str, tuple[int, ...], str]:
    return entry.kind, entry.shape, entry.dtype


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


def is_constant(
    name: str, tensor: torch.Tensor, kind: str, drawn: AbstractSet[str] = frozenset()
) -> bool:
    """Return whether a state tensor looks like a constant, which the judge never perturbs.

    Constants are buffers of integers or booleans, with infinities, or with some zeros: masks, index
    tables, counters. The judge perturbs parameters, other floating buffers, and integers that are
    weights.

    Args:
        name: of the tensor.
        tensor: its constructed value.
        kind: ``parameter`` or ``buffer``.
        drawn: names of buffers that a construction under another seed fills with other values:
            those are data, zeros or not.
    """
    if _is_quantised(tensor):
        return False
    if kind == "parameter":
        return not (tensor.is_floating_point() or tensor.is_complex())
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    if not bool(torch.isfinite(tensor).all()):
        return True
    return name not in drawn and _is_mixed(tensor)


def _is_mixed(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds some zeros."""
    mixed = bool((tensor == 0).any()) and bool((tensor != 0).any())
    return mixed and tensor.numel() > 1


def in_doubt(tensors: Mapping[str, torch.Tensor], kinds: Mapping[str, str]) -> list[str]:
    """Return the names of floating buffers that are constants only if no seed changes them."""
    return [
        name
        for name, tensor in tensors.items()
        if kinds[name] == "buffer" and tensor.is_floating_point() and _is_mixed(tensor)
    ]


def _normal(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return normal numbers in a tensor's shape, on its device.

    For a large tensor on a GPU they are drawn there: the CPU takes 2.4 s for 2**26 numbers.
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
    drawn: AbstractSet[str] = frozenset(),
) -> dict[str, torch.Tensor]:
    """Return new values for a state, each in its domain.

    A freshly built normalisation has mean 0, variance 1, weight 1 and bias 0. There the identity
    would pass. A tensor of positive values stays positive, since it may be a variance, unless it is
    a parameter and boldness is 2. A tensor of zeros gets small normal values. All others are scaled
    and shifted relative to their own size. Quantised weights change places. Constants stay.

    Args:
        state: name -> tensor, constructed values, any device.
        kinds: name -> ``parameter`` or ``buffer``.
        generator: on the CPU; its draws are the secret.
        drawn: see is_constant.
        boldness: 2 parameters may change sign, 1 positive stays positive, 0 returns the state.
    """
    changed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach()
        if boldness == 0 or is_constant(name, value, kinds[name], drawn):
            changed[name] = value.clone()
            continue
        real = value.abs() if value.is_complex() else value
        if not (value.is_floating_point() or value.is_complex()):
            # The same values in another order: the reference can unpack each of them.
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
        if kinds[name] == "buffer" and _is_mixed(value):
            fresh = torch.where(value == 0, value, fresh)  # zeros may be a pattern
        changed[name] = fresh.to(value.dtype)
    return changed
