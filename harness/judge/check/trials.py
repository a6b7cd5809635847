"""The trials of a pair: inputs and variants of them, states, RNG seeds, from one secret seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.judge.reference.seeds import derived
from harness.usercode.modules import mapped

PLAN = (
    "nominal",
    "numbers",
    "edited",
    "same",
    "signs",
    "samples",
    "nominal",
    "edited",
    "shift",
    "large",
    "tails",
    "permuted",
    "small",
    "special",
)
"""Order of input kinds over the calls of one mode; a later call starts over.

``edited`` is the call before with a few elements changed: it exposes an answer that was kept under
some of the elements. ``same`` leaves the input buffers untouched while the state changes: it
exposes an answer that was kept under the inputs alone. ``numbers`` is a nominal draw with other
floating arguments that are no tensors, or tensors of equal elements: it exposes a constant in their
place. ``special`` plants
values that no draw gives: zeros of both signs, halves, whole numbers, equal ones, a row of zeros.
"""

_SPECIAL = (0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 1.0, -1.0, 2.0, -3.0)
_SPECIAL_ELEMENTS = 4096

STATE_CHANGES = frozenset({1, 3, 6})
"""Calls before which the state is perturbed anew; call 0 runs on the constructed values."""

FOLLOWERS = ("edited", "same")
"""Variants that start from the inputs of the call before."""

OUTSIDE = frozenset({"numbers", "samples", "shift", "large", "tails", "small", "special"})
"""Variants that no draw of the problem gives. On these only another function is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One checked call.

    Attributes:
        index: position within its mode.
        mode: forward, eval or train.
        variant: kind of input, an entry of PLAN.
        input_seed: of the nominal draw.
        variant_seed: of the variant's own draws.
        rng: seed of all generators right before the call, the same in every process.
        grad_seed: of the output gradients.
        new_state: seed of a new state before this call, None keeps the state.
    """

    index: int
    mode: str
    variant: str
    input_seed: int
    variant_seed: int
    rng: int
    grad_seed: int
    new_state: int | None

    @property
    def name(self) -> str:
        """Return the name of this trial in reports."""
        return f"{self.mode}/{self.index}:{self.variant}"


def plan(seed: int, modes: Sequence[str], calls: int, fold_state: bool) -> list[Trial]:
    """Return the trials of one evaluation.

    Args:
        seed: the secret master seed.
        modes: checked in this order; the first gets all calls, further ones half as many.
        calls: checked calls of the first mode.
        fold_state: the problem allows folding the state once: it then never changes.
    """
    trials = []
    for position, mode in enumerate(modes):
        count = calls if position == 0 else max(calls // 2, 4)
        for i in range(count):
            changes = i in STATE_CHANGES or (position > 0 and i == 0)
            trials.append(
                Trial(
                    index=i,
                    mode=mode,
                    variant=_variant(mode, i),
                    input_seed=derived(seed, mode, _origin(i), "input"),
                    variant_seed=derived(seed, mode, i, "variant"),
                    rng=derived(seed, mode, i, "rng") % 2**31,
                    grad_seed=derived(seed, mode, i, "grad"),
                    new_state=(
                        derived(seed, mode, i, "state") if changes and not fold_state else None
                    ),
                )
            )
    return trials


def _variant(mode: str, index: int) -> str:
    """Return the kind of input of a call.

    Special values are for outputs only: where a function has a kink, gradients are a convention.
    """
    variant = PLAN[index % len(PLAN)]
    return "nominal" if variant == "special" and mode == "train" else variant


def on_other_stream(seed: int, mode: str) -> Trial:
    """Return one more nominal call, made with another stream than the default one."""
    return Trial(
        index=0,
        mode=mode,
        variant="nominal",
        input_seed=derived(seed, mode, "other stream", "input"),
        variant_seed=0,
        rng=derived(seed, mode, "other stream", "rng") % 2**31,
        grad_seed=derived(seed, mode, "other stream", "grad"),
        new_state=None,
    )


def _origin(index: int) -> int:
    """Return the call whose nominal draw a call uses: its own, or the one it follows."""
    while PLAN[index % len(PLAN)] in FOLLOWERS:
        index -= 1
    return index


@dataclass(frozen=True, slots=True, kw_only=True)
class Varied:
    """Inputs of one call.

    Attributes:
        inputs: arguments of forward.
        changed: whether any of them differs from its nominal draw.
        outside: whether no draw of the problem gives such inputs.
    """

    inputs: list[Any]
    changed: bool = False
    outside: bool = False


def varied(
    inputs: list[Any],
    variant: str,
    seed: int,
    names: Sequence[str],
    domain: Mapping[str, Mapping[str, float]],
) -> Varied:
    """Return a variant of nominal inputs.

    Structure that a solution may rely on is kept: zeros, infinities, order, symmetry,
    probabilities, masks, and the set of values of integers. Equal samples do not stay equal: a
    solution that computes one of them and expands it is another function.

    Args:
        inputs: nominal inputs.
        variant: an entry of PLAN; ``same`` stands for the inputs of the call before: see Checker.
        seed: of the draws here.
        names: the forward arguments' names, for the domain.
        domain: by argument name: ``min`` and ``max`` that floating elements must keep to.
    """
    if variant in ("nominal", "same"):
        return Varied(inputs=inputs)
    changed = one_signed = False
    done: dict[int, torch.Tensor] = {}

    def one(tensor: torch.Tensor, limits: Mapping[str, float] | None, salt: int) -> torch.Tensor:
        nonlocal changed, one_signed
        if id(tensor) in done:
            return done[id(tensor)]
        generator = torch.Generator(device=tensor.device).manual_seed((seed + salt) % 2**62)
        fresh = _varied_tensor(tensor, variant, generator)
        if tensor.is_floating_point():
            if limits:
                fresh = fresh.clamp(limits.get("min"), limits.get("max"))
            one_signed = one_signed or (variant == "signs" and _is_one_signed(tensor))
        # A tensor whose bytes did not change is no variant of its own.
        changed = changed or not torch.equal(fresh, tensor)
        done[id(tensor)] = restored(fresh, tensor)
        return done[id(tensor)]

    result = []
    for i, value in enumerate(inputs):
        limits = domain.get(names[i]) if i < len(names) else None
        other = _other_number(value, limits) if variant == "numbers" else value
        changed = changed or other is not value
        result.append(mapped(other, lambda t: one(t, limits, i)))  # noqa: B023 - called at once
    outside = variant in OUTSIDE or (variant == "signs" and one_signed)
    return Varied(inputs=result, changed=changed, outside=changed and outside)


def _other_number(value: Any, limits: Mapping[str, float] | None) -> Any:
    """Return another floating number; integers stay, since they may be dimensions or flags."""
    if type(value) is not float or not math.isfinite(value) or value == 0:
        return value
    limits = limits or {}
    other = min(max(value * 1.25, limits.get("min", -math.inf)), limits.get("max", math.inf))
    return value if other == value else other


def _is_one_signed(x: torch.Tensor) -> bool:
    return bool((x >= 0).all()) or bool((x <= 0).all())


def restored(fresh: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return fresh in the dtype and, where dense, the strides of like."""
    fresh = fresh.to(like.dtype)
    if fresh.stride() == like.stride():
        return fresh
    if like.numel() == 0 or 0 in like.stride():
        return fresh.contiguous()
    return torch.empty_like(like, memory_format=torch.preserve_format).copy_(fresh)


