"""Imports between rooms follow the arrows below, and the arrows form no circle."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "harness"

# The rooms that each room may import. A room is a folder of harness/, or one of judge/'s inner
# folders. Three files are rooms too: two that stand loose in harness/, and judge/policy.py, which
# the folders of judge/ import.
ARROWS: dict[str, set[str]] = {
    "domain": set(),
    "usercode": {"domain"},
    "ipc": {"domain"},
    "machine": {"domain"},
    "pairs": {"domain"},
    "judge/policy": set(),
    "judge/reference": {"domain", "ipc", "judge/policy", "usercode"},
    "judge/workers": {"domain", "ipc", "judge/policy", "judge/reference", "machine", "usercode"},
    "judge/check": {"domain", "ipc", "judge/policy", "judge/reference", "judge/workers"}
    | {"usercode"},
    "judge/timing": {"domain", "ipc", "judge/check", "judge/reference", "judge/workers"}
    | {"machine", "usercode"},
    "judge": {"domain", "judge/check", "judge/policy", "judge/reference", "judge/timing"}
    | {"judge/workers", "machine", "pairs", "usercode"},
    "worker": {"domain", "ipc", "machine", "usercode"},
    "fleet": {"domain", "machine", "pairs"},
    "gate": {"domain"},
    "report": {"domain"},
    "cli": {"domain", "fleet", "gate", "machine", "pairs", "report"},
    "pytest_plugin": {"domain", "fleet", "pairs", "report"},
    "harness": {"domain", "fleet", "pairs"},
}


def backward_arrows(root: Path, arrows: Mapping[str, set[str]] = ARROWS) -> list[str]:
    """Return every import that the arrows do not grant, as ``file:line: room -> room``."""
    return [
        f"{where}: {room} -> {target}"
        for where, room, target in imports_between_rooms(root)
        if target not in arrows.get(room, set())
    ]


def imports_between_rooms(root: Path) -> list[tuple[str, str, str]]:
    """Return every import from one room into another as (``file:line``, room, room)."""
    found = []
    for path in sorted(root.rglob("*.py")):
        room = room_of(path.relative_to(root).with_suffix("").parts, root)
        for line, parts in imported(path, root):
            target = room_of(parts, root)
            if target != room:
                found.append((f"{path.relative_to(root.parent)}:{line}", room, target))
    return found


def room_of(parts: tuple[str, ...], root: Path) -> str:
    """Return the room that a dotted name inside harness belongs to; ``harness`` is its __init__."""
    if not parts:
        return "harness"
    if parts[0] == "judge" and len(parts) > 1:
        inner = f"judge/{parts[1]}"
        if (root / inner).is_dir() or inner in ARROWS:
            return inner
    known = (root / parts[0]).is_dir() or (root / f"{parts[0]}.py").is_file()
    return parts[0] if known and parts[0] != "__init__" else "harness"


def imported(path: Path, root: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Return line and dotted name of every import of ours in a file, also inside functions."""
    package = ["harness", *path.relative_to(root).parent.parts]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[list[str]] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        elif dynamic := dynamic_import(node):
            names = [dynamic.split(".")]
        found += [
            (getattr(node, "lineno", 0), tuple(name[1:])) for name in names if name[0] == "harness"
        ]
    return found


