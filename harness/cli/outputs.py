"""Writes documents and reports, keeps the history, and rebuilds reports from stored runs."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.cli.guard import make_guard
from harness.domain import Pair, Run, UsageError, Verdict
from harness.gate import check, device_kind, stored_from_run
from harness.machine.folders import results_folder

_TARGETS = ("json", "html", "markdown", "junit")
_HISTORY_SHOWN = 60


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for reports, history and stored runs."""
    add = parser.add_argument
    add("--html", metavar="FILE", help="write a self-contained page with plots")
    add("--markdown", metavar="FILE", help="write a summary for a pull request or a CI job")
    add("--junit", metavar="FILE", help="write JUnit XML with a test case per pair")
    add(
        "--report",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="evaluate nothing: write the reports above about the newest of some stored runs",
    )
    add(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="evaluate nothing: compare run B with run A, as the gate does",
    )
    add("--no-history", action="store_true", help="keep no copy of this run in results/")


def check_targets(arguments: argparse.Namespace) -> None:
    """Check, before the evaluation, that the named files can be written.

    Raises:
        UsageError: one cannot.
    """
    for option in _TARGETS:
        target = getattr(arguments, option)
        if target is None or (target == "-" and option == "json"):
            continue
        path = Path(target)
        if arguments.resume and path.resolve() == arguments.resume.resolve():
            raise UsageError(
                f"--{option} {target}: is also the file of --resume. Next: name another"
            )
        if path.is_dir():
            raise UsageError(f"--{option} {target}: is a folder. Next: name a file")
        if not path.resolve().parent.is_dir():
            raise UsageError(
                f"--{option} {target}: the folder {path.resolve().parent} does not exist"
            )
        if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise UsageError(f"--{option} {target}: cannot be written")


def write_all(
    run: Run,
    arguments: argparse.Namespace,
    *,
    history: Callable[[], Sequence[Run]] = tuple,
    pairs: Iterable[Pair] = (),
    root: Path,
) -> None:
    """Write every report that the options name.

    Args:
        run: its content.
        arguments: name the files.
        history: returns earlier runs, oldest first; called only for a page.
        pairs: of this run. The page shows the sources of those that failed.
        root: folder with solutions/.

    Raises:
        OSError: a file cannot be written.
    """
    from harness import report

    if arguments.json:
        report.write_document(report.render_run(run), arguments.json)
    if arguments.markdown:
        report.write_document(report.render_markdown(run), arguments.markdown)
    if arguments.junit:
        report.write_document(report.render_junit(run), arguments.junit)
    if arguments.html:
        page = report.render_page(run, history(), _sources(pairs, root))
        report.write_document(page, arguments.html)


def keep(run: Run, root: Path) -> Path | None:
    """Store a run in the history, ``DATE-COMMIT.json`` in results; None if that fails.

    A failure costs a warning only: the evaluation itself has succeeded.
    """
    from harness import report

    stamp = re.sub(r"[^0-9]", "", str(run.environment.get("date") or ""))[:14] or "undated"
    commit = str(run.environment.get("commit") or "")
    name = f"{stamp[:8]}-{stamp[8:]}-{_short(commit) or 'no-commit'}"
    try:
        folder = results_folder(root)
        if folder.parent != root:
            print(f"{root} is read-only, so this run is stored in {folder}", file=sys.stderr)
        for number in range(1, 1000):
            path = folder / f"{name}{f'_{number}' if number > 1 else ''}.json"
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            report.write_document(report.render_run(run), str(path))
            return path
    except OSError as failure:
        print(f"warning: this run could not be stored in the history: {failure}", file=sys.stderr)
    return None


def _short(commit: str) -> str:
    head, _, dirty = commit.partition("-")
    return head[:10] + (f"-{dirty}" if dirty else "")


def stored_runs(root: Path, like: Run) -> list[Run]:
    """Return the newest runs of the history on the same kind of device, oldest first."""
    from harness import report

    found: list[Run] = []
    folders = {root / "results", results_folder(root)}
    paths = [path for folder in folders for path in folder.glob("*.json")]
    for path in sorted(paths, key=lambda path: path.name, reverse=True):
        try:
            run = report.read_run(path)
        except UsageError:
            continue
        if _kinds(run) == _kinds(like) and run.verdicts:
            found.append(run)
        if len(found) == _HISTORY_SHOWN:
            break
    return sorted(found, key=_date)


