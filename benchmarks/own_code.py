"""Writes a folder of pairs in which each problem's solution is the problem's own code.

``python benchmarks/own_code.py KERNELBENCH ROOT`` takes the folder of a KernelBench checkout that
holds ``level1`` to ``level3``. ``run_eval.py --root ROOT`` then has to accept every pair, at the
same speed as the reference; ``benchmarks/acceptance.py ROOT RUN --own`` shows whether it did.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path


def own_solution(problem: str) -> str:
    """Return the source of a solution that calls the same operators as the problem.

    Raises:
        ValueError: the problem has no class Model.
    """
    source = problem.replace("class Model(", "class ModelNew(").replace(
        "super(Model, self)", "super(ModelNew, self)"
    )
    if "class ModelNew(" not in source:
        raise ValueError("the problem has no class Model")
    return source


def write_pairs(kernelbench: Path, root: Path, levels: Sequence[int]) -> list[str]:
    """Write the problems of some levels and their own code; return the pairs' names.

    A problem ``level1/7_Name.py`` becomes ``l1_007_Name``, so that names sort by number.
    """
    written = []
    for level in levels:
        for path in sorted((kernelbench / f"level{level}").glob("*.py")):
            numbered = re.fullmatch(r"(\d+)_(.+)", path.stem)
            if not numbered:
                continue
            name = f"l{level}_{int(numbered[1]):03d}_{numbered[2]}"
            problem, solution = root / "problems" / name, root / "solutions" / name
            problem.mkdir(parents=True, exist_ok=True)
            solution.mkdir(parents=True, exist_ok=True)
            (problem / "reference.py").write_bytes(path.read_bytes())
            own = own_solution(path.read_text(encoding="utf-8"))
            (solution / "own.py").write_text(own, encoding="utf-8")
            written.append(f"{name}/own")
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("kernelbench", type=Path, help="folder that holds level1, level2, level3")
    parser.add_argument("root", type=Path, help="folder to write problems/ and solutions/ to")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args(argv)
    written = write_pairs(options.kernelbench, options.root, options.levels)
    if not written:
        print(
            f"own_code.py: {options.kernelbench}: no level*/N_NAME.py. "
            "Next: name the folder KernelBench/ inside a KernelBench checkout",
            file=sys.stderr,
        )
        return 2
    print(f"{len(written)} pairs under {options.root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
