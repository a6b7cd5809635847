"""Draws the documentation's pictures from a stored run, in a real Chromium.

    python benchmarks/pictures.py results/RUN.json [earlier runs ...] --out docs/pictures

Writes ``page-wide.png`` (light), ``page-phone.png`` (dark, 390 px) and ``summary.png``: the
Markdown summary as a pull request shows it, rendered by markdown-it with GitHub's table rules.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.report import read_run, render_markdown, render_page

SUMMARY_STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2328; margin: 24px; }
table { border-collapse: collapse; margin: 0 0 16px; } th, td { border: 1px solid #d1d9e0;
padding: 6px 13px; } tr:nth-child(2n) td { background: #f6f8fa; }
code, pre { font: 85% ui-monospace, "DejaVu Sans Mono", monospace; background: #818b981f;
padding: .2em .4em; border-radius: 6px; } pre { padding: 16px; overflow: auto; }
h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; }
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--open", type=int, default=0, help="which pair stands open")
    options = parser.parse_args()
    runs = sorted(map(read_run, options.runs), key=lambda run: str(run.environment.get("date")))
    options.out.mkdir(parents=True, exist_ok=True)
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    body = markdown.render(render_markdown(runs[-1])).replace("<details>", "<details open>")
    texts = {
        "page": render_page(runs[-1], runs[:-1]),
        "summary": f"<!doctype html><meta charset=utf-8><style>{SUMMARY_STYLE}</style>{body}",
    }
    browser_file = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])

        def draw(text: str, name: str, width: int, height: int, scheme: Any, scale: float) -> None:
            file = Path(folder) / f"{name}.html"
            file.write_text(texts[text], encoding="utf-8")
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                device_scale_factor=scale,
            )
            page.goto(file.as_uri())
            if text == "page":
                page.locator("details.pair").nth(options.open).evaluate("e => { e.open = true; }")
            tall = page.evaluate("document.documentElement.scrollHeight")
            page.set_viewport_size({"width": width, "height": min(tall, height)})
            page.screenshot(path=options.out / f"{name}.png")
            page.close()

        draw("page", "page-wide", 1280, 1700, "light", 1)
        draw("page", "page-phone", 390, 1800, "dark", 1)
        draw("summary", "summary", 1400, 1000, "light", 1)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
