"""Makes ``pytest --pairs`` work in a checkout; an installed harness brings it by entry point."""

from __future__ import annotations

pytest_plugins = ["harness.pytest_plugin"]
