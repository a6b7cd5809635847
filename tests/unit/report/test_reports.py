"""Page, Markdown, JUnit, table and comparison: from records alone, and safe from their texts."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from pathlib import Path

import junitparser
import pytest
import xmlschema

from harness.domain import (
    Baseline,
    Bound,
    Finding,
    GateClass,
    GateDecision,
    PairDecision,
    Run,
    Speed,
    SpeedOutcome,
    Status,
    UsageError,
)
from harness.gate import check as gate_check
from harness.gate import stored_from_run
from harness.report import (
    explain_gate,
    read_run,
    render_comparison,
    render_junit,
    render_markdown,
    render_page,
    render_run,
    render_table,
)
from harness.report.text import clean
from tests.records import H200, check, run, speed, verdict

HOSTILE = "<script>alert(1)</script> </pre>`x` | @everyone [a](http://b) \x1b[31m\x00 ]]> 'q\" _e_"
SCHEMA = xmlschema.XMLSchema(str(Path(__file__).with_name("junit-10.xsd")))


def rich_speed(speedup: float) -> Speed:
    """Return a speed with everything that a GPU run has."""
    return dataclasses.replace(
        speed(speedup, noise_floor=0.002),
        baselines=(
            Baseline(
                name="torch.compile",
                outcome=SpeedOutcome.SAME,
                speedup=1.02,
                low=1.01,
                high=1.03,
                baseline_ms=1.9,
            ),
            Baseline(name="torch.compile max-autotune-no-cudagraphs", note=HOSTILE),
        ),
        bound=Bound(bound_ms=1.0, share=0.54, moved_bytes=1),
    )


@pytest.fixture
def hostile(tmp_path: Path) -> Run:
    """Return a run with a passed pair and one whose every text is hostile."""
    log = tmp_path / "pair.log"
    log.write_text(f"first\n{HOSTILE}\nlast")
    evil = verdict(
        f"p{HOSTILE}/s",
        status=Status.MEMORY_FAULT,
        message=HOSTILE,
        checks=(check(HOSTILE, precision=HOSTILE),),
        precision=HOSTILE,
        notes=(HOSTILE,),
        findings=(Finding(kind=HOSTILE, message=HOSTILE, file=HOSTILE, line=2),),
        replay=HOSTILE,
        reproducer=f"{HOSTILE}\n{HOSTILE}",
        log=str(log),
        phases={HOSTILE: 1.0},
        size=HOSTILE,
    )
    fine = verdict("add/solution", speed=rich_speed(1.62), notes=(HOSTILE,), phases={"build": 2.5})
    gate = GateDecision(
        baseline=HOSTILE,
        pairs=(
            PairDecision(pair="add/solution", gate_class=GateClass.OK, change=0.001),
            PairDecision(pair=evil.pair, gate_class=GateClass.REGRESSED, reason=HOSTILE),
            PairDecision(pair="gone/solution", gate_class=GateClass.MISSING, what="pair"),
        ),
        exit_code=1,
    )
    whole = run(fine, evil, gate=gate, exit_code=1)
    return dataclasses.replace(whole, environment={**H200, "cpu": HOSTILE})


class Tags(html.parser.HTMLParser):
    """Collects tags, attributes and the text of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_page_holds_what_people_look_for(hostile: Run) -> None:
    page = render_page(hostile)
    for piece in (
        "1 of 2 pairs passed",
        "NVIDIA H200",
        "1.62x [1.62, 1.62] faster",
        "vs compile",
        "1.02x [1.01, 1.03]",
        "54 %",
        "Blame: solution",
        "REGRESSED",
        "End of the log",
    ):
        assert piece in page, piece
    assert "The baseline has these pairs, this run has not: gone/solution" in page


