"""No import points backwards: judge and worker never meet, and domain stands under everything."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "harness"

# Rooms that each room may import. A room is a folder or a file directly under harness/.
NEUTRAL = {"beside", "bell", "domain", "draws", "modules", "numeric_flags", "pretend_cuda"}
NEUTRAL |= {"settings", "source", "toolchain", "tray", "wire", "wire_cuda"}
ALLOWED: dict[str, set[str]] = {
    "domain": {"domain"},
    "beside": set(),
    "pretend_cuda": set(),
    "toolchain": {"environment"},
    "draws": {"domain"},
    "modules": set(),
    "numeric_flags": set(),
    "source": {"domain"},
    "settings": {"domain"},
    "wire": {"domain", "wire"},
    "bell": {"domain", "wire"},
    "tray": {"domain", "wire"},
    "wire_cuda": {"domain", "wire"},
    "nursery": set(),
    "discover": {"domain"},
    "resume": {"domain"},
    "sizes": {"domain", "settings"},
    "environment": {"__init__"},
    "folders": {"environment"},
    "packaged_nvcc": {"environment"},
    "judge": NEUTRAL | {"__init__", "judge", "nursery", "environment"},
    "worker": (NEUTRAL - {"settings"}) | {"__init__", "worker"},
    "fleet": {"beside", "domain", "settings", "environment", "fleet", "folders", "packaged_nvcc"}
    | {"resume"},
    "report": {"domain", "report", "resume"},
    "gate": {"domain", "gate"},
    "guard": {"discover", "domain", "gate", "report"},
    "pytest_plugin": {"discover", "domain", "fleet", "report"},
    "outputs": {"__init__", "domain", "folders", "gate", "guard", "report"},
    "doctor": {"environment", "fleet", "folders", "packaged_nvcc"},
    "new_pair": {"domain"},
    "__init__": {"domain", "discover", "fleet"},
    "cli": {"domain", "discover", "environment", "fleet", "report", "doctor", "new_pair", "sizes"}
    | {"guard", "outputs", "packaged_nvcc", "resume"},
}


def backward_arrows(root: Path) -> list[str]:
    """Return every import that ALLOWED does not grant, as ``file:line: room -> room``."""
    arrows = []
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        for line, target in imported_rooms(path, root):
            if target not in ALLOWED.get(room, set()):
                where = path.relative_to(root.parent)
                arrows.append(f"{where}:{line}: {room} -> {target}")
    return arrows


def imported_rooms(path: Path, root: Path) -> list[tuple[int, str]]:
    """Return line and room of every import of ours in a file, also those inside functions."""
    package = ["harness", *path.relative_to(root).parent.parts]
    rooms = []
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
        for parts in names:
            if parts[0] == "harness":
                room = parts[1] if len(parts) > 1 else "__init__"
                known = (root / room).is_dir() or (root / f"{room}.py").is_file()
                rooms.append((getattr(node, "lineno", 0), room if known else "__init__"))
    return rooms


def dynamic_import(node: ast.AST) -> str:
    """Return what ``importlib.import_module("...")`` or ``__import__("...")`` names."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return ""
    called = ast.unparse(node.func).split(".")[-1]
    value = node.args[0].value
    return value if called in ("import_module", "__import__") and isinstance(value, str) else ""


def test_imports_flow_one_way() -> None:
    assert backward_arrows(ROOT) == []


def test_every_room_has_its_rule() -> None:
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir()} - {"__pycache__"}
    assert {room for room in rooms if not room.startswith(".")} <= ALLOWED.keys() | {"py.typed"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("judge/x.py", "from harness.worker.build import Builder\n"),
        ("judge/x.py", "from harness import worker\n"),
        ("judge/x.py", "import harness.worker.model as m\n"),
        ("judge/x.py", "def f():\n    from ..worker import calls\n"),
        ("judge/x.py", "import importlib\nimportlib.import_module('harness.worker')\n"),
        ("worker/deep/x.py", "from harness.judge import clock\n"),
        ("worker/deep/x.py", "from ...judge.clock import Clock\n"),
        ("domain/x.py", "from harness.settings import Settings\n"),
        ("domain/x.py", "import harness\n"),
        ("wire/x.py", "from harness.modules import tensors_of\n"),
        ("report/x.py", "from harness.fleet import run_pairs\n"),
        ("fleet/x.py", "from harness.judge.judge import Judge\n"),
        ("pretend_cuda.py", "from .domain import Status\n"),
    ],
)
def test_planted_backward_arrow_is_caught(tmp_path: Path, file: str, text: str) -> None:
    root = tmp_path / "harness"
    for room in ("domain", "judge", "worker/deep", "wire", "fleet", "report"):
        (root / room).mkdir(parents=True)
    for name in ("settings", "modules"):
        (root / f"{name}.py").touch()
    assert backward_arrows(root) == []
    (root / file).write_text(text)
    (arrow,) = backward_arrows(root)
    assert arrow.startswith(f"harness/{file}:")