def rolled(x: torch.Tensor, by: int, factor: float) -> torch.Tensor:
    """Return other values with the structure of x: rolled along the first dimension, and scaled.

    Args:
        x: a nominal draw.
        by: places.
        factor: near 1.
    """
    if x.dim() < 1 or x.numel() < 2:
        return x
    floating = x.is_floating_point() or x.is_complex()
    fresh = x
    if x.dim() == 2 and floating and _is_symmetric(x):
        fresh = torch.roll(x, (by, by), dims=(0, 1))
    elif not (x.dim() == 1 and _is_sorted(x)) and not (x.dim() == 2 and _is_triangular(x)):
        fresh = torch.roll(x, by, dims=0)
    if not floating or (not x.is_complex() and _are_probabilities(x)):
        return fresh
    return restored(fresh * factor, x)


def _other_constant(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return other values of a floating tensor of equal elements, such as a state of zeros."""
    if not x.is_floating_point() or not x.numel():
        return x
    first = x.flatten()[0]
    if not bool(torch.isfinite(first)) or bool((x != first).any()):
        return x
    if first == 0:
        return 0.25 * torch.randn(x.shape, generator=generator, device=x.device)
    return x * (1.25 + 0.25 * torch.rand(x.shape, generator=generator, device=x.device))


def _varied_tensor(x: torch.Tensor, variant: str, generator: torch.Generator) -> torch.Tensor:
    if variant == "numbers":
        return _other_constant(x, generator)
    if x.numel() < 2 and variant != "signs":
        return x
    if variant == "edited":
        return _edited(x, generator)
    if x.dtype is torch.bool:
        return _varied_mask(x, variant, generator)
    if not x.is_floating_point() and not x.is_complex():
        return _permuted(x, generator) if variant in ("permuted", "signs", "tails") else x
    if x.is_complex():
        factor = {"large": 8.0, "small": 2.0**-6}.get(variant)
        return x * factor if factor else _permuted(x, generator)
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        return torch.where(finite, _varied_float(torch.where(finite, x, 0), variant, generator), x)
    return _varied_float(x, variant, generator)


def _edited(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return x with a few elements changed: integers swapped, so that only their values occur."""
    if _is_sorted(_one_of(x)) or _is_binary(x) or (x.is_floating_point() and _is_made(x)):
        return _varied_mask(x, "permuted", generator) if x.dtype is torch.bool else x
    flat = x.flatten().clone()
    # Zeros may be a pattern: only other elements change.
    part = flat[: 1 << 22]
    filled = torch.nonzero(part).flatten() if x.is_floating_point() else None
    if filled is not None and filled.numel() < 4:
        return x
    # Away from both ends, where caches like to look.
    total = flat.numel() if filled is None else filled.numel()
    low, high = total // 4, max(total * 3 // 4, total // 4 + 2)
    count = min(5, high - low)
    places = low + torch.randperm(min(high - low, 1 << 20), generator=generator, device=x.device)
    places = places[:count].clamp_max(total - 1)
    if filled is not None:
        places = filled[places]
    values = flat[places].roll(1)
    # A pure swap half of the time: it changes no sum, so a cache under one is stale then.
    swap = bool(torch.randint(2, (1,), generator=generator, device=x.device))
    if x.is_floating_point() and not swap:
        values = torch.where(values == 0, values, values * 1.5)
    flat[places] = values.to(flat.dtype)
    return flat.view(x.shape)


def _varied_mask(x: torch.Tensor, variant: str, generator: torch.Generator) -> torch.Tensor:
    if _is_triangular(x):
        return x
    if variant == "signs":
        return ~x
    return _permuted(x, generator) if variant in ("permuted", "tails") else x


def _varied_float(x: torch.Tensor, variant: str, generator: torch.Generator) -> torch.Tensor:
    zero = x == 0
    if _is_binary(x):
        return _permuted(x, generator) if variant in ("permuted", "signs", "tails") else x
    sample = _one_of(x)
    if _is_symmetric(sample):
        return _varied_symmetric(x, variant, generator)
    if _are_probabilities(x):
        return _varied_probabilities(x, variant, generator)
    if variant == "large":
        return x * 128.0  # exp overflows beyond 88, and must not in a careful softmax
    if variant == "small":
        return x * 2.0**-6
    if _is_structured(sample):
        # Only maps of whole samples: they keep sortedness and repeated values.
        if variant == "signs" and not _is_sorted(x):
            return -x
        if variant == "samples" and sample.shape != x.shape:
            return x * _sizes(x, sample, generator)
        if variant == "samples" and x.dim() > 1 and not _is_sorted(x):
            return x[torch.randperm(x.shape[0], generator=generator, device=x.device)]
        return x
    if variant == "signs":
        flips = torch.randint(0, 2, x.shape, generator=generator, device=x.device)
        return torch.where(flips.bool(), -x, x)
    if variant == "samples":
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        size = torch.exp(torch.randn(shape, generator=generator, device=x.device))
        offset = torch.randn(shape, generator=generator, device=x.device)
        spread = x.float().abs().mean()
        return torch.where(zero, x.float(), x.float() * size + offset * spread)
    if variant == "shift":
        # A mean of 64 standard deviations: E[x^2] - E[x]^2 loses three of seven digits.
        spread = x.float().std().clamp_min(1e-6)
        return torch.where(zero, x.float(), x.float() + 64 * spread)
    if variant == "tails":
        chosen = torch.rand(x.shape, generator=generator, device=x.device) < 0.01
        return torch.where(chosen, x * 20, x)
    if variant == "permuted" and not bool(zero.any()):
        return _permuted(x, generator)
    return _with_special_values(x, generator) if variant == "special" else x


def _with_special_values(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return x with special values at a few places, and with one row of zeros.

    Values keep to the sign that all elements have: a logarithm's argument stays positive.
    """
    flat = x.flatten().clone()
    values = torch.tensor(_SPECIAL, device=x.device, dtype=x.dtype)
    if _is_one_signed(x):
        values = values.abs() if bool((x >= 0).all()) else -values.abs()
    count = min(_SPECIAL_ELEMENTS, max(flat.numel() // 8, 1))
    where = torch.randint(flat.numel(), (count,), generator=generator, device=x.device)
    flat[where] = values[torch.arange(count, device=x.device) % len(values)]
    fresh = torch.where(x == 0, x, flat.view(x.shape))  # zeros may be a pattern
    if x.dim() > 1 and x.shape[-1] > 1:
        rows = fresh.view(-1, x.shape[-1])
        rows[int(torch.randint(len(rows), (1,), generator=generator, device=x.device))] = 0
    return fresh


def _one_of(x: torch.Tensor) -> torch.Tensor:
    """Return x without repetition: one slice of each dimension along which all slices are equal."""
    for dim in range(x.dim()):
        if x.shape[dim] < 2:
            continue
        first, second = x.narrow(dim, 0, 1), x.narrow(dim, 1, 1)
        if torch.equal(first, second) and bool((x == first).all()):
            x = first
    return x


def _sizes(x: torch.Tensor, sample: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random factor for each of the slices that are equal in x."""
    pairs = zip(x.shape, sample.shape, strict=True)
    shape = [n if n != m else 1 for n, m in pairs]
    return 0.5 + torch.rand(shape, generator=generator, device=x.device)


def _varied_symmetric(x: torch.Tensor, variant: str, generator: torch.Generator) -> torch.Tensor:
    """Return other symmetric matrices; positive definite ones if x holds such."""
    if variant in ("large", "small"):
        return x * (128.0 if variant == "large" else 2.0**-6)
    if variant == "signs":
        return x if _is_positive_definite(x) else -x
    if variant != "samples":
        return x
    order = torch.randperm(x.shape[-1], generator=generator, device=x.device)
    fresh = x[..., order, :][..., order]
    if x.dim() > 2:
        shape = (*x.shape[:-2], 1, 1)
        fresh = fresh * (0.5 + torch.rand(shape, generator=generator, device=x.device))
    return fresh


def _varied_probabilities(
    x: torch.Tensor, variant: str, generator: torch.Generator
) -> torch.Tensor:
    """Return other rows that sum to one: each row's elements in an order of its own."""
    if variant != "samples" or _is_sorted(x):
        return x
    order = torch.rand(x.shape, generator=generator, device=x.device).argsort(-1)
    return torch.gather(x, -1, order)


def _permuted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if _is_sorted(x) or x.numel() < 2:
        return x
    if _is_binary(x) and x.dim() > 1:
        # One-hot rows stay one-hot under a permutation of rows and of columns.
        rows = torch.randperm(x.shape[0], generator=generator, device=x.device)
        columns = torch.randperm(x.shape[-1], generator=generator, device=x.device)
        return x[rows][..., columns]
    if x.numel() > 1 << 24:
        # Rolling keeps large inputs affordable: a permutation's indices take twice the tensor.
        return torch.roll(x.flatten(), x.numel() // 3).view(x.shape)
    order = torch.randperm(x.numel(), generator=generator, device=x.device)
    return x.flatten()[order].view(x.shape)


def _sample(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten()
    return flat if flat.numel() <= 1 << 16 else flat[: 1 << 16]


def _is_binary(x: torch.Tensor) -> bool:
    part = _sample(x)
    return bool(((part == 0) | (part == 1)).all())


def _is_sorted(x: torch.Tensor) -> bool:
    if x.is_complex() or x.numel() < 4 or x.shape[-1] < 4:
        return False
    rows = x.reshape(-1, x.shape[-1])[:256]
    step = rows[:, 1:] >= rows[:, :-1]
    return bool(step.all()) or not bool((rows[:, 1:] > rows[:, :-1]).any())


def _is_structured(x: torch.Tensor) -> bool:
    """Return whether elements depend on one another: order, few values that repeat."""
    if x.numel() < 8:
        return False
    if _is_sorted(x):
        return True
    part = _sample(x)
    nonzero = part[part != 0]
    # Half-precision draws collide by themselves: few distinct values mean less there.
    least = 0.5 if x.element_size() >= 4 else 0.02
    return bool(nonzero.numel()) and nonzero.unique().numel() < nonzero.numel() * least


def _is_made(x: torch.Tensor) -> bool:
    """Return whether floating elements depend on one another in a way that is kept."""
    sample = _one_of(x)
    return _is_structured(sample) or _is_symmetric(sample) or _are_probabilities(x)


def _is_triangular(x: torch.Tensor) -> bool:
    if x.dim() < 2 or x.shape[-1] < 2:
        return False
    upper, lower = x[..., 0, -1], x[..., -1, 0]
    return (not bool(upper.any()) and torch.equal(x, x.tril())) or (
        not bool(lower.any()) and torch.equal(x, x.triu())
    )


def _are_probabilities(x: torch.Tensor) -> bool:
    if x.dim() < 2 or x.numel() < 8 or x.shape[-1] < 2:
        return False
    rows = x.reshape(-1, x.shape[-1])[:256].double()
    return bool((rows >= 0).all()) and bool((rows.sum(-1) - 1).abs().max() < 1e-3)


def _is_symmetric(x: torch.Tensor) -> bool:
    """Return whether x holds symmetric matrices, up to the rounding of a product A @ A.T."""
    if x.dim() < 2 or x.shape[-1] != x.shape[-2] or x.shape[-1] < 2:
        return False
    asymmetry = (x - x.transpose(-1, -2)).abs().max()
    return bool(asymmetry <= 8 * torch.finfo(x.dtype).eps * x.abs().max())


def _is_positive_definite(x: torch.Tensor) -> bool:
    matrices = x.reshape(-1, *x.shape[-2:])[:16].double()
    return not bool(torch.linalg.cholesky_ex(matrices).info.any())