def test_page_runs_no_script_but_its_own_and_loads_nothing(hostile: Run) -> None:
    page = render_page(hostile, source_of=lambda v: (HOSTILE, f"a\n{HOSTILE}\n"))
    tags = parsed(page)
    assert tags.tags.count("script") == 1
    assert not set(tags.tags) & {"img", "link", "iframe", "object", "base"}
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name == "src"]
    links = {value for name, value in tags.attributes if name in ("href", "xlink:href")}
    assert all(link and link.startswith("#") for link in links)
    assert "default-src 'none'" in page
    assert not {"\x1b", "\x00"} & set(page)


def test_page_shows_the_source_of_a_failure_with_its_line_marked(hostile: Run) -> None:
    page = render_page(hostile, source_of=lambda v: ("solution.py", "one\ntwo\nthree"))
    assert page.count("Source: solution.py") == 1
    assert re.search(r'<span class="marked"><i>2</i>two', page)


def test_page_has_plots_and_a_history(hostile: Run) -> None:
    earlier = [
        dataclasses.replace(hostile, source=str(i), environment={**H200, "date": f"2026-11-{i}"})
        for i in range(10, 13)
    ]
    tags = parsed(render_page(hostile, earlier))
    assert tags.tags.count("svg") == 6  # speedups, bounds; times, errors, history; errors
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_page_without_matplotlib_says_so(hostile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.report.plots.have_matplotlib", lambda: False)
    page = render_page(hostile)
    assert "Plots need matplotlib" in page
    assert "svg" not in parsed(page).tags


def test_page_of_a_run_without_a_gpu_and_of_nothing_at_all() -> None:
    emulated = verdict(device="emulated", speed=Speed(), checks=())
    assert "untimed" in render_page(run(emulated))
    assert "nothing was evaluated" in render_page(Run(verdicts=(), error="no pairs"))


def test_junit_is_valid_and_read_by_a_consumer(hostile: Run, tmp_path: Path) -> None:
    target = tmp_path / "junit.xml"
    target.write_text(render_junit(hostile), encoding="utf-8")
    SCHEMA.validate(str(target))
    (suite,) = junitparser.JUnitXml.fromfile(str(target))
    assert (suite.tests, suite.failures, suite.errors) == (3, 2, 0)
    cases = {case.name: case for case in suite}
    assert cases["add/solution"].is_passed
    assert cases["add/solution"].time == 2.5
    assert "kernel launches: 2" in cases["add/solution"].system_out
    evil = cases[clean(hostile.verdicts[1].pair)]
    assert [result.type for result in evil.result] == ["MEMORY_FAULT"]
    assert evil.system_out.endswith("| last")
    assert cases["gone/solution"].result[0].type == "MISSING"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.SKIPPED, junitparser.Skipped),
        (Status.HARNESS_ERROR, junitparser.Error),
        (Status.INVALID_REFERENCE, junitparser.Failure),
    ],
)
def test_junit_tells_skips_errors_and_failures_apart(status: Status, kind: type) -> None:
    text = render_junit(run(verdict(status=status, message="why")))
    SCHEMA.validate(text)
    (suite,) = junitparser.JUnitXml.fromstring(text.encode())
    (case,) = suite
    assert isinstance(case.result[0], kind)
    assert case.result[0].message == "why"


def test_pair_that_passed_and_regressed_is_a_failure_in_junit() -> None:
    whole = run(verdict("add/solution", speed=speed(1.5)))
    stored = stored_from_run(run(verdict("add/solution", speed=speed(1.62))))
    (suite,) = junitparser.JUnitXml.fromstring(render_junit(gate_check(stored, whole)[1]).encode())
    (case,) = suite
    assert case.result[0].type == "REGRESSED"
    assert "1.620x -> 1.500x" in case.result[0].message


def test_markdown_says_what_changed_first_and_folds_the_rest(hostile: Run) -> None:
    lines = render_markdown(hostile).splitlines()
    assert lines[0] == "## ✘ 1 of 2 pairs passed on NVIDIA H200"
    text = "\n".join(lines)
    assert text.index("REGRESSED") < text.index("<details")
    assert "<details><summary>All pairs</summary>" in text
    assert "| <code>add/solution</code> | PASSED | 1.62x" in text


