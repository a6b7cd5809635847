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

    It runs in processes of its own: it imports neither file here, and the files cannot hurt the
    caller. Several threads may call it at once, from any folder and from a script without a
    ``__main__`` guard. One evaluation at a time measures on a device.

    Args:
        problem: file with ``Model``, ``get_inputs`` and ``get_init_inputs``.
        solution: file with ``ModelNew``.
        device: ``auto``, ``cuda``, ``cuda:N``, ``emulated`` or ``cpu``.
        mode: ``forward``, ``eval`` or ``train``; None: the modes of the problem's settings.
        size: a named size of the problem, ``full`` or ``small``; None is the device's default.
        quick: small size and few trials.
        seed: replay this seed; None draws a secret one.
        timeout_s: limit of one phase, seconds.
        time_limit_s: limit of all phases, seconds; waiting and compiling do not count.
        timed: whether to measure the speed, if the device allows it.
        baselines: of the speedup: ``eager`` (always), ``compile``, ``max-autotune``; None is eager,
            and on a GPU also compile.
        cap_s: seconds for the timed blocks; None is 8, or 2 if quick.
        cache_dir: folder for built extensions; None is the default cache.
        log_dir: folder for the log; None is the default folder.
        judges: forks the judges of many calls: ``with harness.fleet.JudgeServer() as judges``
            saves each call but the first three seconds of imports. None starts a program.

    Returns:
        One verdict, whatever the two files do. An error in the problem file or its settings is
        INVALID_REFERENCE; an error in the solution is a status of the solution.

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
