"""Reduced sizes for a problem file that states none: halves its module-level integers.

Cost is estimated on meta tensors, which have shapes and no memory: a KernelBench problem may ask
for gigabytes at its full size.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness import pretend_cuda, source
from harness.modules import module_state, tensors_of

_SMALLEST = 2
_MAX_FLOPS = 5e7
_ROUNDS = 200

Value = int | tuple[int, ...]


def reduced(path: Path, target_bytes: int) -> dict[str, Value]:
    """Return module-level constants to override so that inputs, state and outputs are small.

    Halves the largest integer that lowers the cost and keeps the reference runnable, again and
    again, until the bytes are at most target_bytes and the work is at most 50 MFLOP, or nothing
    more can be halved. Integers and tuples of integers are considered.

    Args:
        path: the problem's file.
        target_bytes: goal for inputs, state and outputs together.

    Returns:
        name -> smaller value; empty where the problem is small already or cannot be measured.
    """
    tree = source.parse(path)
    constants = _constants(tree)
    cost = _cost(path, {})
    if cost is None:
        return {}
    current: dict[str, Value] = dict(constants)
    fixed: set[tuple[str, int]] = set()
    for _ in range(_ROUNDS):
        if cost[0] <= target_bytes and cost[1] <= _MAX_FLOPS:
            break
        slot = _largest(current, fixed)
        if slot is None:
            break
        attempt = dict(current)
        attempt[slot[0]] = _halved(current[slot[0]], slot[1])
        lower = _cost(path, _changes(constants, attempt))
        if lower is not None and _weight(lower) < _weight(cost):
            current, cost = attempt, lower
        else:
            fixed.add(slot)
    return _changes(constants, current)


def _constants(tree: ast.Module) -> dict[str, Value]:
    found: dict[str, Value] = dict(source.integer_constants(tree))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            try:
                value = ast.literal_eval(statement.value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
            integers = isinstance(value, tuple) and all(type(v) is int for v in value)
            if isinstance(target, ast.Name) and integers and value:
                found[target.id] = value
    return {n: v for n, v in found.items() if n != "SETTINGS"}


def _changes(old: Mapping[str, Value], new: Mapping[str, Value]) -> dict[str, Value]:
    return {n: v for n, v in new.items() if old[n] != v}


def _largest(values: Mapping[str, Value], fixed: set[tuple[str, int]]) -> tuple[str, int] | None:
    slots = []
    for name, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        slots += [
            (part, (name, i))
            for i, part in enumerate(parts)
            if part // 2 >= _SMALLEST and (name, i) not in fixed
        ]
    return max(slots)[1] if slots else None


def _halved(value: Value, position: int) -> Value:
    if isinstance(value, tuple):
        return tuple(v // 2 if i == position else v for i, v in enumerate(value))
    return value // 2


def _weight(cost: tuple[float, float]) -> float:
    return cost[0] + cost[1] / 50


def _cost(path: Path, overrides: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return (bytes, flops) of one call at these constants, None where it does not run."""
    try:
        with pretend_cuda.pretend(answer_cuda=False), torch.device("meta"), torch.no_grad():
            namespace = source.execute(path, "measured_problem", overrides)
            module = namespace.Model(*getattr(namespace, "get_init_inputs", list)())
            inputs = namespace.get_inputs()
            moved = [v.to("meta") if isinstance(v, torch.Tensor) else v for v in inputs]
            counter = FlopCounterMode(display=False)
            with counter:
                output = module.to("meta")(*moved)
    except Exception:  # noqa: BLE001 - a problem on meta tensors may raise anything: unknown
        return None
    held = [*tensors_of(moved), *tensors_of(output), *module_state(module).values()]
    if any(math.prod(t.shape) == 0 for t in tensors_of(output)):
        return None
    size = sum(t.numel() * t.element_size() for t in held)
    return float(size), float(counter.get_total_flops())
