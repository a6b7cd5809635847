"""The command line's side of the gate: which file, which pairs, what to say."""

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
    """One run's dealings with stored results; made before anything is evaluated.

    Attributes:
        path: the baseline file.
        name: the file as messages name it: relative to the root where it lies below it.
        kind: kind of device of this run.
        stored: what the file holds; None where it does not exist yet.
        updating: write it, rather than check against it.
        whole: the run is of every pair: entries of pairs that are gone go too.
        scope: decides whether a stored pair had to be in this run.
    """

    path: Path
    name: str
    kind: str
    stored: StoredResults | None
    updating: bool
    whole: bool
    scope: Callable[[str], bool]

    def check(self, run: Run, remeasure: Remeasure | None = None) -> Run:
        """Return the run with the gate's decision in it, suspicious pairs measured again."""
        stored = self.stored or StoredResults(source=self.name, device=self.kind, pairs={})
        scope = {name for name in stored.pairs if self.scope(name)}
        return check(stored, run, scope=scope, remeasure=remeasure)[1]

    def update(self, run: Run, existing: Iterable[str]) -> str:
        """Write the results of what passed; returns what is to be said.

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
    """Return the guard that was asked for; None where none was.

    Args:
        arguments: the command line.
        root: folder that holds baselines/.
        devices: what the run will use, e.g. ``cuda:0``.
        gpus: names of the visible GPUs.
        chosen: names of the pairs that will be run.

    Raises:
        UsageError: the file is missing, damaged or for another device, the devices are of
            several kinds, or the options contradict one another.
    """
    checking, updating = arguments.check_baseline, arguments.update_baseline
    given = updating if checking is None else checking
    if given is None:
        return None
    if checking is not None and updating is not None:
        raise UsageError("--check-baseline and --update-baseline: check first, then update")
    if updating is not None and arguments.fail_fast:
        raise UsageError("--update-baseline needs every pair's result: leave out --fail-fast")
    kinds = sorted({device_kind(device, gpus) for device in devices})
    if len(kinds) != 1:
        raise UsageError(
            "results are stored per kind of device, and this run is on "
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
            "another file, or none for the default"
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
