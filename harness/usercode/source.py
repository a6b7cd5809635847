"""Reads a problem or solution file and executes it under other module-level constants.

The sizes of a KernelBench file are module-level constants, and the file computes other constants
from them (``scale_shape = (out_features,)``). A change after the import would not change those. So
this module rewrites the assignments before it executes the source.
"""

from __future__ import annotations

import ast
import linecache
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.domain import UsageError


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file.

    Raises:
        UsageError: the file cannot be read, or is not valid Python.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}). Next: check the path") from error
    try:
        return ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 0) or 0
        raise UsageError(
            f"{path}:{line}: not valid Python: {error}. Next: correct that line"
        ) from error


def integer_constants(tree: ast.Module) -> dict[str, int]:
    """Return the module-level names that are assigned an integer, in file order.

    The value may be a literal, or arithmetic on literals.
    """
    found = {}
    for statement in tree.body:
        target = _single_target(statement)
        if target is None:
            continue
        value = _value(statement)
        number = None if value is None else _integer(value)
        if number is not None:
            found[target] = number
    return found


def _integer(node: ast.expr) -> int | None:
    """Return the value of an integer literal or of arithmetic on such (``16384 * 4``)."""
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _integer(node.operand)
        return None if inner is None else -inner
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _integer(node.left), _integer(node.right)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.FloorDiv):
        return left // right if right else None
    if isinstance(node.op, ast.Pow):
        return int(left**right) if 0 <= right <= 62 else None
    return None


def overridden(tree: ast.Module, overrides: Mapping[str, Any]) -> ast.Module:
    """Return a tree whose module-level assignments give some names other values.

    Raises:
        UsageError: a name is not assigned at module level.
    """
    missing = set(overrides)
    body: list[ast.stmt] = []
    for statement in tree.body:
        name = _single_target(statement)
        if name in overrides:
            missing.discard(str(name))
            literal = ast.parse(repr(overrides[str(name)]), mode="eval").body
            replaced = ast.Assign(targets=[ast.Name(id=str(name), ctx=ast.Store())], value=literal)
            statement = ast.fix_missing_locations(ast.copy_location(replaced, statement))
        body.append(statement)
    if missing:
        names = ", ".join(sorted(missing))
        raise UsageError(
            f"the file assigns no value to {names} at module level. "
            "Next: name an assigned constant in the size"
        )
    return ast.Module(body=body, type_ignores=[])


def execute(
    path: Path, module_name: str, overrides: Mapping[str, Any] | None = None
) -> types.ModuleType:
    """Execute a file as a module of its own and return it.

    Args:
        path: the file. Its folder comes first on sys.path, as for a script.
        module_name: its name in sys.modules, which pickle and inspect need.
        overrides: module-level constants to replace before execution.

    Raises:
        UsageError: the file cannot be read, is not valid Python, or lacks a constant.
        BaseException: as the file itself raises it.
    """
    tree = parse(path)
    if overrides:
        tree = overridden(tree, overrides)
    module = types.ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    linecache.checkcache(str(path))
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module


def _single_target(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id
    return None


def _value(statement: ast.stmt) -> ast.expr | None:
    return statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