def dynamic_import(node: ast.AST) -> str:
    """Return what ``importlib.import_module("...")`` or ``__import__("...")`` names."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return ""
    called = ast.unparse(node.func).split(".")[-1]
    value = node.args[0].value
    return value if called in ("import_module", "__import__") and isinstance(value, str) else ""


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Return rooms that import each other in a circle, the first one again at the end."""
    done: set[str] = set()

    def walk(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room not in done:
            for target in sorted(arrows.get(room, set())):
                if found := walk(target, [*path, room]):
                    return found
            done.add(room)
        return []

    return next((found for room in sorted(arrows) if (found := walk(room, []))), [])


def arrows_of(root: Path) -> dict[str, set[str]]:
    """Return the arrows that the imports of a tree make."""
    arrows: dict[str, set[str]] = {}
    for _, room, target in imports_between_rooms(root):
        arrows.setdefault(room, set()).add(target)
    return arrows


def test_imports_flow_one_way() -> None:
    assert backward_arrows(ROOT) == []


def test_arrows_form_no_circle() -> None:
    assert circle(ARROWS) == []
    assert circle(arrows_of(ROOT)) == []


def test_every_arrow_is_used() -> None:
    used = arrows_of(ROOT)
    assert {room: targets - used.get(room, set()) for room, targets in ARROWS.items()} == {
        room: set() for room in ARROWS
    }


def test_every_room_has_its_rule() -> None:
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir()}
    rooms |= {f"judge/{path.name}" for path in (ROOT / "judge").iterdir() if path.is_dir()}
    rooms = {room for room in rooms if not room.rpartition("/")[2].startswith((".", "__"))}
    assert rooms - {"py.typed"} == ARROWS.keys() - {"harness", "judge/policy"}


def test_every_package_says_its_job() -> None:
    packages = [path for path in ROOT.rglob("*") if path.is_dir() and any(path.glob("*.py"))]
    undocumented = [
        str(path.relative_to(ROOT.parent))
        for path in [ROOT, *packages]
        if not ast.get_docstring(ast.parse((path / "__init__.py").read_text(encoding="utf-8")))
    ]
    assert undocumented == []


ROOMS = ("domain", "judge/check", "judge/timing", "worker/deep", "ipc", "pairs", "report", "fleet")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("judge/x.py", "from harness.worker.build import Builder\n"),
        ("judge/x.py", "from harness import worker\n"),
        ("judge/x.py", "import harness.worker.model as m\n"),
        ("judge/check/x.py", "def f():\n    from ...worker import calls\n"),
        ("judge/x.py", "import importlib\nimportlib.import_module('harness.worker')\n"),
        ("judge/check/x.py", "from harness.judge.timing import clock\n"),
        ("judge/check/x.py", "from harness.judge import timing\n"),
        ("judge/check/x.py", "from ..timing.clock import Clock\n"),
        ("judge/check/x.py", "from harness.judge import record\n"),
        ("judge/policy.py", "from harness.domain import Status\n"),
        ("worker/deep/x.py", "from harness.judge import policy\n"),
        ("worker/deep/x.py", "from ...judge.timing.clock import Clock\n"),
        ("domain/x.py", "from harness.pairs.settings import Settings\n"),
        ("domain/x.py", "import harness\n"),
        ("ipc/x.py", "from harness.pairs import discover\n"),
        ("report/x.py", "from harness.fleet import run_pairs\n"),
        ("fleet/x.py", "from harness.judge.judge import Judge\n"),
        ("loose.py", "from harness.domain import Status\n"),
    ],
)
def test_planted_backward_arrow_is_caught(tmp_path: Path, file: str, text: str) -> None:
    root = tmp_path / "harness"
    for room in ROOMS:
        (root / room).mkdir(parents=True)
    assert backward_arrows(root) == []
    (root / file).write_text(text)
    (arrow,) = backward_arrows(root)
    assert arrow.startswith(f"harness/{file}:")


def test_planted_circle_is_caught(tmp_path: Path) -> None:
    """Three rooms, each of which may import the next: only together they are a circle."""
    root = tmp_path / "harness"
    for room, target in (("ipc", "domain"), ("pairs", "ipc"), ("domain", "pairs")):
        (root / room).mkdir(parents=True, exist_ok=True)
        (root / target).mkdir(parents=True, exist_ok=True)
        assert circle(arrows_of(root)) == []
        (root / room / "x.py").write_text(f"from harness.{target} import y\n")
    assert circle(arrows_of(root)) == ["domain", "pairs", "ipc", "domain"]