def test_markdown_cannot_be_formatted_linked_or_mentioned_from_a_pair(hostile: Run) -> None:
    text = render_markdown(hostile)
    outside = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    assert "<script" not in text
    assert "@everyone" not in outside
    assert "http://" not in outside
    assert "`" not in outside
    assert text.count("</pre>") == 1
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} <= {7, 11, 3}


def test_markdown_of_many_failures_fits_into_a_comment() -> None:
    verdicts = [
        verdict(f"p{i}/s", status=Status.CRASHED, message="m" * 900, replay="r" * 900)
        for i in range(1000)
    ]
    text = render_markdown(run(*verdicts))
    assert len(text) < 65_536
    assert "more rows" in text
    assert "more failures are in the job's artifacts" in text


def test_table_has_columns_for_further_baselines_bound_and_gate(hostile: Run) -> None:
    table = render_table(hostile.verdicts, gate=hostile.gate)
    head = clean(table.splitlines()[0])
    for column in ("vs compile", "vs max-autotune", "of bound", "gate"):
        assert column in head
    assert "1.02x [1.01, 1.03]" in table
    assert "54 %" in table
    assert "OK +0.1 %" in table


def test_table_without_further_baselines_has_no_empty_columns() -> None:
    head = render_table([verdict()]).splitlines()[0]
    assert "vs" not in head.split()
    assert "gate" not in head.split()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_table_fits_narrow_terminals(width: int) -> None:
    verdicts = [verdict("groupnorm/solution", speed=rich_speed(1.62))]
    table = render_table(verdicts, width=width, colour=True)
    assert max(len(clean(line)) for line in table.splitlines()) <= width
    assert "groupnorm/solution" in table
    assert "PASSED" in table
    assert "1.62x" in table


def test_table_is_coloured_only_where_asked() -> None:
    assert "\x1b[32mPASSED\x1b[0m" in render_table([verdict()], colour=True)
    assert "\x1b" not in render_table([verdict()])


def test_gate_says_the_worst_first(hostile: Run) -> None:
    assert hostile.gate is not None
    lines = explain_gate(hostile.gate).splitlines()
    assert lines[0].endswith("1 OK, 1 REGRESSED, 1 MISSING")
    assert [line.split()[0] for line in lines[1:]] == ["REGRESSED", "MISSING"]


def test_run_is_read_back_as_it_was_written(hostile: Run, tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    target.write_text(render_run(hostile))
    assert read_run(target) == dataclasses.replace(hostile, source=str(target))


def test_document_of_schema_1_is_read_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    plain = json.loads(render_run(run(verdict())))
    for key in ("measurement_version", "gate"):
        del plain[key]
    target.write_text(json.dumps({**plain, "schema_version": 1}))
    assert read_run(target).measurement_version == 1
    target.write_text(json.dumps({**plain, "schema_version": 99}))
    with pytest.raises(UsageError, match="schema 99"):
        read_run(target)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 2}'])
def test_damaged_document_is_refused_by_name(tmp_path: Path, text: str) -> None:
    target = tmp_path / "run.json"
    target.write_text(text)
    with pytest.raises(UsageError, match=r"run\.json"):
        read_run(target)


def test_comparison_shows_both_runs_and_the_verdict() -> None:
    before = run(verdict("add/s", speed=speed(1.0)), verdict("old/s"))
    after = run(verdict("add/s", speed=speed(0.9)), verdict("new/s", status=Status.CRASHED))
    decision, _ = gate_check(stored_from_run(before), after)
    said = render_comparison(before, after, decision)
    rows: dict[str, str] = {line.split()[0]: line for line in said.splitlines() if "/s" in line}
    assert "-10.0 %" in rows["add/s"] and "REGRESSED" in rows["add/s"]
    assert "PASSED -> absent" in rows["old/s"]
    assert "absent -> CRASHED" in rows["new/s"]
