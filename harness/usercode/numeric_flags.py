"""Torch's numeric flags: set and read by these two functions in the judge and in every worker.

A process that forgets one flag computes something else: with cuDNN's TF32 left on, as PyTorch has
it by default, the judge's own convolutions were less precise than the solutions it judged.
"""

from __future__ import annotations

from typing import Any

import torch

STRICT, TF32, DEFAULTS = "strict", "tf32", "defaults"
"""What a process is granted: float32 products in float32; TF32 for them; PyTorch's own defaults,
which use TF32 for cuDNN's convolutions and not for matrix products."""


MIXED = "mixed"
"""A flag that torch refuses to tell: it was set by old and new names that contradict each other."""


def set_flags(grant: str) -> None:
    """Set the flags of this process, whatever a problem's file has set before.

    Args:
        grant: STRICT, TF32 or DEFAULTS.
    """
    torch.backends.cuda.matmul.allow_tf32 = grant == TF32
    torch.backends.cudnn.allow_tf32 = grant in (TF32, DEFAULTS)


def flags() -> dict[str, Any]:
    """Return every flag that decides in which precision torch computes here, by its name.

    True or False, or MIXED.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "matmul.allow_tf32": _told(matmul, "allow_tf32"),
        "cudnn.allow_tf32": _told(cudnn, "allow_tf32"),
        "matmul.allow_fp16_reduced_precision_reduction": _told(
            matmul, "allow_fp16_reduced_precision_reduction"
        ),
        "matmul.allow_bf16_reduced_precision_reduction": _told(
            matmul, "allow_bf16_reduced_precision_reduction"
        ),
        "cudnn.benchmark": _told(cudnn, "benchmark"),
        "cudnn.deterministic": _told(cudnn, "deterministic"),
        "deterministic_algorithms": bool(torch.are_deterministic_algorithms_enabled()),
    }


def _told(backend: Any, name: str) -> bool | str:
    try:
        value = getattr(backend, name)
    except RuntimeError:
        return MIXED
    # Newer torch gives some as a tuple with their options.
    return bool(value[0]) if isinstance(value, tuple) else bool(value)
