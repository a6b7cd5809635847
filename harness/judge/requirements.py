"""Checks a pair's other requirements: readable files, hardware, own kernels, a strong problem."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from harness.domain import Refusal, Status
from harness.judge import own_kernels
from harness.judge.check import causes
from harness.judge.record import Facts
from harness.judge.workers.identity import Confinement
from harness.judge.workers.remote import RemoteWorker


def readable(confinement: Confinement) -> None:
    """Check that the solution's processes may read the files that they need.

    Raises:
        Refusal: they may not. The code is not at fault, so the status is SKIPPED.
    """
    if confinement.private is not None:
        raise Refusal(
            Status.SKIPPED,
            f"{confinement.private} is private: the solution runs under a user id that may not "
            f"read it. Next: {confinement.opening}",
        )


def hardware(wanted: str | None, kind: str, device: torch.device) -> None:
    """Check that the device is the one that a solution requires.

    Args:
        wanted: ``sm_90`` is that or later, ``sm_90a`` exactly that; None is any device.
        kind: ``cuda``, ``emulated`` or ``cpu``.
        device: where the pair is judged.

    Raises:
        Refusal: the device is another one (SKIPPED).
    """
    if not wanted:
        return
    if kind != "cuda":
        raise Refusal(Status.SKIPPED, f"the solution requires {wanted}; this is {kind}")
    major, minor = torch.cuda.get_device_capability(device)
    digits = re.sub(r"\D", "", wanted)
    exact = wanted[-1] in "af"
    have = major * 10 + minor
    if have < int(digits) or (exact and have != int(digits)):
        raise Refusal(Status.SKIPPED, f"the solution requires {wanted}; this is sm_{have}")


def launches(
    facts: Facts, worker: RemoteWorker, loaded: Mapping[str, Any], text: str, kind: str
) -> None:
    """Check that a solution with CUDA source launched a kernel of its own; count its launches.

    Args:
        facts: of the checked calls; gets the count.
        worker: the candidate's.
        loaded: the candidate's report about its extensions.
        text: the solution's source.
        kind: ``cuda``, ``emulated`` or ``cpu``.

    Raises:
        Refusal: none ran (NO_KERNEL_LAUNCHED, or SKIPPED where the CPU runner cannot run it).
    """
    sources = own_kernels.sources_of(text, loaded["files"])
    ships = loaded["ships_cuda"] or own_kernels.ships_cuda(sources)
    if kind == "cpu":
        return
    if not ships:
        if loaded["built"] and not worker.build_failures and not worker.unsupported:
            facts.warnings.append(
                "its extension defines no kernel: libraries or PyTorch compute its results"
            )
        return
    if kind == "emulated":
        facts.launches = worker.launches or 0
    else:
        own = own_kernels.kernel_names(sources)
        kernels = facts.report.kernels if facts.report else {}
        facts.launches = own_kernels.launches_of(own, kernels)
        if not kernels and not own:
            facts.notes.append("kernel launches could not be counted")
            return
    if facts.launches:
        return
    if worker.unsupported:
        raise Refusal(Status.SKIPPED, causes.CANNOT + worker.unsupported[0])
    why = f"; its build failed: {worker.build_failures[0]}" if worker.build_failures else ""
    calls = facts.report.calls if facts.report else 0
    raise Refusal(
        Status.NO_KERNEL_LAUNCHED,
        f"it ships CUDA, but none of its own kernels ran in {calls} calls{why}",
    )


def strength(survivors: Iterable[str]) -> None:
    """Check that every impostor was refused.

    Raises:
        Refusal: one passed (WEAK_PROBLEM).
    """
    names = ", ".join(sorted(survivors))
    if names:
        raise Refusal(
            Status.WEAK_PROBLEM,
            f"an impostor passes every check: {names}; a PASSED here would mean nothing",
        )
