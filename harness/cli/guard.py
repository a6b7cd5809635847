"""The gate on the command line: chooses the file and the pairs, and words the result."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.domain import Run, UsageError
from harness.gate import StoredResults, check, device_kind, read_results, updated
from harness.gate.check import Remeasure
from harness.pairs.discover import matches_any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the gate's options."""
    parser.add_argument(
        "--check-baseline",
        nargs="?",
        const="",
        metavar="FILE",
        help="compare with stored results (default: baselines/DEVICE.json); exit codes 4 to 9",
    )
    parser.add_argument(
        "--update-baseline",
        nargs="?",
        const="",
        metavar="FILE",
        help="store the results of the pairs that pass",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Compares a run with stored results, or stores it. Made before the evaluation.

    Attributes:
        path: the baseline file.
        name: its name in messages: relative to the root if it lies below it.
        kind: kind of device of this run.
        stored: content of the file; None if it does not exist yet.
        updating: write the file instead of comparing with it.
        whole: the run is of every pair, so entries of pairs that no longer exist are removed.
        scope: returns whether a stored pair should be in this run.
    """

    path: Path
    name: str
    kind: str
    stored: StoredResults | None
    updating: bool
    whole: bool
    scope: Callable[[str], bool]

    def check(self, run: Run, remeasure: Remeasure | None = None) -> Run:
        """Return the run with the gate's decision; suspicious pairs are measured again."""
        stored = self.stored or StoredResults(source=self.name, device=self.kind, pairs={})
        scope = {name for name in stored.pairs if self.scope(name)}
        return check(stored, run, scope=scope, remeasure=remeasure)[1]

    def update(self, run: Run, existing: Iterable[str]) -> str:
        """Store the results of pairs that passed; return the message about it.

        Raises:
            UsageError: the file cannot be written.
        """
        from harness.report import write_document

        stored = self.stored.pairs if self.stored and not self.whole else ()
        update = updated(self.stored, run, self.kind, {*existing, *stored})
        try:
            if update.text:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_document(update.text, str(self.path))
        except OSError as failure:
            raise UsageError(f"{self.path}: cannot be written: {failure.strerror}") from failure
        head = f"baseline {self.name}:" if update.text else f"{self.name} is not written:"
        return "\n".join([head, *(f"  {line}" for line in update.said)])


def make_guard(
    arguments: argparse.Namespace,
    *,
    root: Path,
    devices: Sequence[str],
    gpus: Sequence[str],
    chosen: Iterable[str],
) -> Guard | None:
    """Return the guard that the options ask for; None if they ask for none.

    Args:
        arguments: the command line.
        root: folder that holds baselines/.
        devices: devices of the run, e.g. ``cuda:0``.
        gpus: names of the visible GPUs.
        chosen: names of the pairs of the run.

    Raises:
        UsageError: the file is missing, damaged or for another device, the devices are of
            several kinds, or the options contradict one another.
    """
    checking, updating = arguments.check_baseline, arguments.update_baseline
    given = updating if checking is None else checking
    if given is None:
        return None
    if checking is not None and updating is not None:
        raise UsageError(
            "--check-baseline and --update-baseline exclude each other. Next: check, then update"
        )
    if updating is not None and arguments.fail_fast:
        raise UsageError(
            "--update-baseline needs the result of every pair. Next: leave out --fail-fast"
        )
    kinds = sorted({device_kind(device, gpus) for device in devices})
    if len(kinds) != 1:
        raise UsageError(
            "a baseline holds results of one kind of device, and this run uses "
            f"{' and '.join(kinds) or 'none'}. Next: choose one with --device cuda:N"
        )
    if given and not given.endswith(".json"):
        option = "--check-baseline" if updating is None else "--update-baseline"
        raise UsageError(
            f"{option} {given}: a baseline is a .json file. Next: name pairs before {option}"
        )
    (kind,) = kinds
    path = Path(given) if given else root / "baselines" / f"{kind}.json"
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    stored = None
    if path.exists() or (given and updating is None):
        stored = dataclasses.replace(read_results(path), source=name)
    if updating is not None and stored is not None and stored.device != kind:
        raise UsageError(
            f"{path}: holds results of {stored.device}, and this run is on {kind}. Next: name "
            "another file, or none for the default one"
        )
    patterns, names = list(arguments.patterns), set(chosen)
    everything = not patterns and not arguments.problem

    def scope(pair: str) -> bool:
        return everything or pair in names or matches_any(pair, patterns)

    return Guard(
        path=path,
        name=name,
        kind=kind,
        stored=stored,
        updating=updating is not None,
        whole=everything,
        scope=scope,
    )
