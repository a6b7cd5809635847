"""Reads verdicts for ``acceptance.py``: those of the harness, those of others, explanations."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.domain import Blame, Pair, SpeedOutcome, Status, UsageError

RIGHT = ("ours", "theirs", "neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """The part of a stored verdict that the tables need.

    Attributes:
        pair: ``problem/solution``.
        status, message: as in the verdict.
        warnings: what the harness suspects of a solution that passed.
        outcome, speedup, low, high, noise_floor: as in the verdict's ``speed``.
        problem_hash, solution_hash: SHA-256 of the two files, empty if not stored.
    """

    pair: str
    status: Status
    message: str = ""
    warnings: tuple[str, ...] = ()
    outcome: SpeedOutcome = SpeedOutcome.UNTIMED
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    noise_floor: float | None = None
    problem_hash: str = ""
    solution_hash: str = ""

    @property
    def accepts(self) -> bool | None:
        """Return whether the harness accepts the solution; None without a verdict on it."""
        if self.status is Status.PASSED:
            return True
        if self.status is Status.SKIPPED or self.status.blame is Blame.HARNESS:
            return None
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """A verdict of others on a solution.

    Attributes:
        correct: whether it is correct; None if unknown.
        compiled: whether it could be built; None if unknown.
        note: why it was refused, or on which machine it ran.
    """

    correct: bool | None = None
    compiled: bool | None = None
    note: str = ""

    @property
    def word(self) -> str:
        """Return the verdict as one or two words."""
        if self.correct is None:
            return "unknown"
        if self.correct:
            return "correct"
        return "not compiled" if self.compiled is False else "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Which verdict is right on the pairs of a pattern, and why."""

    pattern: str
    right: str
    reason: str


def read_runs(paths: Iterable[Path]) -> dict[str, list[Ours]]:
    """Return all verdicts of some files, by pair, in the order of the files.

    Raises:
        UsageError: a file cannot be read or holds no verdicts.
    """
    found: dict[str, list[Ours]] = {}
    for path in paths:
        for plain in _verdicts(path):
            ours = _ours(plain, path)
            found.setdefault(ours.pair, []).append(ours)
    return found


def _verdicts(path: Path) -> list[Mapping[str, Any]]:
    """Return the verdicts of a document, or of a file with one verdict a line."""
    text = _read(path)
    try:
        whole = json.loads(text)
    except ValueError:
        entries = json_lines(text, path)
    else:
        if isinstance(whole, dict) and isinstance(whole.get("verdicts"), list):
            return list(whole["verdicts"])
        entries = [whole]
    found = [entry["verdict"] for entry in entries if isinstance(entry.get("verdict"), dict)]
    if not found:
        raise UsageError(
            f"{path}: holds no verdicts. Next: name a file of run_eval.py --json or --resume"
        )
    return found


