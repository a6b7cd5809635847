"""Seeds, states and calls of a module, alike in judge and worker.

It knows tensors and torch.nn.Module, and nothing of pairs or verdicts.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors in a nesting of lists, tuples and dicts, depth first.

    A dict is taken in the order of its keys' text: equal dicts may have been filled in any order.
    """
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in sorted(value, key=repr) for t in tensors_of(value[key])]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors_of(v)]
    return []


def nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return value with change(tensor) in place of every tensor; the structure is kept.

    Tensors are changed in the order of tensors_of.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        changed = {key: mapped(value[key], change) for key in sorted(value, key=repr)}
        return {key: changed[key] for key in value}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(v, change) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(v, change) for v in value)
    return value


def seed_everything(seed: int) -> None:
    """Set the generators of Python, NumPy (where imported) and torch to the same seed."""
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    # Not torch.manual_seed: for each backend that is not in use, it keeps a formatted stack. That
    # takes half a millisecond per call, and memory that grows with each call. Without a CUDA build
    # the driver is not called.
    torch.default_generator.manual_seed(seed)
    if torch.version.cuda and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(seed)


def module_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, persistent or not, every alias under its own name."""
    state: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    state.update(module.named_buffers(remove_duplicate=False))
    return state


def describe_state(module: torch.nn.Module) -> list[dict[str, Any]]:
    """Return name, kind, dtype, shape and tie of each state tensor.

    ``tie`` is the first name of the same tensor: tied weights have several names.
    """
    first: dict[int, str] = {}
    return [
        {
            "name": name,
            "kind": "parameter" if isinstance(tensor, torch.nn.Parameter) else "buffer",
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "tie": first.setdefault(id(tensor), name),
        }
        for name, tensor in module_state(module).items()
    ]


def write_state(module: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the module's tensors in place, converting precision.

    copy_ advances each tensor's version counter, so that a solution that re-packs its weights when
    the version changes sees the change.
    """
    tensors = module_state(module)
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)


def set_mode(module: torch.nn.Module, mode: str) -> None:
    """Put the module into ``eval`` or ``train``; ``forward`` leaves it as constructed."""
    if mode == "eval":
        module.eval()
    elif mode == "train":
        module.train()


def differentiable(tensor: torch.Tensor) -> bool:
    """Return whether autograd can have a gradient for a tensor of this dtype."""
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass(slots=True)
class Gradients:
    """The gradients of one call.

    Attributes:
        inputs: one per input tensor; None if autograd gave none.
        state: by parameter name.
        missing: why gradients are missing; empty if none are.
    """

    inputs: list[torch.Tensor | None] = field(default_factory=list)
    state: dict[str, torch.Tensor | None] = field(default_factory=dict)
    missing: str = ""


def given_tensors(output: Any, gradients: Gradients | None) -> list[torch.Tensor | None]:
    """Return the tensors of one timed call: outputs, gradients of inputs, gradients of state."""
    given: list[torch.Tensor | None] = list(tensors_of(output))
    return given if gradients is None else [*given, *gradients.inputs, *gradients.state.values()]


def values_of(output: Any) -> list[Any]:
    """Return what an output holds beside tensors, in the order in which tensors_of goes."""
    if isinstance(output, torch.Tensor):
        return []
    if isinstance(output, dict):
        return [v for key in sorted(output, key=repr) for v in values_of(output[key])]
    if isinstance(output, (list, tuple)):
        return [v for one in output for v in values_of(one)]
    return [output]


def word_of(value: Any) -> int:
    """Return 63 bits that stand for a value: of a float its own, else a checksum."""
    if isinstance(value, float):
        (word,) = struct.unpack("<Q", struct.pack("<d", value))
        return int(word >> 1)
    return zlib.crc32(repr(value).encode())


def float_of(word: int) -> float:
    """Return the float that word_of made a word of, but for its last bit."""
    (number,) = struct.unpack("<d", struct.pack("<Q", (word & ((1 << 63) - 1)) << 1))
    return float(number)


def differentiate(
    output: Any,
    inputs: Any,
    module: torch.nn.Module,
    output_grads: list[torch.Tensor | None],
) -> Gradients:
    """Return the gradients of every input and parameter for given output gradients.

    Args:
        output: of the call.
        inputs: its arguments. Floating tensors in them require grad.
        module: its parameters that require grad get gradients, too.
        output_grads: one per output tensor, None for those that are not differentiable.
    """
    outputs = tensors_of(output)
    chosen = [(o, g) for o, g in zip(outputs, output_grads, strict=False) if g is not None]
    attached = [(o, g) for o, g in chosen if o.requires_grad]
    flat = tensors_of(inputs)
    parameters = {
        n: t for n, t in module.named_parameters(remove_duplicate=False) if t.requires_grad
    }
    unique = {id(t): t for t in [*flat, *parameters.values()] if t.requires_grad}
    found: dict[int, torch.Tensor | None] = {}
    if attached and unique:
        grads = torch.autograd.grad(
            [o for o, _ in attached],
            list(unique.values()),
            [g.to(o.device, o.dtype) for o, g in attached],
            allow_unused=True,
        )
        found = dict(zip(unique, grads, strict=False))
    return Gradients(
        [found.get(id(t)) for t in flat],
        {n: found.get(id(t)) for n, t in parameters.items()},
        "an output is detached: it does not require grad" if len(attached) < len(chosen) else "",
    )


OutputGrads = (
    list[torch.Tensor | None] | Callable[[list[torch.Tensor]], list[torch.Tensor | None]] | None
)


def require_grad(inputs: Any) -> Any:
    """Return inputs over the same memory, as leaves that require grad if their dtype can."""
    return mapped(inputs, lambda t: t.detach().requires_grad_(differentiable(t)))


def call(
    module: torch.nn.Module,
    mode: str,
    inputs: Any,
    rng: int,
    output_grads: OutputGrads,
) -> tuple[Any, Gradients | None]:
    """Call a module once under a seed; return its output, and gradients if they are asked for.

    Args:
        module: its mode is set first.
        mode: forward, eval or train.
        inputs: positional arguments; used as they are, not copied.
        rng: seed of all generators before the call.
        output_grads: see differentiate, or a function that makes them from the output's tensors;
            None calls without gradients.

    An exception of backward is not raised: Gradients.missing names it, so that the output can be
    compared first.
    """
    set_mode(module, mode)
    seed_everything(rng)
    if output_grads is None:
        with torch.no_grad():
            return module(*inputs), None
    leaves = require_grad(inputs)
    with torch.enable_grad():
        output = module(*leaves)
        if callable(output_grads):
            output_grads = output_grads(tensors_of(output))
        try:
            return output, differentiate(output, leaves, module, output_grads)
        except Exception as error:  # noqa: BLE001 - autograd runs the module's own code
            return output, Gradients(missing=f"backward raised {type(error).__name__}: {error}")


def aliases(output: Any, inputs: Any) -> list[list[int]]:
    """Return [output index, input index] for each output that shares storage with an input."""
    where: dict[int, int] = {}
    for i, tensor in enumerate(tensors_of(inputs)):
        if tensor.numel():
            where.setdefault(tensor.untyped_storage().data_ptr(), i)
    found = []
    for o, tensor in enumerate(tensors_of(output)):
        if tensor.numel() and tensor.layout is torch.strided and tensor.device.type != "meta":
            hit = where.get(tensor.untyped_storage().data_ptr())
            if hit is not None:
                found.append([o, hit])
    return found
