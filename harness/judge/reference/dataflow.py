"""Watches one call of the reference: which results use a buffer, and which orders are free.

It watches operators and not values. If no operator reads a buffer, the buffer changes no result.
That is a proof, while a trial with other values is only a sample.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.judge.reference.arithmetic import Mode
from harness.usercode.modules import call, module_state, tensors_of


class _Reached(Mode):
    """Follows what is computed from one tensor.

    Attributes:
        read: an operator turned the data into a number, which no tensor shows.
    """

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.read = False
        # The mode holds its tensors: torch reuses the address of a freed one.
        self._held = [start]
        self._memory = {start.untyped_storage().data_ptr()}

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's memory was computed from it."""
        return tensor.untyped_storage().data_ptr() in self._memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(self.holds(t) for t in tensors_of([list(args), kwargs or {}])):
            made = tensors_of(out)
            # An operator without a tensor as result returns a number, or writes in place.
            self.read = self.read or not made
            self._held += made
            self._memory |= {t.untyped_storage().data_ptr() for t in made}
        return out


def matters(module: torch.nn.Module, name: str, inputs: list[Any], rng: int) -> bool:
    """Return whether a buffer reaches an output or another part of the state, in any mode.

    Args:
        module: the reference; its state is changed as calls change it, its modes are put back.
        name: of the buffer.
        inputs: of a call; changed where the module changes its inputs.
        rng: seed of all generators before the call.
    """
    modes = {m: m.training for m in module.modules()}
    try:
        for mode in ("forward", "eval", "train"):
            watch = _Reached(module_state(module)[name])
            with watch:
                output, _ = call(module, mode, inputs, rng, None)
            others = [t for n, t in module_state(module).items() if n != name]
            if watch.read or any(watch.holds(t) for t in [*tensors_of(output), *others]):
                return True
        return False
    finally:
        for part, training in modes.items():
            part.training = training


class FreeOrders(Mode):
    """Keeps the calls of sort and topk that promise no order among equal elements.

    Attributes:
        found: (keys, dimension, indices) of each such operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Tensor, int, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        if name in ("aten::sort", "aten::topk") and not kwargs.get("stable"):
            place = 2 if name == "aten::topk" else 1
            dim = args[place] if len(args) > place else kwargs.get("dim", -1)
            self.found.append((args[0].detach().clone(), dim, out[1].clone()))
        return out


def is_free_order(
    got: torch.Tensor,
    expected: torch.Tensor,
    orders: list[tuple[torch.Tensor, int, torch.Tensor]],
    near: float,
) -> bool:
    """Return whether indices are another order of elements that are equal.

    Args:
        got: candidate's indices.
        expected: the reference's, same shape.
        orders: see FreeOrders.found.
        near: keys that differ by no more than this part of the largest are equal.
    """
    for keys, dim, indices in orders:
        if not keys.dim() or indices.shape != expected.shape or not got.numel():
            continue
        if int(got.min()) < 0 or int(got.max()) >= keys.shape[dim]:
            continue
        mine, theirs, own = (
            torch.gather(keys, dim, i.to(keys.device, torch.int64))
            for i in (got, expected, indices)
        )
        bound = 0.0
        if keys.is_floating_point():
            finite = torch.where(torch.isfinite(keys), keys, 0)  # -inf masks what is not chosen
            bound = near * float(finite.abs().max())
        places = got.sort(dim).values
        repeated = (
            places.narrow(dim, 1, places.shape[dim] - 1)
            == places.narrow(dim, 0, places.shape[dim] - 1)
        ).any()
        pairs = ((theirs, own), (mine, theirs))
        equal = [bool(_are_equal(a, b, bound).all()) for a, b in pairs]
        if all(equal) and not bool(repeated):
            return True
    return False


def are_free_elements(
    got: torch.Tensor,
    expected: torch.Tensor,
    places: torch.Tensor,
    orders: list[tuple[torch.Tensor, int, torch.Tensor]],
    near: float,
) -> bool:
    """Return whether some indices stand for elements that are equal to those that are expected.

    Args:
        got: the candidate's indices at places, one-dimensional.
        expected: all of the reference's.
        places: which elements of expected, in the order of its indices.
        orders: see FreeOrders.found.
        near: see is_free_order.
    """
    want = expected.flatten()[places]
    for keys, dim, indices in orders:
        if indices.shape != expected.shape or not keys.dim():
            continue
        if int(got.min()) < 0 or int(got.max()) >= keys.shape[dim]:
            continue
        at, along = list(torch.unravel_index(places, expected.shape)), dim % keys.dim()
        at[along] = got
        mine = keys[tuple(at)]
        at[along] = want
        theirs = keys[tuple(at)]
        finite = torch.where(torch.isfinite(keys), keys, 0) if keys.is_floating_point() else keys
        bound = near * float(finite.abs().max()) if keys.is_floating_point() else 0.0
        if bool(_are_equal(mine, theirs, bound).all()):
            return True
    return False


def _are_equal(a: torch.Tensor, b: torch.Tensor, bound: float) -> torch.Tensor:
    """Return where keys are equal, or floating ones no farther apart than bound; inf equals inf."""
    if not a.is_floating_point():
        return a == b
    return (a == b) | ((a - b).abs() <= bound)
