"""The run-time library and the header are built once and kept between test runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.worker import cuda_on_cpu

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def support() -> Path:
    """Return the support folder of the harness's own cache, filled."""
    folder = Path(os.environ.get("KERNEL_EVAL_CACHE", ROOT / ".cache")) / "support"
    cuda_on_cpu.prepare(folder)
    return folder
