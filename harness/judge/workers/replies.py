"""What a worker may reply: the one schema of every reply, by the request that it answers.

A worker runs a user's code, which can write anything to the wire. The judge reads a reply here
before any other code of its own looks at it. What passes has the fields below and no others, and
each has the type, the size and the range that the schema says. Text of user code and of compilers
can be long for good reasons: it is cut. Anything else that does not fit is a ``WireViolation``.

A field that a worker is to send from now on is added here; a reply that has it is refused before.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from harness import ipc
from harness.domain import Finding
from harness.ipc.mailbox import MAX_TENSORS

_MOST_TENSORS = 100_000
_MOST_KERNELS = 10_000
_MOST_FILES = 20_000
_MOST_FINDINGS = 50
_MOST_ALLOCATIONS = 10_000
_MOST_INT = (1 << 63) - 1
_MOST_MS = 1e9
"""Twelve days: no call takes as long."""
_ALIGNED = 256
"""What the driver allocates begins at a multiple of this (CUDA C++ Programming Guide)."""
_MOST_BYTES = 1 << 46
_LAST_ADDRESS = 1 << 56
_HANDLE_BYTES = 64
_MESSAGE = 4000
_PATH = 4096
_NAME = 16_384
"""The mangled name of a kernel from nested templates takes kilobytes."""


class Kind(Protocol):
    """One kind of value."""

    def read(self, said: Any) -> Any:
        """Return what a worker said as the judge is to see it.

        Raises:
            WireViolation: it is not of this kind.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """An integer within a range."""

    least: int = 0
    most: int = _MOST_INT

    def read(self, said: Any) -> int:
        if type(said) is not int or not self.least <= said <= self.most:
            raise ipc.WireViolation(f"no integer from {self.least} to {self.most}")
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Milliseconds:
    """A time that a worker claims."""

    def read(self, said: Any) -> float:
        if type(said) not in (int, float) or not 0 <= said < _MOST_MS:  # not NaN either
            raise ipc.WireViolation("a time that is none")
        return float(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A truth value."""

    def read(self, said: Any) -> bool:
        if type(said) is not bool:
            raise ipc.WireViolation("no truth value")
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text. Half of a surrogate pair becomes a question mark: no file or terminal takes one.

    Attributes:
        most: characters.
        cut: what is longer is cut, not refused.
    """

    most: int
    cut: bool = False

    def read(self, said: Any) -> str:
        if type(said) is not str:
            raise ipc.WireViolation("no text")
        if len(said) > self.most and not self.cut:
            raise ipc.WireViolation(f"a text of {len(said)} characters, {self.most} at most")
        return said[: self.most].encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A list of values of one kind."""

    of: Kind
    most: int
    least: int = 0

    def read(self, said: Any) -> list[Any]:
        if not isinstance(said, list) or not self.least <= len(said) <= self.most:
            raise ipc.WireViolation(f"no list of {self.least} to {self.most} entries")
        return [self.of.read(one) for one in said]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Values of one kind by a text."""

    of: Kind
    most: int
    key: Text

    def read(self, said: Any) -> dict[str, Any]:
        if not isinstance(said, dict) or len(said) > self.most:
            raise ipc.WireViolation(f"no table of at most {self.most} entries")
        return {self.key.read(key): self.of.read(value) for key, value in said.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """An object with these fields, and no others.

    Attributes:
        equally_long: lists among the needed fields that have as many entries as each other.
    """

    needed: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    equally_long: tuple[str, ...] = ()

    def read(self, said: Any) -> dict[str, Any]:
        if not isinstance(said, dict):
            raise ipc.WireViolation("no object")
        known = {**self.needed, **self.optional}
        for name in self.needed:
            if name not in said:
                raise ipc.WireViolation(f"the field {name!r} is missing")
        found = {}
        for name, value in said.items():
            if name not in known:
                raise ipc.WireViolation(f"a field {name[:40]!r} that nothing asked for")
            try:
                found[name] = known[name].read(value)
            except ipc.WireViolation as error:
                raise ipc.WireViolation(f"in the field {name!r}: {error}") from None
        if len({len(found[name]) for name in self.equally_long}) > 1:
            raise ipc.WireViolation(f"{' and '.join(self.equally_long)} are not equally long")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Maybe:
    """A value of a kind, or null."""

    of: Kind

    def read(self, said: Any) -> Any:
        return None if said is None else self.of.read(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagOrText:
    """A truth value or a short text: the state of a numeric flag."""

    def read(self, said: Any) -> bool | str:
        return said if type(said) is bool else Text(most=80).read(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The description of a tensor at an address."""

    def read(self, said: Any) -> ipc.Form:
        form = ipc.form(said)
        if form is None:
            raise ipc.WireViolation("no description of a tensor")
        return form


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The description of a value or of its tensors, which ``ipc.Decoder`` reads."""

    of: type

    def read(self, said: Any) -> Any:
        if not isinstance(said, self.of):
            raise ipc.WireViolation("no description of a value")
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Where an allocation of the driver's begins."""

    def read(self, said: Any) -> int:
        base = Whole(most=_LAST_ADDRESS).read(said)
        if base % _ALIGNED:
            raise ipc.WireViolation("an allocation where the driver makes none")
        return base


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """The handle of an allocation, hexadecimal; empty for memory that the judge lent."""

    def read(self, said: Any) -> bytes:
        try:
            raw = bytes.fromhex(Text(most=2 * _HANDLE_BYTES).read(said))
        except ValueError:
            raise ipc.WireViolation("a handle that is not hexadecimal") from None
        if len(raw) not in (0, _HANDLE_BYTES):
            raise ipc.WireViolation(f"a handle of {len(raw)} bytes")
        return raw


_INDEX = Maybe(of=Rows(of=Whole(least=-_MOST_INT), least=3, most=3))
_FINDING_FIELDS: Mapping[str, Kind] = {
    "kind": Text(most=100, cut=True),
    "message": Text(most=2000, cut=True),
    "kernel": Text(most=200, cut=True),
    "file": Text(most=500, cut=True),
    "line": Whole(least=-_MOST_INT),
    "block": _INDEX,
    "thread": _INDEX,
    "detail": Text(most=2000, cut=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """A defect that the CPU runner saw.

    Attributes:
        more: fields that are read and left out.
    """

    more: Mapping[str, Kind] = field(default_factory=dict)

    def read(self, said: Any) -> Finding:
        fields = Fields(
            needed={"kind": _FINDING_FIELDS["kind"]}, optional={**_FINDING_FIELDS, **self.more}
        ).read(said)
        for index in ("block", "thread"):
            if fields.get(index) is not None:
                fields[index] = tuple(fields[index])
        for name in ("message", *self.more):
            fields.setdefault(name, "")
        return Finding(**{name: fields[name] for name in fields if name not in self.more})


_STATE = Fields(
    needed={
        "name": Text(most=_PATH),
        "tie": Text(most=_PATH),
        "kind": Text(most=40),
        "dtype": Text(most=40),
        "shape": Rows(of=Whole(), most=64),
    }
)
_ALLOCATIONS = Rows(
    of=Fields(
        needed={"base": Base(), "bytes": Whole(least=1, most=_MOST_BYTES), "handle": Handle()}
    ),
    most=_MOST_ALLOCATIONS,
)
_VALUES: Mapping[str, Kind] = {
    "values": Table(of=Described(of=dict), most=10, key=Text(most=40)),
    "table": Described(of=list),
}
_LOG = Text(most=_MESSAGE, cut=True)
_FACTS: Mapping[str, Kind] = {
    "findings": Rows(of=Defect(), most=_MOST_FINDINGS),
    "launches": Whole(),
    "launches_without_stream": Whole(),
    "build_failures": Rows(of=Text(most=2000, cut=True), most=5),
    "unsupported": Rows(of=Text(most=2000, cut=True), most=5),
}
"""May come with any reply."""

_NOTHING = Fields()
_REPLIES: Mapping[str, Fields] = {
    "load": Fields(
        needed={
            "state": Rows(of=_STATE, most=_MOST_TENSORS),
            "built": Rows(of=Text(most=200), most=1000),
            "failed": Table(of=Rows(of=_LOG, least=2, most=2), most=20, key=Text(most=200)),
            "files": Rows(of=Text(most=_PATH), most=_MOST_FILES),
            "ships_cuda": Flag(),
            "nvcc": Rows(of=Text(most=600, cut=True), most=1000),
            "numeric_flags": Table(of=FlagOrText(), most=40, key=Text(most=80)),
        }
    ),
    "call": Fields(
        needed={
            "odd": Rows(of=Text(most=300, cut=True), most=10),
            "aliases": Rows(of=Rows(of=Whole(), least=2, most=2), most=100),
            "missing_grads": Text(most=500, cut=True),
            "kernels": Table(of=Whole(), most=_MOST_KERNELS, key=Text(most=_NAME, cut=True)),
            **_VALUES,
        }
    ),
    "inputs": Fields(needed=_VALUES),
    "ready": Fields(needed={"allocations": _ALLOCATIONS}),
    "go": Fields(
        needed={
            "claimed_ms": Maybe(of=Milliseconds()),
            "allocations": _ALLOCATIONS,
            "forms": Rows(of=Maybe(of=Form()), most=MAX_TENSORS),
            "state": Rows(of=Text(most=_PATH), most=_MOST_TENSORS),
            "moving": Rows(of=Maybe(of=Form()), most=MAX_TENSORS),
            "moving_at": Rows(of=Whole(), most=MAX_TENSORS),
        },
        equally_long=("moving", "moving_at"),
    ),
    "profile": Fields(needed={"device_ms": Milliseconds()}),
}
"""By request. A request that is not here is answered by no more than that it is done."""
_TOO_SMALL = Fields(
    needed={"too_small": Whole(least=1), "tensors": Whole(most=_MOST_INT)}, optional=_FACTS
)
_GROWS = ("call", "inputs")
"""Their replies hold tensors, which may need a larger arena."""
_FAILED = Fields(
    needed={
        "error": Fields(
            needed={
                "kind": Text(most=40),
                "message": _LOG,
                "place": Text(most=1000, cut=True),
            }
        )
    },
    optional=_FACTS,
)
_EVENT = Fields(needed={"event": Text(most=40), "name": Text(most=1000, cut=True)})
EVENTS = ("compiling", "compiled")


def read(do: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a worker's reply with all that the schema grants it.

    Args:
        do: the request that it answers.
        message: the reply as it arrived. Its number has been looked at.

    Returns:
        The fields of the request's reply, or ``error``, or ``too_small`` and ``tensors``; and what
        may come with any reply.

    Raises:
        WireViolation: it is no such reply.
    """
    said = {name: value for name, value in message.items() if name not in ("id", "ok")}
    done = message.get("ok")
    if type(done) is not bool:
        raise ipc.WireViolation("a reply that does not say whether it is done")
    if not done:
        return _FAILED.read(said)
    if "too_small" in said and do in _GROWS:
        return _TOO_SMALL.read(said)
    granted = _REPLIES.get(do, _NOTHING)
    return dataclasses.replace(granted, optional=_FACTS).read(said)


def event(message: Mapping[str, Any]) -> str:
    """Return which event a message announces; an empty text where it is a reply.

    Raises:
        WireViolation: it is neither.
    """
    if "event" not in message:
        return ""
    name: str = _EVENT.read(dict(message))["event"]
    if name not in EVENTS:
        raise ipc.WireViolation("an event that nobody knows")
    return name


def last_findings(text: str) -> list[Finding]:
    """Return the findings that a dying process wrote to its file: one JSON object per line.

    Raises:
        WireViolation: a line holds something else.
    """
    found = []
    for line in text.splitlines()[:_MOST_FINDINGS]:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise ipc.WireViolation("a finding that is no JSON") from None
        found.append(Defect(more={"times": Whole()}).read(said))
    return found


def check_values(do: str, values: Mapping[str, Any]) -> None:
    """See that the decoded values of a reply are those that the request asks for.

    Raises:
        WireViolation: they are others, or one has a form that it never has.
    """
    needed = {"call": ("output", "state"), "inputs": ("inputs",)}[do]
    optional = ("input_grads", "state_grads", "previous") if do == "call" else ()
    for name in needed:
        if name not in values:
            raise ipc.WireViolation(f"the value {name!r} is missing")
    for name, value in values.items():
        if name not in (*needed, *optional):
            raise ipc.WireViolation(f"a value {name!r} that nothing asked for")
        if name == "inputs" and not isinstance(value, (list, tuple)):
            raise ipc.WireViolation("inputs that are no list")
        if name == "input_grads" and not (isinstance(value, list) and _tensors_or_none(value)):
            raise ipc.WireViolation("gradients of inputs that are no list of tensors")
        if name in ("state", "state_grads"):
            named = isinstance(value, dict) and all(type(key) is str for key in value)
            if not named or not _tensors_or_none(value.values()):
                raise ipc.WireViolation(f"a value {name!r} that is no table of tensors")


def _tensors_or_none(values: Any) -> bool:
    """Return whether there are but tensors, such as cannot travel (sparse ones) included."""
    kinds = (torch.Tensor, ipc.Untransferable, type(None))
    return all(isinstance(value, kinds) for value in values)
