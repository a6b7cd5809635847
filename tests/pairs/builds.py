"""Imports the pairs' references and solutions, built for the device that a test runs on.

The builds of the CPU runner are kept by content under `.cache`.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from unittest import mock

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"


def import_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def reference(problem: str) -> ModuleType:
    return import_file(ROOT / "problems" / problem / "reference.py", f"reference_{problem}")


@functools.cache
def on_gpu(problem: str) -> ModuleType:
    """The solution as a user imports it, built by torch's own load_inline."""
    return import_file(ROOT / "solutions" / problem / "solution.py", f"gpu_{problem}")


@functools.cache
def on_cpu(problem: str) -> ModuleType:
    """The solution built by the CPU runner."""
    from harness.worker.build import Builder

    path = ROOT / "solutions" / problem / "solution.py"
    builds = CACHE / "pair-tests"
    builder = Builder(
        device="emulated",
        cache=builds,
        build_folder=builds,
        support=CACHE / "support",
        solution=path,
        announce=lambda event, name: None,
    )
    with mock.patch.object(cpp_extension, "load_inline", builder.load_inline):
        return import_file(path, f"cpu_{problem}")


def runner(*, emulated: bool):
    """Answer CUDA's questions as on a GPU, or truthfully; return the runner's run time."""
    from harness.worker.cuda_on_cpu import Runtime

    return Runtime(CACHE / "support", answer_cuda=emulated)
