"""Explains verdicts below the table: failures, warnings, notes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from harness.domain import Finding, Run, Status, Verdict
from harness.report.kernels import kernel_lines
from harness.report.text import clean, figure, mebibytes, one_line, seconds

_TAIL_LINES = 12
_KEPT_LINES = 60
_NOTES = 8
_TAIL_BYTES = 16 * 1024
_QUIET = (Status.PASSED, Status.SKIPPED)


def explain_run(verdicts: Sequence[Verdict], *, in_full: bool = False) -> str:
    """Return the text below the table: failures, skips, notes; each message once.

    Args:
        verdicts: of one run.
        in_full: every fact of every pair, for ``-v``.
    """
    said = [explain_in_full(verdict) for verdict in verdicts] if in_full else []
    said += [explain(verdict) for verdict in verdicts if verdict.status not in _QUIET]
    if not in_full:
        said += [
            "\n".join([f"{clean(verdict.pair)}:", *_kernels(verdict)])
            for verdict in verdicts
            if verdict.ncu
        ]
    skipped: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    notes: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.status is Status.SKIPPED:
            skipped.setdefault(one_line(verdict.message), []).append(verdict.pair)
        if not in_full:
            for warning in verdict.warnings:
                warnings.setdefault(one_line(warning), []).append(verdict.pair)
            for note in verdict.notes:
                notes.setdefault(one_line(note), []).append(verdict.pair)
    said += [f"SKIPPED {_names(pairs)}: {message}" for message, pairs in skipped.items()]
    if warnings:
        said.append(
            "\n".join(f"warning (!), {_names(pairs)}: {w}" for w, pairs in warnings.items())
        )
    lines = [f"note, {_names(pairs)}: {note}" for note, pairs in list(notes.items())[:_NOTES]]
    if len(notes) > _NOTES:
        lines.append(f"{len(notes) - _NOTES} more notes: run with -v to see them")
    if lines:
        said.append("\n".join(lines))
    return "\n\n".join(said)


def _names(pairs: list[str]) -> str:
    """Return up to three names, else their number."""
    return f"{len(pairs)} pairs" if len(pairs) > 3 else ", ".join(map(clean, pairs))


def explain(verdict: Verdict) -> str:
    """Return why a pair did not pass and what to do next.

    The first line is the message. Below it follow the command that replays the verdict, and the end
    of the log.
    """
    head = f"{clean(verdict.pair)}: {verdict.status.value} (blame: {verdict.blame.value})"
    lines = [f"{head}: {one_line(verdict.message) or 'no message'}"]
    if verdict.replay:
        lines.append(f"  replay: {one_line(verdict.replay)}")
    if verdict.reproducer:
        lines.append(f"  reproducer: {_reproducer(verdict.reproducer)}")
    if verdict.log:
        tail = read_tail(Path(verdict.log))
        if tail:
            lines.append(f"  log: {clean(shorten(verdict.log))}")
            lines += [f"  | {line}" for line in tail]
    return "\n".join(lines)


def explain_in_full(verdict: Verdict) -> str:
    """Return every fact of a verdict, for ``-v``."""
    modes = f", modes {', '.join(verdict.modes)}" if verdict.modes else ""
    size = f", size {verdict.size}" if verdict.size else ""
    lines = [f"{clean(verdict.pair)}: {verdict.status.value} on {verdict.device}{size}{modes}"]
    if verdict.phases:
        spent = ", ".join(f"{name} {seconds(s)}" for name, s in verdict.phases.items())
        lines.append(f"  phases: {clean(spent)}")
    lines += [
        f"  {one_line(c.phase)} {one_line(c.what)}: max |diff| {figure(c.max_abs_diff)}, error "
        f"{figure(c.error)} of {figure(c.budget)} allowed, {c.precision or 'no precision'}"
        for c in verdict.checks
    ]
    lines += [f"  state: {one_line(line)}" for line in verdict.state_match]
    lines += [f"  finding: {_finding(finding)}" for finding in verdict.findings]
    lines += [f"  warning: {one_line(warning)}" for warning in verdict.warnings]
    lines += [f"  note: {one_line(note)}" for note in verdict.notes]
    lines += _flags(verdict)
    if verdict.launches is not None:
        lines.append(f"  kernel launches: {verdict.launches}")
    if verdict.speed.note:
        lines.append(f"  speed: {one_line(verdict.speed.note)}")
    lines += _kernels(verdict)
    if verdict.peak_bytes:
        peaks = ", ".join(f"{who} {mebibytes(n)}" for who, n in verdict.peak_bytes.items())
        lines.append(f"  peak memory: {clean(peaks)}")
    if verdict.replay:
        lines.append(f"  replay: {one_line(verdict.replay)}")
    return "\n".join(lines)


def _flags(verdict: Verdict) -> list[str]:
    """Return the numeric flags that are on, one line for all processes with the same flags."""
    alike: dict[str, list[str]] = {}
    for process, flags in verdict.numeric_flags.items():
        on = ", ".join(name for name, value in flags.items() if value) or "none"
        alike.setdefault(on, []).append(process)
    return [
        one_line(f"  numeric flags on in {', '.join(processes)}: {on}")
        for on, processes in alike.items()
    ]


def _kernels(verdict: Verdict) -> list[str]:
    """Return the kernels of one call, one line each below a heading; empty without profile."""
    if not verdict.ncu:
        return []
    head = "  kernels of one call, measured by Nsight Compute:"
    return [head, *(f"    {line}" for line in kernel_lines(verdict.ncu))]


def read_tail(log: Path, lines: int = _TAIL_LINES) -> list[str]:
    """Return the last lines of a log, cleaned; empty if there is no log."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            size = stream.tell()
            stream.seek(max(0, size - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    kept = [line.rstrip() for line in clean(text).split("\n") if line.strip()]
    return kept[-lines:]


def log_tail(run: Run, verdict: Verdict, lines: int = _TAIL_LINES) -> list[str]:
    """Return the end of a pair's log: from the record, else from the file."""
    kept = run.log_tails.get(verdict.pair)
    if kept is None:
        return read_tail(Path(verdict.log), lines) if verdict.log else []
    return [clean(line) for line in kept[-lines:]]


def keep_log_tails(run: Run) -> Run:
    """Return the run with the ends of its logs, longer ones for pairs that did not pass."""
    tails = {
        verdict.pair: tuple(
            read_tail(Path(verdict.log), _TAIL_LINES if verdict.status in _QUIET else _KEPT_LINES)
        )
        for verdict in run.verdicts
        if verdict.log
    }
    return dataclasses.replace(run, log_tails=tails)


def shorten(path: str) -> str:
    """Return a path, relative to the current folder if it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path


def _reproducer(text: str) -> str:
    """Return a reproducer's path; for a reproducer given as source, where to find it."""
    if "\n" in text:
        return "a stand-alone script, in the --json document"
    return one_line(shorten(text))


def _finding(finding: Finding) -> str:
    where = f" ({finding.file}:{finding.line})" if finding.line else ""
    return one_line(f"{finding.kind}: {finding.message}{where}")
