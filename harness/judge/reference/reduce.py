"""Memory and work of one call of a problem, and smaller constants for it.

The call runs on meta tensors, which have shapes and no memory: a KernelBench problem may need
gigabytes at its full size. To make a problem smaller, its module-level integers are halved.
"""

from __future__ import annotations

import ast
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from harness.judge.reference.arithmetic import Mode
from harness.usercode import modules, pretend_cuda, source
from harness.usercode.modules import module_state, tensors_of

_SMALLEST = 2
_ROUNDS = 200

Value = int | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory and work of one call of the reference.

    Attributes:
        state_bytes: parameters and buffers.
        input_bytes: the arguments.
        output_bytes: the results.
        call_bytes: the most that is alive at once during the call beside state and arguments. It
            includes the output, and tensors that a gradient call keeps for backward.
        flops: of products and convolutions.
    """

    state_bytes: int
    input_bytes: int
    output_bytes: int
    call_bytes: int
    flops: float


def halved(
    path: Path,
    weight: Callable[[Footprint], float],
    enough: Callable[[Footprint], bool],
    train: bool = False,
) -> dict[str, Value]:
    """Return smaller values for module-level constants, so that a call takes little enough.

    Halves the largest integer that lowers the weight and keeps the reference runnable, again and
    again, until it is enough or nothing more can be halved. Integers and tuples of integers are
    considered.

    Args:
        path: the problem's file.
        weight: a figure that each halving must lower.
        enough: whether the problem is small enough.
        train: a call computes gradients.

    Returns:
        name -> smaller value; empty where the problem is small already or cannot be measured.
    """
    tree = source.parse(path)
    constants = _constants(tree)
    cost = footprint(path, {}, train)
    if cost is None:
        return {}
    current: dict[str, Value] = dict(constants)
    fixed: set[tuple[str, int]] = set()
    for _ in range(_ROUNDS):
        if enough(cost):
            break
        slot = _largest(current, fixed)
        if slot is None:
            break
        attempt = dict(current)
        attempt[slot[0]] = _halved(current[slot[0]], slot[1])
        lower = footprint(path, _changes(constants, attempt), train)
        if lower is not None and weight(lower) < weight(cost):
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


def footprint(path: Path, overrides: Mapping[str, Any], train: bool = False) -> Footprint | None:
    """Return the footprint of a call with these constants; None where meta tensors do not work.

    Args:
        path: the problem's file.
        overrides: module-level constants to replace.
        train: the call computes gradients, of all outputs.
    """
    try:
        with pretend_cuda.pretend(answer_cuda=False), torch.device("meta"):
            namespace = source.execute(path, "measured_problem", overrides)
            module = namespace.Model(*getattr(namespace, "get_init_inputs", list)()).to("meta")
            moved = modules.mapped(list(namespace.get_inputs()), lambda t: t.to("meta"))
            state = module_state(module)
            live = _Live()
            for held in (*state.values(), *tensors_of(moved)):
                live.see(held)
            before = live.peak_bytes
            mode = "train" if train else "forward"
            with live:
                output, _ = modules.call(module, mode, moved, 0, _ones if train else None)
    except (Exception, SystemExit):  # noqa: BLE001 - user code on meta tensors may raise anything
        return None
    if any(math.prod(t.shape) == 0 for t in tensors_of(output)):
        return None
    return Footprint(
        state_bytes=_bytes(state.values()),
        input_bytes=_bytes(tensors_of(moved)),
        output_bytes=_bytes(tensors_of(output)),
        call_bytes=live.peak_bytes - before,
        flops=live.flops,
    )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _ones(outputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
    wanted = [modules.differentiable(o) and o.requires_grad for o in outputs]
    return [torch.ones_like(o) if w else None for o, w in zip(outputs, wanted, strict=True)]


class _Live(Mode):
    """Adds up the storages that are alive while operations run, and the operations' work.

    Attributes:
        peak_bytes: the most so far.
        flops: of products and convolutions, by torch's own formulas.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = self._now = 0
        self.flops = 0.0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += float(formula(*args, **(kwargs or {}), out_val=result))
        for tensor in tensors_of(result):
            self.see(tensor)
        return result

    def see(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._now += nbytes
            self.peak_bytes = max(self.peak_bytes, self._now)
            weakref.finalize(storage, self._freed, key, nbytes)

    def _freed(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self._now -= nbytes
