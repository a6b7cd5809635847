"""Reads the optional ``SETTINGS`` dict of a reference, without importing the file.

A reference may carry one module-level literal::

    SETTINGS = {
        "modes": ["eval"],                                # forward, eval, train
        "sizes": {"small": {"batch_size": 4, "dim": 64}},  # overrides of module-level constants
        "tolerances": {"atol": 1e-4, "rtol": 1e-4},
        "domain": {"x": {"min": 0.0}},                    # per argument of Model.forward
        "fold_state": True,                               # state may be folded at construction
        "streams": "any",                                 # correct on any current stream
        "solutions": {"hopper": {"precision": "fp32", "requires": "sm_90a"}},
    }

Every key is optional. The error for an unknown key names the nearest valid one.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from harness.domain import UsageError

MODES = ("forward", "eval", "train")
STREAMS = ("default", "any")
PRECISIONS = ("fp64", "fp32", "tf32", "bf16", "fp16")

_ARCHITECTURE = re.compile(r"sm_\d{2,3}[af]?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """A pair's ``allclose`` tolerances; None: the harness's policy decides."""

    atol: float | None = None
    rtol: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The values of an argument of ``forward``, both ends included; None is unbounded."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SolutionSettings:
    """The problem's demands on one solution, which the judge checks.

    Attributes:
        precision: required precision: fp64, fp32, tf32, bf16, fp16. None: the problem's own.
        requires: architecture that the solution needs, e.g. ``sm_90a``. It is skipped on others.
    """

    precision: str | None = None
    requires: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a reference.

    Attributes:
        modes: modes to check, in order, out of forward, eval, train.
        sizes: per named size, the module-level constants that it overrides. A tuple stays a tuple.
        tolerances: None: the policy decides both.
        domain: per argument of ``Model.forward``, its valid values.
        fold_state: whether a solution may compute with its state once, at its construction. The
            judge then does not change the state between the trials of one instance.
        streams: ``default``: a solution must be correct while the default stream is current; if it
            is wrong with another stream, it gets a warning. ``any``: it must be correct with both.
        solutions: per solution (the stem of its file), the demands on it.
    """

    modes: tuple[str, ...] = ("forward",)
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tolerances: Tolerances | None = None
    domain: Mapping[str, Interval] = field(default_factory=dict)
    fold_state: bool = False
    streams: str = "default"
    solutions: Mapping[str, SolutionSettings] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; tags keep the tuples inside sizes."""
        tolerances = self.tolerances
        return {
            "modes": list(self.modes),
            "sizes": {
                name: {constant: _tag(value) for constant, value in overrides.items()}
                for name, overrides in self.sizes.items()
            },
            "tolerances": tolerances and {"atol": tolerances.atol, "rtol": tolerances.rtol},
            "domain": {name: {"min": i.min, "max": i.max} for name, i in self.domain.items()},
            "fold_state": self.fold_state,
            "streams": self.streams,
            "solutions": {
                name: {"precision": s.precision, "requires": s.requires}
                for name, s in self.solutions.items()
            },
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Settings:
        """Return the settings that ``to_json`` wrote.

        Raises:
            KeyError: a key is missing.
        """
        tolerances = plain["tolerances"]
        return cls(
            modes=tuple(plain["modes"]),
            sizes={
                name: {constant: _untag(value) for constant, value in overrides.items()}
                for name, overrides in plain["sizes"].items()
            },
            tolerances=None if tolerances is None else Tolerances(**tolerances),
            domain={name: Interval(**ends) for name, ends in plain["domain"].items()},
            fold_state=plain["fold_state"],
            streams=plain["streams"],
            solutions={name: SolutionSettings(**s) for name, s in plain["solutions"].items()},
        )


def constants_of(size: str) -> dict[str, Any] | None:
    """Return the constants of a size such as ``rows=64,shape=(2,3)``; None for a name.

    Args:
        size: a value of ``--size``.
    """
    try:
        call = ast.parse(f"size({size})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not call.keywords:
            return None
        found = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
    except (ValueError, SyntaxError):
        return None
    return found if len(found) == len(call.keywords) else None


def read_settings(problem: Path) -> Settings:
    """Return the settings of a reference file; the defaults if it has none.

    Args:
        problem: the reference file, which is parsed and not executed.

    Raises:
        UsageError: the file cannot be read or parsed, or its settings are not valid. The message
            has the file, the line and, for an unknown key, the nearest valid one.
    """
    try:
        source = problem.read_bytes()
    except OSError as error:
        raise UsageError(f"{problem}: cannot be read: {error.strerror}") from error
    try:
        tree = ast.parse(source, filename=str(problem))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UsageError(
            f"{problem}:{line}: not valid Python: {getattr(error, 'msg', error)}. "
            "Next: correct that line of the reference"
        ) from error
    constants = _module_names(tree.body)
    for statement in tree.body:
        target, value = _assignment(statement)
        if target == "SETTINGS" and value is not None:
            return _Reader(problem, constants).settings(value)
    return Settings()


def _assignment(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """Return name and value of ``name = value`` or ``name: T = value``."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return (target.id if isinstance(target, ast.Name) else None), statement.value
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id, statement.value
    return None, None


