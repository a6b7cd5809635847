"""The arithmetics that a solution may have used instead of the one that it is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.judge.reference import arithmetic
from harness.judge.reference.arithmetic import Rounding

ROUNDINGS: Mapping[str, Rounding] = {
    "tf32": arithmetic.to_tf32,
    "tf32 cut": arithmetic.cut_to_tf32,
    "bf16": arithmetic.to_bf16,
    "fp16": arithmetic.to_fp16,
    "fp32": arithmetic.to_fp32,
}
SPOKEN = {
    "tf32": "TF32",
    "tf32 cut": "TF32 (lower bits dropped)",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
}
"""How messages name a precision."""
STORED = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownArithmetic:
    """One arithmetic that changes the result in a way of its own.

    Attributes:
        precision: of its operands: tf32, bf16, fp16, fp32, or tanh for another GELU.
        text: how messages name it.
        mode: makes the mode that the reference runs under.
        inputs: rounding of inputs and state before the call, None for none.
        key: distinguishes modes that have the same text.
    """

    precision: str
    text: str
    mode: Callable[[], TorchDispatchMode]
    inputs: Rounding | None = None
    key: str = ""


def of_products(name: str, only: frozenset[int] | None = None, of: int = 0) -> KnownArithmetic:
    """Return operands of products in fewer bits: of all products, or of ``only`` some."""
    rounding = ROUNDINGS[name]
    where = "of products" if only is None else f"in {len(only)} of {of} products"
    return KnownArithmetic(
        precision=name.split()[0],
        text=f"{SPOKEN[name]} operands {where}",
        mode=lambda: arithmetic.RoundedProducts(rounding, only=only),
        key=f"{name} {sorted(only) if only is not None else 'all'}",
    )


def with_gelu(name: str) -> KnownArithmetic:
    """Return operands in fewer bits and the tanh approximation of GELU at once."""
    rounding = ROUNDINGS[name]
    return KnownArithmetic(
        precision="tanh",
        text=f"the tanh approximation of GELU and {SPOKEN[name]} operands of products",
        mode=lambda: arithmetic.RoundedProducts(rounding, tanh=True),
    )


def _of_all(name: str) -> tuple[KnownArithmetic, KnownArithmetic]:
    rounding = ROUNDINGS[name]
    return (
        KnownArithmetic(
            precision=name,
            text=f"products computed and stored in {SPOKEN[name]}",
            mode=lambda: arithmetic.RoundedProducts(rounding, results=True),
        ),
        KnownArithmetic(
            precision=name,
            text=f"{SPOKEN[name]} throughout",
            mode=lambda: arithmetic.RoundedEverywhere(rounding),
            inputs=rounding,
        ),
    )


def _of_inputs(name: str) -> KnownArithmetic:
    rounding = ROUNDINGS[name]
    return KnownArithmetic(
        precision=name.split()[0],
        text=f"inputs rounded to {SPOKEN[name]}",
        mode=lambda: arithmetic.RoundedProducts(rounding),
        inputs=rounding,
    )


TANH_GELU = KnownArithmetic(
    precision="tanh", text="the tanh approximation of GELU", mode=arithmetic.TanhGelu
)
OPERANDS = {"fp32": ("tf32", "tf32 cut", "bf16", "fp16"), "fp64": ("fp32", "tf32")}
STAGES: Mapping[str, tuple[tuple[KnownArithmetic, ...], ...]] = {
    due: (
        (*(of_products(n) for n in OPERANDS[due]), TANH_GELU),
        (
            *(mark for n in stored for mark in _of_all(n)),
            *(_of_inputs(n) for n in OPERANDS[due]),
        ),
    )
    for due, stored in (("fp32", ("bf16", "fp16")), ("fp64", ("fp32",)))
}
"""By the precision that is due: arithmetics that may have been used, the likeliest stage first."""
