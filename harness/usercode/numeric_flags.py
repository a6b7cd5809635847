"""Sets and reads torch's numeric flags, in the judge and in every worker.

A process that forgets one flag computes something else. PyTorch allows TF32 in cuDNN by default;
with it, the judge's own convolutions were less precise than the solutions that it judged.
"""

from __future__ import annotations

from typing import Any

import torch

STRICT, TF32, DEFAULTS = "strict", "tf32", "defaults"
"""How a process may compute float32 products: in float32; in TF32; by PyTorch's own defaults, which
use TF32 for cuDNN's convolutions and not for matrix products."""

MIXED = "mixed"
"""The value of a flag that torch refuses to return: its old and new names contradict each other."""


def set_flags(grant: str) -> None:
    """Set the flags of this process. Earlier settings of a problem's file no longer hold.

    Args:
        grant: STRICT, TF32 or DEFAULTS.
    """
    torch.backends.cuda.matmul.allow_tf32 = grant == TF32
    torch.backends.cudnn.allow_tf32 = grant in (TF32, DEFAULTS)


def flags() -> dict[str, Any]:
    """Return every flag that decides about torch's precision here: True, False or MIXED."""
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
