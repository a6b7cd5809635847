"""The documentation says what is there: links, files, statuses and notes that it names exist."""

import re
from pathlib import Path

import pytest

from harness.domain import Status

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
HARNESS = sorted((ROOT / "harness").rglob("*.py"))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", without_code(page.read_text())):
        target = "".join(link)
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    for path in re.findall(r"`((?:harness|tests|benchmarks)/[\w/.]+)`", page.read_text()):
        if path.startswith("harness/") and path.endswith(".py"):
            # Files may move between folders: a name that is nowhere has gone.
            assert any(found.name == Path(path).name for found in HARNESS), path
        elif not path.startswith("harness/"):
            assert (ROOT / path).exists(), path


def test_every_status_has_a_row() -> None:
    rows = re.findall(r"^\| ([A-Z_, ]+) \|", (ROOT / "docs/verdicts.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in row.split(", ")]
    assert sorted(named) == sorted(status.value for status in Status)


def test_notes_of_undecided_pairs_are_those_of_the_judge() -> None:
    page = (ROOT / "docs/measurement.md").read_text()
    section = page.partition("## Why is my pair UNDECIDED?")[2].partition("\n## ")[0]
    notes = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    said = "".join(path.read_text() for path in (ROOT / "harness/judge").rglob("*.py"))
    assert len(notes) >= 8
    assert [note for note in notes if note not in said] == []