def json_lines(text: str, path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a text, one a line; an incomplete last line is left out.

    Raises:
        UsageError: another line is not an object.
    """
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    found: list[dict[str, Any]] = []
    for number, line in lines:
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == lines[-1][0]:
                break
            raise UsageError(f"{path}:{number}: is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise UsageError(f"{path}:{number}: is not a JSON object")
        found.append(value)
    return found


def _ours(plain: Mapping[str, Any], path: Path) -> Ours:
    # Read by name, not through Verdict: documents of later versions have further fields.
    try:
        speed = plain.get("speed") or {}
        return Ours(
            pair=plain["pair"],
            status=Status(plain["status"]),
            message=_without_root(plain.get("message") or "", plain["pair"]),
            warnings=tuple(
                w["message"] if isinstance(w, dict) else str(w) for w in plain.get("warnings") or ()
            ),
            outcome=SpeedOutcome(speed.get("outcome", "UNTIMED")),
            speedup=_number(speed.get("speedup")),
            low=_number(speed.get("low")),
            high=_number(speed.get("high")),
            noise_floor=_number(speed.get("noise_floor")),
            problem_hash=plain.get("problem_hash") or "",
            solution_hash=plain.get("solution_hash") or "",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not a verdict: {error!r}") from error


def _without_root(message: str, pair: str) -> str:
    """Return a message whose paths begin below the root, which differs between machines."""
    folder = re.escape(pair.partition("/")[0])
    return re.sub(rf"\S*/(?=(?:problems|solutions)/{folder}/)", "", message)


def _number(value: Any) -> float | None:
    """Return a number of a document, in which numbers that are not finite are strings."""
    return None if value is None else float(value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: is not a JSON object with one entry per pair")
    return value


def latest(verdicts: Sequence[Ours], pair: Pair) -> Ours | None:
    """Return the verdict that counts: the last one on these files that is not SKIPPED, if any."""
    problem = hashlib.sha256(pair.problem.read_bytes()).hexdigest()
    solution = hashlib.sha256(pair.solution.read_bytes()).hexdigest()
    valid = [
        v for v in verdicts if v.problem_hash in ("", problem) and v.solution_hash in ("", solution)
    ]
    reached = [v for v in valid if v.status is not Status.SKIPPED]
    counting = reached or valid
    return counting[-1] if counting else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The entry of one pair in an index."""

    source: str = ""
    model: str = ""
    said: Theirs = Theirs()


def read_index(path: Path) -> dict[str, Entry]:
    """Return the entries of an index, by pair.

    Raises:
        UsageError: it cannot be read, or has not the form that ``acceptance.py`` describes.
    """
    found = {}
    for pair, entry in _read_object(path).items():
        if not isinstance(entry, dict):
            raise UsageError(f"{path}: {pair}: is not a JSON object")
        parts = [str(entry[k]) for k in ("hardware", "note") if entry.get(k)]
        said = Theirs(
            correct=entry.get("correct"), compiled=entry.get("compiled"), note="; ".join(parts)
        )
        found[pair] = Entry(
            source=str(entry.get("source") or ""), model=str(entry.get("model") or ""), said=said
        )
    return found


def read_kernelbench(path: Path) -> dict[str, Theirs]:
    """Return KernelBench's verdicts by pair, as ``kernelbench_verdicts.py`` wrote them."""
    found = {}
    for entry in json_lines(_read(path), path):
        metadata = entry.get("metadata") or {}
        parts = [
            str(metadata[key])
            for key in ("error", "compilation_error", "runtime_error", "correctness_issue")
            if metadata.get(key)
        ]
        if metadata.get("max_difference"):
            parts.append(f"max difference {metadata['max_difference']}")
        if metadata.get("excessive_speedup"):
            parts.append("excessive speedup")
        found[entry["pair"]] = Theirs(
            correct=entry.get("correctness"), compiled=entry.get("compiled"), note="; ".join(parts)
        )
    return found


def read_explanations(path: Path) -> tuple[Explanation, ...]:
    """Return the explanations of a JSON file or of the first Markdown table that has any.

    Raises:
        UsageError: an entry is not of the form, or its WHO is none of RIGHT.
    """
    if path.suffix == ".json":
        entries = []
        for pattern, entry in _read_object(path).items():
            if not (isinstance(entry, list) and len(entry) == 2):
                raise UsageError(f"{path}: {pattern}: is not [WHO, REASON]")
            entries.append((pattern, str(entry[0]), str(entry[1])))
    else:
        entries = list(_markdown_rows(_read(path), path))
    for pattern, right, _ in entries:
        if right not in RIGHT:
            raise UsageError(f"{path}: {pattern}: {right!r} is none of {', '.join(RIGHT)}")
    return tuple(Explanation(pattern=p, right=r, reason=why) for p, r, why in entries)


def _markdown_rows(text: str, path: Path) -> Iterable[tuple[str, str, str]]:
    columns: list[str] = []
    for line in text.splitlines():
        if not line.lstrip().startswith("|"):
            columns = []
            continue
        inner = line.strip().strip("|")
        cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", inner)]
        if not columns:
            columns = [c.lower() for c in cells]
        elif {"pair", "right", "reason"} <= set(columns) and set("".join(cells)) - set("-: "):
            if len(cells) != len(columns):
                raise UsageError(f"{path}: {cells[0]}: the row and the header differ in length")
            row = dict(zip(columns, cells, strict=True))
            yield row["pair"].strip("`"), row["right"], row["reason"]


def explain(pair: str, explanations: Sequence[Explanation]) -> Explanation | None:
    """Return the explanation of a pair: its own before that of a pattern."""
    for explanation in explanations:
        if explanation.pattern == pair:
            return explanation
    for explanation in explanations:
        if fnmatch.fnmatchcase(pair, explanation.pattern):
            return explanation
    return None
