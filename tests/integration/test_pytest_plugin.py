"""``pytest --pairs``: each pair an item, with its verdict as its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.domain import Pair
from tests.fake_judge import COMMAND as FAKE_JUDGE

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pairs(
    pytester: pytest.Pytester, make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """Return a folder with pairs whose judge plays their parts."""
    monkeypatch.setattr("harness.fleet.run.JUDGE_COMMAND", FAKE_JUDGE)
    monkeypatch.setattr("harness.fleet.logs.PROJECT_ROOT", pytester.path)
    for name in ("a/passes", "a/wrong", "b/fast", "b/skipped"):
        make_pair(name)
    for folder in ("problems", "solutions"):
        (Path(make_pair("a/passes").problem).parents[2] / folder).rename(pytester.path / folder)
    # Solutions raise when they are imported: the plugin must not.
    for path in pytester.path.glob("solutions/*/*.py"):
        path.write_text("raise SystemExit\nclass ModelNew: ...\n")
    pytester.makepyfile(test_mine="def test_mine(): pass")
    pytester.makeini("[pytest]\ntestpaths = .\n")
    return pytester


def run(pytester: pytest.Pytester, *argv: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(
        "-p", "harness.pytest_plugin", "--pairs", "--pairs-device", "emulated", *argv
    )


def test_each_pair_is_an_item(pairs: pytest.Pytester) -> None:
    result = run(pairs, "-v")
    result.assert_outcomes(passed=2, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*a/passes*PASSED*", "*a/wrong*FAILED*", "*b/skipped*SKIPPED*"])


def test_failure_says_what_the_report_says(pairs: pytest.Pytester) -> None:
    result = run(pairs)
    result.stdout.fnmatch_lines(["a/wrong: WRONG_VALUES (blame: solution): off by one*"])
    result.stdout.fnmatch_lines(["  replay: python run_eval.py*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert result.ret is pytest.ExitCode.TESTS_FAILED


def test_pairs_are_chosen_by_name_and_by_file(pairs: pytest.Pytester) -> None:
    run(pairs, "-k", "fast").assert_outcomes(passed=1, deselected=3)
    run(pairs, "solutions/b/fast.py").assert_outcomes(passed=1)
    run(pairs, "solutions/a").assert_outcomes(passed=1, failed=1)


def test_figures_reach_pytests_own_junit(pairs: pytest.Pytester) -> None:
    run(pairs, "-k", "fast", "--junitxml=out.xml")
    text = (pairs.path / "out.xml").read_text()
    assert '<property name="speedup" value="2.00x [1.90, 2.10] faster"' in text


def test_without_the_option_nothing_changes(pairs: pytest.Pytester) -> None:
    result = pairs.runpytest_inprocess("-p", "harness.pytest_plugin")
    result.assert_outcomes(passed=1)


def test_bad_device_is_a_usage_error(pairs: pytest.Pytester) -> None:
    result = run(pairs, "-k", "fast", "--pairs-device", "abacus")
    result.stdout.fnmatch_lines(["*unknown device*"])
    assert result.ret not in (pytest.ExitCode.OK, pytest.ExitCode.INTERNAL_ERROR)
