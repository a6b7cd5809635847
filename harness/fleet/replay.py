"""The command that replays a verdict."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from harness.domain import Options, Pair
from harness.fleet.key import SCHEDULING
from harness.machine.environment import PROJECT_ROOT

NOT_REPLAYED = SCHEDULING | {"timed"}
"""Options that the command leaves out. The command line has none for ``timed``: it measures."""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


_WORDS: Mapping[str, Callable[[Any], list[str]]] = {
    "device": lambda device: ["--device", device],
    "seed": lambda seed: ["--seed", str(seed)],
    "size": lambda size: ["--size", size],
    "mode": lambda mode: ["--mode", mode],
    "quick": lambda _: ["--quick"],
    "precision": lambda precision: ["--precision", precision],
    "timeout_s": lambda seconds: ["--timeout", _number(seconds)],
    "time_limit_s": lambda seconds: ["--time-limit", _number(seconds)],
    "baselines": lambda names: ["--baselines", ",".join(names)],
    "cap_s": lambda seconds: ["--cap", _number(seconds)],
    "warm_l2": lambda _: ["--warm-l2"],
    "ncu": lambda _: ["--ncu"],
    # The command line takes one order, or runs all of them.
    "thread_orders": lambda orders: ["--thread-order", *orders] if len(orders) == 1 else [],
    "nvcc": lambda architectures: ["--nvcc", ",".join(architectures)],
    "fast_headers": lambda _: ["--no-fast-headers"],
    "memory_bytes": lambda held: ["--memory", repr(held / 2**30)],
}
"""The words for each option whose value is not the default."""


def replay_command(pair: Pair, options: Options) -> str:
    """Return the command line that evaluates a pair again as it was evaluated.

    Args:
        pair: a pair that stands below a root is named; any other is given by its files.
        options: as they were, with the device, the seed and the size that were used.
    """
    words = ["python", "run_eval.py"]
    problem, _, solution = pair.name.partition("@")[0].partition("/")
    root = next(iter(pair.problem.parents[2:3]), PROJECT_ROOT)
    if (
        pair.problem == root / "problems" / problem / "reference.py"
        and pair.solution == root / "solutions" / problem / f"{solution}.py"
    ):
        words += [f"{problem}/{solution}"]
        words += [] if root == PROJECT_ROOT else ["--root", str(root)]
    else:
        words += ["--problem", str(pair.problem), "--solution", str(pair.solution)]
    default = Options()
    for name, words_of in _WORDS.items():
        value = getattr(options, name)
        if value != getattr(default, name):
            words += words_of(value)
    return shlex.join(words)
