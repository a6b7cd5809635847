"""Loads the module that a worker holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.usercode import source
from harness.usercode.modules import seed_everything


class LoadError(Exception):
    """The file has no usable class; the message names the file."""


def load_module(
    path: Path, class_name: str, init: list[Any], seed: int, overrides: Mapping[str, Any]
) -> torch.nn.Module:
    """Execute a file and return its module, constructed with init under the given seed.

    Raises:
        LoadError: the file has no such class, or the class is no torch.nn.Module.
        Exception: whatever the file or the constructor raises.
    """
    namespace = source.execute(path, f"evaluated_{class_name.lower()}", overrides)
    cls = getattr(namespace, class_name, None)
    if cls is None:
        raise LoadError(f"{path} defines no {class_name}. Next: name the class {class_name}.")
    seed_everything(seed)
    module = cls(*init)
    if not isinstance(module, torch.nn.Module):
        raise LoadError(
            f"{path}: {class_name} is a {type(module).__name__}, not a torch.nn.Module. "
            f"Next: derive {class_name} from torch.nn.Module."
        )
    return module
