"""One step of ``kernelbench_verdicts.py``: KernelBench's own code on one pair, in this process.

``python benchmarks/kernelbench_process.py JOB RESULT``: both are JSON files. This file imports
nothing of the harness, so that KernelBench runs as it does for its own users.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any


class BaseModel:
    """Replaces pydantic's: has the annotated fields of a class, with their defaults."""

    def __init__(self, **given: Any) -> None:
        for name in type(self).__annotations__:
            setattr(self, name, copy.deepcopy(given.pop(name, getattr(type(self), name, None))))
        if given:
            raise TypeError(f"unknown fields: {', '.join(given)}")


def _absent(*_given: object, **_named: object) -> None:
    raise RuntimeError("KernelBench called a package that is not installed; see STAND_INS")


# KernelBench imports these packages and does not use them to evaluate a CUDA solution.
STAND_INS: dict[str, dict[str, Any]] = {
    "dotenv": {"load_dotenv": lambda: None},  # called on import: there is no file of secrets here
    "litellm": {"completion": _absent},
    "openai": {"OpenAI": _absent},
    "pydantic": {"BaseModel": BaseModel},
    "requests": {},
    "tqdm": {"tqdm": _absent},
}


def stand_in() -> list[str]:
    """Replace the missing packages of STAND_INS; return their names."""
    missing = [name for name in STAND_INS if importlib.util.find_spec(name) is None]
    for name in missing:
        module = types.ModuleType(name)
        vars(module).update(STAND_INS[name])
        sys.modules[name] = module
    return missing


def probe(kernelbench: Any) -> dict[str, Any]:
    """Return whether KernelBench can evaluate here."""
    return {"cuda": bool(kernelbench.torch.cuda.is_available())}


def build(kernelbench: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Build a solution into its folder; return whether it was built, and else why not."""
    try:
        model = kernelbench.load_custom_model(_text(job["solution"]), {}, job["build_dir"])
    except BaseException as error:  # noqa: BLE001 - whatever a solution raises is its result
        return {"built": False, "error": describe(error)}
    return {"built": model is not None, "error": "" if model else "no ModelNew, or a syntax error"}


def evaluate(kernelbench: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Return KernelBench's verdict on a pair as plain JSON."""
    try:
        for _ in range(2):  # it returns None if another build holds a lock
            result = kernelbench.eval_kernel_against_ref(
                original_model_src=_text(job["problem"]),
                custom_model_src=_text(job["solution"]),
                num_correct_trials=job["trials"],
                num_perf_trials=job["timed_trials"],
                measure_performance=job["timed_trials"] > 0,
                build_dir=job["build_dir"],
                device=job["device"],
            )
            if result is not None:
                break
    except BaseException as error:  # noqa: BLE001 - as in KernelBench's scripts: it is not correct
        return {"compiled": None, "correctness": False, "metadata": {"error": describe(error)}}
    if result is None:
        return {
            "compiled": None,
            "correctness": None,
            "metadata": {"error": "another build held a lock"},
        }
    return {
        "compiled": result.compiled,
        "correctness": result.correctness,
        "runtime": result.runtime,
        "ref_runtime": result.ref_runtime,
        "metadata": result.metadata,
    }


def describe(error: BaseException) -> str:
    """Return an error as text with its type."""
    return f"{type(error).__name__}: {error}"


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def main() -> None:
    """Run the step of the job and write its result."""
    job = json.loads(_text(sys.argv[1]))
    sys.path.insert(0, job["kernelbench"])
    stand_in()
    kernelbench = importlib.import_module("kernelbench.eval")
    if job["step"] == "probe":
        result = probe(kernelbench)
    else:
        result = {"build": build, "evaluate": evaluate}[job["step"]](kernelbench, job)
    beside = Path(f"{sys.argv[2]}.part")
    beside.write_text(json.dumps(result, default=str), encoding="utf-8")
    beside.replace(sys.argv[2])


if __name__ == "__main__":
    main()
