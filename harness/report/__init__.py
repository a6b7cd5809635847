"""What people and programs read. Reads verdicts, decides nothing."""

from __future__ import annotations

from harness.report.document import render_document, write_document
from harness.report.explain import explain, explain_in_full, explain_run
from harness.report.progress import Progress, open_progress
from harness.report.table import FORMATS, render_table, summarize

__all__ = [
    "FORMATS",
    "Progress",
    "explain",
    "explain_in_full",
    "explain_run",
    "open_progress",
    "render_document",
    "render_table",
    "summarize",
    "write_document",
]
