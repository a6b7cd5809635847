"""The cause behind a refused answer, a worker that failed, or a finding of the CPU runner."""

from __future__ import annotations

from collections.abc import Sequence

from harness.domain import Finding, Status
from harness.judge.workers.remote import RemoteWorker, WorkerFailed

CANNOT = "the CPU runner cannot run it: "


def after_hidden_build(
    workers: Sequence[RemoteWorker], kind: str, status: Status, message: str
) -> tuple[Status, str]:
    """Return the verdict, with the extension that did not build if a fallback ran in its place.

    Args:
        workers: of the pair.
        kind: of the device: cuda, cpu or emulated.
        status: of the refusal.
        message: of the refusal.
    """
    worker = next((w for w in workers if w.role == "candidate"), None)
    if worker is None or worker.launches or kind == "cuda":
        return status, message
    if worker.unsupported:
        return Status.SKIPPED, CANNOT + worker.unsupported[0]
    if worker.build_failures:
        hidden = " ".join(worker.build_failures[0].split())[:300]
        message = f"its extension did not build ({hidden}); what ran instead: {message}"
    return status, message


def worker_failed(
    workers: Sequence[RemoteWorker], phase: str, failed: WorkerFailed
) -> tuple[Status, str]:
    """Return the verdict that follows from a failure of the candidate's worker in a phase."""
    unsupported = [u for w in workers for u in w.unsupported]
    if failed.status in (Status.LOAD_FAILED, Status.CRASHED) and unsupported:
        return Status.SKIPPED, unsupported[0]
    return failed.status, f"during {phase}: {failed}" if phase else str(failed)


def with_findings(findings: Sequence[Finding], status: Status, message: str) -> tuple[Status, str]:
    """Return the verdict that follows from defects that the CPU runner found."""
    if not findings or status in (Status.TAMPERED, Status.HARNESS_ERROR):
        return status, message
    first = findings[0]
    if status is Status.CRASHED and not first.kernel and "tensor" not in first.detail:
        # A signal in host code that touched no tensor's memory: nothing more is known.
        return status, f"{message} ({first.message})"
    more = len(findings) - 1
    return Status.MEMORY_FAULT, first.message + (f" ({more} more findings)" if more else "")
