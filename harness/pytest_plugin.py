"""``pytest --pairs``: makes each pair a pytest item, so that IDEs, ``-k`` and ``-n`` work on pairs.

    pytest --pairs                                     every pair
    pytest --pairs -k groupnorm                        some
    pytest --pairs solutions/groupnorm/solution.py     one, by its file
    pytest --pairs --pairs-device cuda --junitxml out.xml

A pair is evaluated in processes of its own: pytest imports none of its files. With ``--pairs``
pytest collects pairs alone.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.domain import Options, Pair, Status, UsageError, Verdict
from harness.fleet import JudgeServer, run_pairs
from harness.pairs.discover import discover
from harness.report import explain
from harness.report.text import speedup

_PAIRS = pytest.StashKey[dict[Path, Pair]]()
_JUDGES = pytest.StashKey[JudgeServer]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--pairs`` and its options."""
    group = parser.getgroup("pairs", "kernel pairs")
    group.addoption("--pairs", action="store_true", help="evaluate pairs, each as an item")
    group.addoption("--pairs-root", metavar="FOLDER", help="folder of problems/ and solutions/ (.)")
    group.addoption("--pairs-device", default="auto", help="as run_eval.py --device (auto)")
    group.addoption("--pairs-size", help="as run_eval.py --size")
    group.addoption("--pairs-full", action="store_true", help="all trials, not --quick")
    group.addoption("--pairs-timeout", type=float, default=60.0, help="seconds per phase (60)")


def pytest_configure(config: pytest.Config) -> None:
    """Find the pairs. If the user gives no path, collect them from solutions/."""
    if not config.getoption("--pairs"):
        return
    config.stash[_JUDGES] = JudgeServer()
    config.add_cleanup(config.stash[_JUDGES].close)
    root = Path(config.getoption("--pairs-root") or config.invocation_params.dir).resolve()
    config.stash[_PAIRS] = {pair.solution.resolve(): pair for pair in discover(root).pairs}
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(root / "solutions")]


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Collect the pair of a solution file; with ``--pairs`` collect nothing else."""
    collectors = yield
    pairs = parent.config.stash.get(_PAIRS, None)
    if pairs is None:
        return collectors
    pair = pairs.get(file_path.resolve())
    return [PairFile.from_parent(parent, path=file_path, pair=pair)] if pair else []


class PairFile(pytest.File):
    """A solution file, in place of its pair."""

    def __init__(self, *, pair: Pair, **more: Any) -> None:
        super().__init__(**more)
        self._pair = pair

    @classmethod
    def from_parent(cls, parent: Any, **more: Any) -> Any:
        return super().from_parent(parent, **more)

    def collect(self) -> Iterator[pytest.Item]:
        yield PairItem.from_parent(self, name=self._pair.name, pair=self._pair)


class PairFailed(Exception):
    """A pair did not pass."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


class PairItem(pytest.Item):
    """One pair. Running the item evaluates it."""

    def __init__(self, *, pair: Pair, **more: Any) -> None:
        super().__init__(**more)
        self._pair = pair

    @classmethod
    def from_parent(cls, parent: Any, **more: Any) -> Any:
        return super().from_parent(parent, **more)

    def runtest(self) -> None:
        option = self.config.getoption
        options = Options(
            device=option("--pairs-device"),
            size=option("--pairs-size"),
            quick=not option("--pairs-full"),
            timeout_s=option("--pairs-timeout"),
            jobs=1,
        )
        try:
            judges = self.config.stash[_JUDGES]
            (verdict,) = run_pairs([self._pair], options, judges=judges)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error
        self.user_properties += [
            ("status", verdict.status.value),
            ("precision", verdict.precision or ""),
            ("max_abs_diff", str(verdict.max_abs_diff)),
            ("speedup", speedup(verdict.speed)),
        ]
        if verdict.status is Status.SKIPPED:
            pytest.skip(verdict.message)
        if verdict.status is not Status.PASSED:
            raise PairFailed(verdict)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, PairFailed):
            return explain(excinfo.value.verdict)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str], int | None, str]:
        return self.path, None, self.name
