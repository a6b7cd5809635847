"""Every test in this folder is marked ``unit``, and fails where it starts a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
STARTS = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen")

_running = ""


def _refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if _running and event in STARTS:
        raise AssertionError(
            f"{_running} is a unit test and starts a process ({event}: {arguments[:2]}). "
            "Next: move it to tests/integration or tests/end_to_end"
        )


sys.addaudithook(_refuse_processes)


def pytest_itemcollected(item: pytest.Item) -> None:
    if FOLDER in item.path.parents:
        item.add_marker("unit")


@pytest.fixture(autouse=True)
def no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    global _running  # an audit hook can't be taken away: it is told when it applies
    _running = request.node.nodeid
    yield
    _running = ""
