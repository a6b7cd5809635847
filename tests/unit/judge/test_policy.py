"""Every threshold of the judge says its reason, and the judge uses it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from harness.judge.policy import Policy

JUDGE = Path(__file__).parents[3] / "harness" / "judge"


def test_every_threshold_is_used_and_described() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in JUDGE.rglob("*.py"))
    described = re.findall(r"^        (\w[\w, ]*):", Policy.__doc__ or "", re.MULTILINE)
    names = [name for line in described for name in line.split(", ")]
    fields = [field.name for field in dataclasses.fields(Policy)]
    assert sorted(names) == sorted(fields)
    assert [name for name in fields if not re.search(rf"\.{name}\b", source)] == []
