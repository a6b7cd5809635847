"""The corpus: honest kernels run clean and right, defective ones give their finding, in any order.

Each source file is built once; each case runs in a process of its own (see runner.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.cases import DEFECTS, HONEST
from tests.emulator.runner import KERNELS, ORDERS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def outcome(support: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function: source name to the results of its cases, built and run once."""
    known: dict[str, dict[str, Any]] = {}

    def of(source: str) -> dict[str, Any]:
        if source not in known:
            folder = tmp_path_factory.mktemp(source.replace(".", "_"))
            done = subprocess.run(
                [sys.executable, "-m", "tests.emulator.runner", str(support), str(folder), source],
                capture_output=True,
                text=True,
                timeout=900,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            assert done.returncode == 0, done.stderr[-3000:]
            known[source] = json.loads(done.stdout.strip().split("\n")[-1])
        return known[source]

    return of


@pytest.mark.parametrize("name", sorted(HONEST))
def test_honest_kernel_is_right_and_clean_in_every_thread_order(name: str, outcome: Any) -> None:
    result = outcome(HONEST[name].source)[name]
    assert "died" not in result, result
    for order in ORDERS:
        run = result[order]
        assert run["error"] == ""
        assert run["findings"] == []
        assert run["launches"] >= 1
        assert run["deviation"] <= HONEST[name].tolerance


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_defect_gives_its_finding_in_every_thread_order(name: str, outcome: Any) -> None:
    case = DEFECTS[name]
    result = outcome(case.source)[name]
    assert "died" not in result, result
    source = (KERNELS / case.source).read_text().split("\n")
    lines = [i for i, text in enumerate(source, 1) if re.search(rf"// BUG {name}\b", text)]
    for order in case.orders:
        findings = result[order]["findings"]
        of_kind = [f for f in findings if f["kind"] in case.kinds]
        assert of_kind, (order, findings)
        if case.marked:
            assert any(f["line"] in lines for f in of_kind), (order, lines, of_kind)
            assert all(f["file"] == case.source for f in of_kind)
            assert all(f["kernel"] for f in of_kind)


def test_corpus_is_large_enough() -> None:
    assert len(HONEST) >= 30
    assert len(DEFECTS) >= 30
