"""Is a value of the reference's form: nesting, shapes, dtypes, numbers, where it is not finite?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from harness.domain import Status
from harness.ipc import Untransferable
from harness.judge.check.precision import CHUNK
from harness.judge.reference import similarity
from harness.usercode.modules import tensors_of

_NUMBER_TOLERANCE = 1e-4
"""Of numbers that are no tensors, relative and absolute: that of float32 tensors."""
_SHOWN = 300
"""Characters of a value that a message shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """The first reason why a value is refused.

    Attributes:
        status: the verdict that follows from it.
        message: one sentence.
        what: name of the tensor.
        index: of the worst element, None where there is none.
        got, expected: the worst element's values.
        wrong: boolean tensor of elements beyond the tolerance, on the CPU where small enough.
        precision: effective precision seen, None where values were not compared.
    """

    status: Status
    message: str
    what: str = "output"
    index: tuple[int, ...] | None = None
    got: float | None = None
    expected: float | None = None
    wrong: torch.Tensor | None = None
    precision: str | None = None


def structure(got: Any, expected: Any, path: str = "output") -> Mismatch | None:
    """Return the first difference of nesting, shape, dtype or plain number, or None.

    Args:
        got: the candidate's value, as it came over the wire.
        expected: the reference's value.
        path: how messages name it.
    """
    found = _difference(got, expected)
    if found:
        status, said = found
        return Mismatch(status=status, message=f"{path} {said}", what=path)
    parts = (structure(g, e, f"{path}[{key}]") for key, g, e in _parts(got, expected))
    return next((mismatch for mismatch in parts if mismatch), None)


def _difference(got: Any, expected: Any) -> tuple[Status, str] | None:
    """Return how two values differ, apart from what they contain: the first rule that holds."""
    plain = next((kind for kind in (tuple, dict) if isinstance(expected, kind)), type(expected))
    tensors = isinstance(got, torch.Tensor), isinstance(expected, torch.Tensor)
    if isinstance(got, Untransferable):
        return Status.WRONG_STRUCTURE, f"is a {got.kind}, not a plain tensor"
    if (any(tensors) and not all(tensors)) or (not any(tensors) and type(got) is not plain):
        said = f"is {_kind(got)}, the reference returns {_kind(expected)}"
        return Status.WRONG_STRUCTURE, said
    if all(tensors):
        if got.shape != expected.shape:
            said = f"has shape {list(got.shape)}, expected {list(expected.shape)}"
            return Status.WRONG_SHAPE, said
        if got.dtype != expected.dtype:
            return Status.WRONG_DTYPE, f"is {got.dtype}, expected {expected.dtype}"
    elif isinstance(expected, dict):
        if set(got) != set(expected):
            keys, wanted = (_shown(sorted(map(str, value))) for value in (got, expected))
            return Status.WRONG_STRUCTURE, f"has keys {keys}, the reference's are {wanted}"
    elif isinstance(expected, (list, tuple)):
        if len(got) != len(expected):
            said = f"has {len(got)} entries, the reference's has {len(expected)}"
            return Status.WRONG_STRUCTURE, said
    elif not same_number(got, expected):
        return Status.WRONG_VALUES, f"is {_shown(got)}, expected {_shown(expected)}"
    return None


def _parts(got: Any, expected: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, got, expected) for what two values of one form contain."""
    if isinstance(expected, dict):
        yield from ((repr(k), got[k], expected[k]) for k in expected)
    elif isinstance(expected, (list, tuple)):
        yield from ((str(i), *pair) for i, pair in enumerate(zip(got, expected, strict=True)))


def same_bits(a: Any, b: Any) -> bool:
    """Return whether two values of one structure hold the same tensors, bit by bit."""
    pairs = zip(tensors_of(a), tensors_of(b), strict=True)
    return all(similarity.identical(x, y) for x, y in pairs)


def same_number(got: Any, expected: Any) -> bool:
    """Return whether two values are equal, floats up to the tolerance of float32 tensors."""
    if got == expected or (got != got and expected != expected):
        return True
    near = _NUMBER_TOLERANCE
    return isinstance(expected, float) and math.isclose(got, expected, rel_tol=near, abs_tol=near)


def _shown(value: Any) -> str:
    return repr(value)[:_SHOWN]


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a tensor"
    return "None" if value is None else f"a {type(value).__name__}"


def non_finite(
    got: torch.Tensor, reference: torch.Tensor, oracle: torch.Tensor, what: str
) -> Mismatch | None:
    """Return the first element that is NaN or infinite where it must not be, or the reverse."""
    shape, whole = tuple(got.shape), (got.reshape(-1), reference.reshape(-1), oracle.reshape(-1))
    for start in range(0, whole[0].numel(), CHUNK):
        parts = [t[start : start + CHUNK] for t in whole]
        if all(map(similarity.all_finite, parts)):
            continue
        mine, theirs, exact = map(_class_of, parts)
        bad = (theirs == exact) & (mine != theirs)
        if bool(bad.any()):
            at = int(bad.to(torch.uint8).argmax())
            index = unravel(start + at, shape)
            value, expected = float(parts[0][at]), float(parts[2][at])
            return Mismatch(
                status=Status.NOT_FINITE,
                message=f"{what}{list(index)} is {value}, expected {expected:.7g} "
                f"({int(bad.sum())} such elements)",
                what=what,
                index=index,
                got=value,
                expected=expected,
                wrong=bad.view(shape).cpu() if bad.numel() == math.prod(shape) else None,
            )
    return None


def _class_of(x: torch.Tensor) -> torch.Tensor:
    """Return 0 for finite, 1 for NaN, 2 for +inf, 3 for -inf, elementwise."""
    kind = torch.isnan(x).to(torch.uint8)
    return kind + 2 * torch.isposinf(x).to(torch.uint8) + 3 * torch.isneginf(x).to(torch.uint8)


def unravel(flat_index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of an element by its position in the flattened tensor."""
    index = []
    for extent in reversed(shape):
        index.append(flat_index % extent if extent else 0)
        flat_index //= max(extent, 1)
    return tuple(reversed(index))
