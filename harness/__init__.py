"""Check that a GPU kernel computes what PyTorch computes, and measure how much faster it is.

Example:
    >>> from harness import evaluate
    >>> verdict = evaluate("reference.py", "solution.py", device="cpu")  # doctest: +SKIP
    >>> verdict.status  # doctest: +SKIP
    <Status.PASSED: 'PASSED'>
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.domain import (
    VERSION,
    Blame,
    Check,
    Finding,
    HarnessError,
    Options,
    Speed,
    SpeedOutcome,
    Status,
    UsageError,
    Verdict,
    to_json,
    verdict_from_json,
)

if TYPE_CHECKING:
    from harness.fleet import JudgeServer

__all__ = [
    "Blame",
    "Check",
    "Finding",
    "HarnessError",
    "Options",
    "Speed",
    "SpeedOutcome",
    "Status",
    "UsageError",
    "Verdict",
    "__version__",
    "evaluate",
    "to_json",
    "verdict_from_json",
]

__version__ = VERSION


def evaluate(
    problem: str | os.PathLike[str],
    solution: str | os.PathLike[str],
    *,
    device: str = "auto",
    mode: str | None = None,
    size: str | None = None,
    quick: bool = False,
    seed: int | None = None,
    timeout_s: float = 60.0,
    time_limit_s: float = 300.0,
    timed: bool = True,
    baselines: Sequence[str] | None = None,
    cap_s: float | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    judges: JudgeServer | None = None,
) -> Verdict:
    """Evaluate one solution against one problem and return the verdict.

    Runs in processes of its own: neither file is imported here, and nothing that they do can
    hurt the caller. Safe to call from several threads at once, from any folder and from a
    script without a ``__main__`` guard; whoever measures on a device has it alone.

    Args:
        problem: file with ``Model``, ``get_inputs`` and ``get_init_inputs``.
        solution: file with ``ModelNew``.
        device: ``auto``, ``cuda``, ``cuda:N``, ``emulated`` or ``cpu``.
        mode: ``forward``, ``eval`` or ``train``; None checks what the problem's settings say.
        size: a named size of the problem, ``full`` or ``small``; None is the device's default.
        quick: small size and fewest trials.
        seed: replay this seed; None draws a secret one.
        timeout_s: limit for one phase, seconds.
        time_limit_s: limit for all phases, seconds; waiting and compiling do not count.
        timed: whether speed is measured where the device allows it.
        baselines: what to compare with: ``eager`` (always), ``compile``, ``max-autotune``; None is
            eager, and on a GPU compile, too.
        cap_s: seconds for the timed blocks; None is 8, or 2 where quick.
        cache_dir: where built extensions are kept; None is the default cache.
        log_dir: where the log is written; None is the default folder.
        judges: forks the judges of many calls: ``with harness.fleet.JudgeServer() as judges``
            saves each call but the first three seconds of imports. None starts a program.

    Returns:
        One verdict, whatever the two files do. What is wrong inside the problem file, its
        settings included, is INVALID_REFERENCE; inside the solution, a status of the solution.

    Raises:
        UsageError: a file does not exist, or an option is not valid.
    """
    from harness.fleet import run_pairs
    from harness.pairs.discover import pair_from_files

    pair = pair_from_files(Path(problem), Path(solution))
    options = Options(
        device=device,
        mode=mode,
        size=size,
        quick=quick,
        seed=seed,
        timeout_s=timeout_s,
        time_limit_s=time_limit_s,
        jobs=1,
        timed=timed,
        baselines=None if baselines is None else tuple(baselines),
        cap_s=cap_s,
        cache_dir=None if cache_dir is None else Path(cache_dir).resolve(),
        log_dir=None if log_dir is None else Path(log_dir).resolve(),
    )
    (verdict,) = run_pairs([pair], options, judges=judges)
    return verdict
