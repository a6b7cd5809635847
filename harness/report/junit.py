"""Writes JUnit XML with a test case per pair, for programs that show test results.

The form is Jenkins' schema (xunit plugin, junit-10.xsd), which GitLab, Azure and the readers on
GitHub accept, too: no properties on a case, one failure each, the log in system-out.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from harness.domain import Blame, GateClass, PairDecision, Run, Status, Verdict
from harness.report.explain import explain_in_full, log_tail
from harness.report.text import clean, one_line

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_PASSING = (GateClass.OK, GateClass.IMPROVED)
_LOG_LINES = 200


def render_junit(run: Run) -> str:
    """Return the run as JUnit XML.

    A pair that did not pass is a failure, a fault of the harness an error, a skip a skip. A pair
    that passed and that the gate rejects is a failure of the gate's class. A stored pair that was
    not run is a failure, too.
    """
    answers = {decision.pair: decision for decision in run.gate.pairs} if run.gate else {}
    cases = [_case(run, verdict, answers.pop(verdict.pair, None)) for verdict in run.verdicts]
    cases += [_missing(decision) for decision in answers.values()]
    total_s = sum(sum(verdict.phases.values()) for verdict in run.verdicts)
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
    }
    skipped = str(sum(case.find("skipped") is not None for case in cases))
    time_s = {"time": f"{total_s:.3f}"}
    suites = ET.Element("testsuites", {"name": "kernel-eval", **counts, **time_s})
    suite = ET.SubElement(
        suites,
        "testsuite",
        {
            "name": "pairs",
            **counts,
            **time_s,
            "skipped": skipped,
            "timestamp": _text(run.environment.get("date") or "")[:19],
        },
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in run.environment.items():
        words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        ET.SubElement(properties, "property", {"name": _text(name), "value": _text(words)})
    suite.extend(cases)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _case(run: Run, verdict: Verdict, answer: PairDecision | None) -> ET.Element:
    """Return a test case: the failure if there is one, then every fact, then the log."""
    case = _named(verdict.pair, sum(verdict.phases.values()))
    message = one_line(verdict.message)
    if verdict.status is Status.SKIPPED:
        ET.SubElement(case, "skipped", {"message": _text(message)})
    elif verdict.status is not Status.PASSED:
        kind = "error" if verdict.blame is Blame.HARNESS else "failure"
        text = f"{verdict.status.value} (blame: {verdict.blame.value}): {message}"
        _problem(case, kind, verdict.status.value, message, f"{text}\nreplay: {verdict.replay}")
    elif answer is not None and answer.gate_class not in _PASSING:
        _problem(case, "failure", answer.gate_class.value, answer.reason, answer.reason)
    said = explain_in_full(verdict)
    said += "".join(f"\n| {line}" for line in log_tail(run, verdict, _LOG_LINES))
    ET.SubElement(case, "system-out").text = _text(said)
    return case


def _missing(answer: PairDecision) -> ET.Element:
    case = _named(answer.pair, 0.0)
    _problem(case, "failure", answer.gate_class.value, answer.reason, answer.reason)
    return case


def _named(pair: str, spent_s: float) -> ET.Element:
    problem, _, solution = clean(pair).partition("/")
    return ET.Element(
        "testcase",
        {
            "classname": _text(problem),
            "name": _text(f"{problem}/{solution}" if solution else problem),
            "time": f"{spent_s:.3f}",
        },
    )


def _problem(case: ET.Element, kind: str, type_: str, message: str, text: str) -> None:
    attributes = {"type": _text(type_), "message": _text(one_line(message))}
    ET.SubElement(case, kind, attributes).text = _text(text)


def _text(value: object) -> str:
    """Return text without terminal codes and characters that XML 1.0 forbids."""
    return _NOT_XML.sub("", clean(str(value)))
