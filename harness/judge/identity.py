"""As whom and with what environment a process runs that executes a solution's code."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import harness

_uids = itertools.count(1)

PACKAGE_ROOT = Path(harness.__file__).parent.parent


def fresh_uid() -> int:
    """Return a user id that no account has, another one at each call while this judge lives."""
    return 1_600_000_000 + os.getpid() * 64 + next(_uids) % 64


def environment_in(folder: Path, compiled: Path | None = None) -> dict[str, str]:
    """Return the environment of a process that runs a solution: nothing personal is passed on.

    Args:
        folder: its own, which serves as home.
        compiled: where torch.compile keeps what it made; None is the folder.
    """
    passed = {
        k: v
        for k, v in os.environ.items()
        if k.startswith(("CUDA", "LD_", "NVIDIA", "TORCH", "LANG", "LC_", "OMP_", "MKL_"))
        or k in ("PATH", "CC", "CXX", "TZ", "VIRTUAL_ENV", "MAX_JOBS", "CCACHE_DIR")
    }
    return passed | {
        "PYTHONPATH": str(PACKAGE_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "USER": "worker",
        "LOGNAME": "worker",
        "TORCHINDUCTOR_CACHE_DIR": str((compiled or folder) / "inductor"),
        "TRITON_CACHE_DIR": str((compiled or folder) / "triton"),
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
        "PYTHONUNBUFFERED": "1",
    }