def rebuild(arguments: argparse.Namespace, root: Path, existing: Iterable[str]) -> int:
    """Write reports about the newest of some stored runs; return the exit code.

    The gate's options work on that run, too: a baseline can be checked, or updated, with a run of
    another machine.

    Args:
        arguments: the command line.
        root: folder with solutions/ and baselines/.
        existing: names of all pairs on disk.

    Raises:
        UsageError: no file holds a run, or a report cannot be written.
    """
    from harness import report

    check_targets(arguments)
    runs = _readable(arguments.report)
    newest = runs[-1]
    earlier = [run for run in runs[:-1] if _kinds(run) == _kinds(newest)]
    guarded = make_guard(
        arguments,
        root=root,
        devices=[verdict.device for verdict in newest.verdicts if verdict.device],
        gpus=[str(name) for name in newest.environment.get("gpu") or ()],
        chosen=[verdict.pair for verdict in newest.verdicts],
    )
    checked = guarded is not None and not guarded.updating
    if guarded and checked:
        newest = guarded.check(newest)
    try:
        write_all(newest, arguments, history=lambda: earlier, root=root)
    except OSError as failure:
        raise UsageError(f"{failure.filename}: {failure.strerror}") from failure
    if arguments.json != "-":
        print(f"{newest.source}, {newest.environment.get('date') or 'undated'}\n")
        width, colour = terminal(arguments)
        table = report.render_table(
            newest.verdicts, arguments.format, width=width, colour=colour, gate=newest.gate
        )
        print(table)
        print(f"\n{report.summarize(newest.verdicts)}")
        if newest.gate:
            print(report.explain_gate(newest.gate))
    if guarded and guarded.updating:
        said = guarded.update(newest, existing)
        print(said, file=sys.stderr if arguments.json == "-" else sys.stdout)
    return newest.gate.exit_code if newest.gate and checked else 0


def compare(arguments: argparse.Namespace) -> int:
    """Print run B beside run A; return the exit code of the gate.

    Raises:
        UsageError: one of the files holds no run.
    """
    from harness import report

    before, after = (report.read_run(path) for path in arguments.compare)
    decision, _ = check(stored_from_run(before), after)
    print(report.render_comparison(before, after, decision, arguments.format))
    print(f"\n{report.explain_gate(decision)}")
    return decision.exit_code


def terminal(arguments: argparse.Namespace) -> tuple[int | None, bool]:
    """Return width and colour for a table on stdout; neither if it is no terminal."""
    if arguments.format != "simple" or not sys.stdout.isatty():
        return None, False
    try:
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):
        width = 80
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return max(width, 20), not plain


def _readable(paths: Sequence[Path]) -> list[Run]:
    """Return the runs of some files, oldest first; warn about files without a run."""
    from harness import report

    runs, why = [], ""
    for path in paths:
        try:
            run = report.read_run(path)
        except UsageError as error:
            why = str(error)
            print(f"warning: {error}", file=sys.stderr)
            continue
        if run.verdicts:
            runs.append(run)
        else:
            why = f"{path}: the run evaluated nothing"
    if not runs:
        raise UsageError(f"--report: no file holds a run with verdicts. {why}")
    return sorted(runs, key=_date)


def _date(run: Run) -> str:
    return str(run.environment.get("date") or "")


def _kinds(run: Run) -> set[str]:
    gpus = [str(name) for name in run.environment.get("gpu") or ()]
    return {device_kind(v.device, gpus) for v in run.verdicts if v.device}


def _sources(pairs: Iterable[Pair], root: Path) -> Callable[[Verdict], tuple[str, str] | None]:
    """Return a function that returns a verdict's solution, if its file has not changed since."""
    files = {pair.name: pair.solution for pair in pairs}

    def source_of(verdict: Verdict) -> tuple[str, str] | None:
        problem, _, stem = verdict.pair.partition("/")
        if not re.fullmatch(r"[\w.+-]+/[\w.+-]+", verdict.pair):
            return None
        path = files.get(verdict.pair) or root / "solutions" / problem / f"{stem}.py"
        try:
            text = path.read_bytes()
        except OSError:
            return None
        if not verdict.solution_hash:  # only a verdict of this run is certain to be about this file
            return (path.name, text.decode("utf-8", "replace")) if verdict.pair in files else None
        if hashlib.sha256(text).hexdigest() != verdict.solution_hash:
            return None
        return path.name, text.decode("utf-8", "replace")

    return source_of
