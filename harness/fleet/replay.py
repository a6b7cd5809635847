"""The command that replays a verdict."""

from __future__ import annotations

import shlex

from harness.domain import Options, Pair
from harness.machine.environment import PROJECT_ROOT


def replay_command(pair: Pair, options: Options, *, seed: int) -> str:
    """Return the command line that evaluates a pair again as it was evaluated.

    Args:
        pair: a pair of this checkout is named, any other is given by its files.
        options: as they were, the device resolved.
        seed: the seed that was used.
    """
    words = ["python", "run_eval.py"]
    problem, _, solution = pair.name.partition("@")[0].partition("/")
    own = (
        pair.problem == PROJECT_ROOT / "problems" / problem / "reference.py"
        and pair.solution == PROJECT_ROOT / "solutions" / problem / f"{solution}.py"
    )
    if own:
        words.append(f"{problem}/{solution}")
    else:
        words += ["--problem", str(pair.problem), "--solution", str(pair.solution)]
    words += ["--device", options.device, "--seed", str(seed)]
    if options.mode:
        words += ["--mode", options.mode]
    if options.size:
        words += ["--size", options.size]
    if options.quick:
        words.append("--quick")
    if options.timeout_s != Options().timeout_s:
        words += ["--timeout", f"{options.timeout_s:g}"]
    if options.time_limit_s != Options().time_limit_s:
        words += ["--time-limit", f"{options.time_limit_s:g}"]
    return shlex.join(words)
