"""Records as plain JSON values, and back; refuses a record that cannot be true."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.domain.records import (
    Baseline,
    Bound,
    Check,
    Finding,
    GateDecision,
    KernelProfile,
    PairDecision,
    Run,
    Speed,
    Verdict,
)
from harness.domain.statuses import SCHEMA_VERSION, GateClass, HarnessError, SpeedOutcome, Status


def to_json(value: Any) -> Any:
    """Return plain dicts, lists and scalars for any record; non-finite floats become strings."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Verdict):
            plain["blame"] = value.blame.value
        return plain
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def verdict_from_json(plain: Mapping[str, Any]) -> Verdict:
    """Return the verdict that ``to_json`` wrote.

    Raises:
        HarnessError: a field is missing, unknown or of the wrong type, or the record is illegal.
    """
    try:
        given = dict(plain)
        given.pop("blame", None)
        given["status"] = Status(given["status"])
        given["checks"] = tuple(_record(Check, c) for c in given.get("checks", ()))
        given["findings"] = tuple(_record(Finding, f) for f in given.get("findings", ()))
        given["ncu"] = tuple(_record(KernelProfile, k) for k in given.get("ncu", ()))
        speed = dict(given.get("speed") or {})
        if "outcome" in speed:
            speed["outcome"] = SpeedOutcome(speed["outcome"])
        speed["baselines"] = tuple(
            _record(Baseline, {**b, "outcome": SpeedOutcome(b["outcome"])})
            for b in speed.get("baselines", ())
        )
        if speed.get("bound") is not None:
            speed["bound"] = _record(Bound, speed["bound"])
        speed["blocks"] = {k: tuple(map(float, v)) for k, v in speed.get("blocks", {}).items()}
        given["speed"] = _record(Speed, speed)
        verdict: Verdict = _record(Verdict, given)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HarnessError(f"not a verdict: {error!r}") from error
    return verdict


_NUMBERS = ("float", "float | None")


def _record(cls: type[Any], plain: Mapping[str, Any]) -> Any:
    """Return a record from plain JSON: lists become tuples, names of floats become floats."""
    values: dict[str, Any] = {}
    annotations = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for name, value in plain.items():
        annotation = annotations.get(name)
        if annotation in _NUMBERS and isinstance(value, (str, int)):
            values[name] = float(value)
        elif isinstance(value, list):
            values[name] = tuple(value)
        else:
            values[name] = value
        if annotation == "str" and not isinstance(value, str):
            raise TypeError(f"{cls.__name__}.{name} must be text, not {value!r}")
    return cls(**values)


def run_from_json(plain: Mapping[str, Any], source: str = "") -> Run:
    """Return the run that a JSON document holds. Reads schema 1 and 2.

    Args:
        plain: the parsed document.
        source: the file it comes from, for messages.

    Raises:
        HarnessError: not such a document, or of a schema that this version does not know.
    """
    try:
        schema = plain["schema_version"]
        if not isinstance(schema, int) or not 1 <= schema <= SCHEMA_VERSION:
            raise HarnessError(
                f"schema {schema!r} of the document is not one of 1 to {SCHEMA_VERSION}: it was "
                "written by another version. Next: update the harness, or run again"
            )
        gate = plain.get("gate")
        decisions = tuple(
            _record(PairDecision, {**d, "gate_class": GateClass(d["gate_class"])})
            for d in (gate or {}).get("pairs", ())
        )
        return Run(
            verdicts=tuple(verdict_from_json(v) for v in plain["verdicts"]),
            environment=dict(plain["environment"]),
            exit_code=int(plain["exit_code"]),
            error=plain.get("error"),
            measurement_version=int(plain.get("measurement_version", 1)),
            gate=_record(GateDecision, {**gate, "pairs": decisions}) if gate else None,
            log_tails={k: tuple(map(str, v)) for k, v in plain.get("log_tails", {}).items()},
            source=source,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HarnessError(f"not a document of a run: {error!r}") from error
