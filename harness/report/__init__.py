"""Reports for people and programs. Reads records and decides nothing."""

from __future__ import annotations

from harness.report.compare import render_comparison
from harness.report.document import read_run, render_run, write_document
from harness.report.explain import explain, explain_in_full, explain_run, keep_log_tails
from harness.report.junit import render_junit
from harness.report.markdown import render_markdown
from harness.report.page import render_page
from harness.report.progress import Progress, open_progress
from harness.report.table import FORMATS, explain_gate, render_table, summarize

__all__ = [
    "FORMATS",
    "Progress",
    "explain",
    "explain_gate",
    "explain_in_full",
    "explain_run",
    "keep_log_tails",
    "open_progress",
    "read_run",
    "render_comparison",
    "render_junit",
    "render_markdown",
    "render_page",
    "render_run",
    "render_table",
    "summarize",
    "write_document",
]
