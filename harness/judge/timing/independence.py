"""Does a problem draw its inputs element by element? Then a mixture of two draws is a draw.

Values alone do not show that elements belong together: the corners of a box, a matrix that is
positive definite. So the judge watches the operators that make the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.usercode.modules import tensors_of

_SOURCES = frozenset({"aten::rand", "aten::randn", "aten::uniform_", "aten::normal_"})
_KEEPING = frozenset({"aten::detach", "aten::_to_copy", "aten::clone"})
_WITH_NUMBERS = frozenset({"aten::add", "aten::sub", "aten::mul", "aten::div", "aten::rsub"})
_EMPTY = frozenset({"aten::empty", "aten::empty_like"})


def independent(draw: Callable[[], Any]) -> bool:
    """Return whether the judge sees every element of every tensor drawn independently.

    It does for ``torch.rand``, ``randn``, ``uniform_`` and ``normal_``, moved, cast or combined
    with numbers, if each tensor has a source of its own.

    Args:
        draw: returns inputs, any nesting of tensors.
    """
    watch = _Watch()
    try:
        with watch:
            drawn = tensors_of(draw())
    except Exception:  # noqa: BLE001 - it will be drawn without the watch, too
        return False
    lines = [watch.line(t) for t in drawn]
    if watch.lost or None in lines or len(set(lines)) < len(lines):
        return False
    return all(watch.is_as_made(t) for t in drawn)


class _Watch(TorchDispatchMode):
    """Follows each random tensor from its source.

    Attributes:
        lost: whether an operator ran that may tie elements to each other.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, for seconds, to decide that."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lost = False
        # The tensors are held, because the id of a freed one is given to the next. Their values
        # are held, because NumPy can write into them unseen by the dispatcher.
        self._lines: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def line(self, tensor: torch.Tensor) -> int | None:
        """Return the number of a tensor's source, None if it has none."""
        found = self._lines.get(id(tensor))
        return found[2] if found else None

    def is_as_made(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor still holds the result of the operator that made it."""
        return torch.equal(tensor, self._lines[id(tensor)][1])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        given = [a for a in args if isinstance(a, torch.Tensor)]
        if name in _SOURCES:
            self._lines[id(out)] = (out, out.clone(), len(self._lines))
        elif name in _KEEPING or (name in _WITH_NUMBERS and len(given) == 1):
            line = self.line(given[0])
            if line is None or not self.is_as_made(given[0]):
                self.lost = True
            else:
                self._lines[id(out)] = (out, out.clone(), line)
        elif name not in _EMPTY:
            self.lost = True
        return out
