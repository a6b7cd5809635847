"""The page in a real Chromium: it sorts, unfolds, follows links, and fits a phone."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.domain import Baseline, Bound, Run, SpeedOutcome, Status
from harness.gate import check, stored_from_run
from harness.report import render_page
from tests.records import H200, run, speed, verdict

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a headless Chromium; the tests are skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs Chromium: none of {', '.join(names)} is on PATH, CHROMIUM is not set")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with pairs of three speeds, a failure and an earlier run."""
    log = tmp_path_factory.mktemp("log") / "pair.log"
    log.write_text(f"nvcc: error\n{EVIL}\n{'x' * 500}\n")
    baseline = Baseline(
        name="torch.compile", outcome=SpeedOutcome.FASTER, speedup=1.1, low=1.09, high=1.11
    )
    timed = {
        f"{name}_with_a_rather_long_name/solution": dataclasses.replace(
            speed(ratio),
            baselines=(dataclasses.replace(baseline, baseline_ms=2.0),),
            bound=Bound(bound_ms=1.0, share=0.5, moved_bytes=1),
        )
        for name, ratio in (("slow", 0.9), ("fast", 12.5), ("middling", 2.25))
    }
    verdicts = [verdict(name, speed=given) for name, given in timed.items()]
    wrong = verdict(
        "wrong/solution", status=Status.CRASHED, message=EVIL, notes=(EVIL,), log=str(log)
    )
    whole = run(*verdicts, wrong)
    earlier: Run = dataclasses.replace(whole, environment={**H200, "date": "2026-11-01"})
    earlier = dataclasses.replace(earlier, source="earlier.json")
    checked = check(stored_from_run(run(*verdicts)), whole)[1]
    target = tmp_path_factory.mktemp("page") / "page.html"
    page = render_page(checked, [earlier], lambda v: ("solution.py", f"import torch\n{EVIL}"))
    target.write_text(page, encoding="utf-8")
    return target


@pytest.fixture(params=["light", "dark"])
def opened(browser: Any, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return the page, opened without any network; console errors fail the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=request.param)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(5000)
    page.goto(page_file.as_uri())
    yield page
    assert said == []
    assert asked == [page_file.as_uri()] or all(url.startswith("file:") for url in asked)
    page.close()


def first_cells(page: Any) -> list[str]:
    names: list[str] = page.locator("#pairs tbody tr td:first-child").all_inner_texts()
    return [name.split("_")[0].split("/")[0] for name in names]


def test_heads_sort_by_value_both_ways_with_empty_cells_last(opened: Any) -> None:
    head = opened.get_by_role("button", name="speedup", exact=True)
    head.click()
    assert first_cells(opened) == ["slow", "middling", "fast", "wrong"]
    head.click()
    assert first_cells(opened) == ["fast", "middling", "slow", "wrong"]
    opened.get_by_role("button", name="pair", exact=True).click()
    assert first_cells(opened) == ["fast", "middling", "slow", "wrong"]


def test_link_in_the_table_opens_its_pair(opened: Any) -> None:
    details = opened.locator("details.pair").nth(1)
    assert not details.evaluate("e => e.open")
    opened.locator("#pairs a").nth(1).click()
    details.locator("svg").first.wait_for(state="visible")
    assert details.evaluate("e => e.open")
    assert details.locator("svg").count() == 3


def test_failure_stands_open_with_its_log_and_nothing_of_it_runs(opened: Any) -> None:
    failed = opened.locator("details.pair").last
    assert failed.evaluate("e => e.open")
    assert "nvcc: error" in failed.locator("pre.log").inner_text()
    failed.get_by_text("Source: solution.py").click()
    assert "import torch" in failed.locator("pre.source").inner_text()
    assert opened.title() == "3 of 4 kernel pairs passed on NVIDIA H200"
    assert opened.locator("img").count() == 0


def test_text_is_readable_in_light_and_dark(opened: Any) -> None:
    """WCAG's contrast of 4.5 for every kind of text on the page."""
    contrasts = opened.evaluate(
        """() => {
            const parse = c => c.match(/[\\d.]+/g).map(Number);
            const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const light = c => { const [r, g, b] = parse(c).map(channel);
                                 return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const behind = e => { for (; e; e = e.parentElement) {
                const c = getComputedStyle(e).backgroundColor;
                if (parse(c).length < 4 || parse(c)[3] > 0) return c; } };
            const seen = {};
            for (const q of ["h1", ".sub", "p", ".chip.good", ".chip.bad", "#pairs td", "a",
                             "#pairs button", "figcaption", "pre.log", ".facts th"]) {
                const e = document.querySelector(q);
                const a = light(getComputedStyle(e).color), b = light(behind(e));
                seen[q] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            }
            return seen;
        }"""
    )
    assert {kind: ratio for kind, ratio in contrasts.items() if ratio < 4.5} == {}


def test_page_fits_a_phone(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 844})
    for details in opened.locator("details").all():
        details.evaluate("e => { e.open = true; }")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = opened.evaluate(
        "Array.from(document.querySelectorAll('svg text')).map("
        "t => t.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 9