def _module_names(body: Iterable[ast.stmt]) -> list[str]:
    """Return the names of module-level assignments, also inside if, try and with."""
    names: list[str] = []
    for statement in body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
            targets = [statement.target]
        elif isinstance(statement, (ast.If, ast.Try, ast.With)):
            names += _module_names(
                child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)
            )
        names += [
            node.id
            for target in targets
            for node in ast.walk(target)
            if isinstance(node, ast.Name) and node.id != "SETTINGS"
        ]
    return names


class _Reader:
    """Reads one SETTINGS literal; every error names its line."""

    def __init__(self, problem: Path, constants: list[str]) -> None:
        self._problem = problem
        self._constants = constants

    def settings(self, node: ast.expr) -> Settings:
        keys = ("modes", "sizes", "tolerances", "domain", "fold_state", "streams", "solutions")
        given = self._dict(node, "SETTINGS", keys)
        default = Settings()
        return Settings(
            modes=self._modes(given["modes"]) if "modes" in given else default.modes,
            sizes=self._sizes(given["sizes"]) if "sizes" in given else default.sizes,
            tolerances=(self._tolerances(given["tolerances"]) if "tolerances" in given else None),
            domain=self._domain(given["domain"]) if "domain" in given else default.domain,
            fold_state=(
                self._bool(given["fold_state"], "fold_state") if "fold_state" in given else False
            ),
            streams=self._streams(given["streams"]) if "streams" in given else default.streams,
            solutions=(
                self._solutions(given["solutions"]) if "solutions" in given else default.solutions
            ),
        )

    def _modes(self, node: ast.expr) -> tuple[str, ...]:
        value = self._literal(node, "modes")
        if not isinstance(value, (list, tuple)) or not value:
            self._fail(node, f"modes must be a list with some of {list(MODES)}, not {value!r}")
        for mode in value:
            self._choice(node, "mode", mode, MODES)
        return tuple(dict.fromkeys(value))

    def _streams(self, node: ast.expr) -> str:
        value = self._literal(node, "streams")
        self._choice(node, "streams", value, STREAMS)
        return str(value)

    def _sizes(self, node: ast.expr) -> dict[str, dict[str, Any]]:
        sizes = {}
        for name, overrides in self._dict(node, "sizes").items():
            chosen = self._dict(overrides, f"size {name!r}", self._constants, kind="constant")
            sizes[name] = {
                constant: self._literal(value, f"size {name!r}, {constant}")
                for constant, value in chosen.items()
            }
        return sizes

    def _tolerances(self, node: ast.expr) -> Tolerances:
        given = self._dict(node, "tolerances", ("atol", "rtol"))
        numbers = {key: self._number(value, key) for key, value in given.items()}
        for key, number in numbers.items():
            if not 0.0 <= number < float("inf"):
                self._fail(given[key], f"{key} must be finite and at least 0, not {number!r}")
        return Tolerances(**numbers)

    def _domain(self, node: ast.expr) -> dict[str, Interval]:
        domain = {}
        for name, ends in self._dict(node, "domain").items():
            given = self._dict(ends, f"domain of {name!r}", ("min", "max"))
            interval = Interval(**{key: self._number(v, key) for key, v in given.items()})
            low = float("-inf") if interval.min is None else interval.min
            high = float("inf") if interval.max is None else interval.max
            if not low <= high:
                self._fail(ends, f"domain of {name!r} is empty: min {low} is above max {high}")
            domain[name] = interval
        return domain

    def _solutions(self, node: ast.expr) -> dict[str, SolutionSettings]:
        solutions = {}
        for name, given_node in self._dict(node, "solutions").items():
            given = self._dict(given_node, f"solution {name!r}", ("precision", "requires"))
            plain = {key: self._literal(value, key) for key, value in given.items()}
            if "precision" in plain:
                self._choice(given["precision"], "precision", plain["precision"], PRECISIONS)
            requires = plain.get("requires")
            if requires is not None and not (
                isinstance(requires, str) and _ARCHITECTURE.fullmatch(requires)
            ):
                self._fail(
                    given["requires"],
                    f"requires must be an architecture such as 'sm_90a', not {requires!r}",
                )
            solutions[name] = SolutionSettings(**plain)
        return solutions

    def _dict(
        self,
        node: ast.expr,
        what: str,
        valid: Iterable[str] | None = None,
        *,
        kind: str = "key",
    ) -> dict[str, ast.expr]:
        """Return the items of a dict display with string keys, checked against the valid ones."""
        if not isinstance(node, ast.Dict):
            self._fail(node, f"{what} must be a dict literal {{...}}")
        items: dict[str, ast.expr] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                self._fail(key or value, f"{what}: keys must be string literals")
            if valid is not None and key.value not in valid:
                self._fail(
                    key,
                    f"{what}: unknown {kind} {key.value!r}{_nearest(key.value, valid)}",
                )
            if key.value in items:
                self._fail(key, f"{what}: {key.value!r} is given twice")
            items[key.value] = value
        return items

    def _literal(self, node: ast.expr, what: str) -> Any:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            self._fail(
                node,
                f"{what} must be a literal, not {ast.unparse(node)!r}, because the harness reads "
                "settings without running the file",
            )

    def _number(self, node: ast.expr, what: str) -> float:
        value = self._literal(node, what)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._fail(node, f"{what} must be a number, not {value!r}")
        return float(value)

    def _bool(self, node: ast.expr, what: str) -> bool:
        value = self._literal(node, what)
        if not isinstance(value, bool):
            self._fail(node, f"{what} must be True or False, not {value!r}")
        return value

    def _choice(self, node: ast.expr, what: str, value: Any, valid: tuple[str, ...]) -> None:
        if value not in valid:
            self._fail(node, f"unknown {what} {value!r}{_nearest(str(value), valid)}")

    def _fail(self, node: ast.AST, message: str) -> NoReturn:
        raise UsageError(f"{self._problem}:{getattr(node, 'lineno', 1)}: SETTINGS: {message}")


def _nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` or the list of valid names."""
    names = list(dict.fromkeys(valid))
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; valid: {', '.join(names) if names else 'none'}"


def _tag(value: Any) -> Any:
    """Return JSON for a literal; a tag names the types that JSON lacks."""
    if isinstance(value, tuple):
        return {"tuple": [_tag(item) for item in value]}
    if isinstance(value, list):
        return [_tag(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_tag(key), _tag(item)] for key, item in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"literal": repr(value)}


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if isinstance(value, dict):
        ((tag, inner),) = value.items()
        if tag == "tuple":
            return tuple(_untag(item) for item in inner)
        if tag == "dict":
            return {_untag(key): _untag(item) for key, item in inner}
        return ast.literal_eval(inner)
    return value
