"""Describes this machine for the records. Imports no torch."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.domain import VERSION

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""Folder of the harness package, and in a checkout of problems/ and solutions/."""
PACKAGE = Path(__file__).parents[1]
"""Folder of the harness package, at the path from which Python imported it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """The installed torch, read from its files.

    Attributes:
        version: e.g. ``2.13.0+cu130``.
        cuda: its CUDA version, e.g. ``13.0``; None for a CPU build.
    """

    version: str
    cuda: str | None


@lru_cache(maxsize=1)
def torch_build() -> TorchBuild | None:
    """Return the installed torch, without importing it; None without one."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    values: dict[str, Any] = {}
    try:
        tree = ast.parse((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        tree = ast.Module(body=[], type_ignores=[])
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            values[target.id] = value.value
    version = values.get("__version__")
    if not isinstance(version, str):
        version = metadata.version("torch")
    return TorchBuild(version=version, cuda=values.get("cuda"))


def find_compiler() -> str | None:
    """Return the C++ compiler of torch's extension builder; None without one."""
    named = os.environ.get("CXX")
    if named:
        return shutil.which(named.split()[0])
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def find_nvcc() -> str | None:
    """Return the nvcc that torch finds, else that of a package in this environment.

    torch searches CUDA_HOME, then PATH, then /usr/local/cuda.
    """
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    for home in filter(None, homes):
        nvcc = Path(home) / "bin" / "nvcc"
        if nvcc.is_file():
            return str(nvcc)
    usual = Path("/usr/local/cuda/bin/nvcc")
    if (found := shutil.which("nvcc")) or usual.is_file():
        return found or str(usual)
    toolkit = packaged_toolkit()
    return str(toolkit / "bin" / "nvcc") if toolkit else None


def packaged_toolkit() -> Path | None:
    """Return the folder with ``bin/nvcc`` of pip's cuda-toolkit; None without one."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    found = [nvcc for folder in folders or () for nvcc in Path(folder).glob("cu*/bin/nvcc")]
    return max(found).parent.parent if found else None


def find_ncu() -> str | None:
    """Return Nsight Compute's command: from PATH, else beside nvcc, else the newest in /opt."""
    on_path = shutil.which("ncu")
    if on_path:
        return on_path
    nvcc = find_nvcc()
    beside = [Path(nvcc).with_name("ncu")] if nvcc else []
    packaged = sorted(
        Path("/opt/nvidia/nsight-compute").glob("*/ncu"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)],
        reverse=True,
    )
    return next((str(path) for path in [*beside, *packaged] if path.is_file()), None)


def nvcc_version(nvcc: str) -> str | None:
    """Return the release of nvcc, e.g. ``13.0``."""
    found = re.search(r"release (\d+\.\d+)", said(nvcc, "--version"))
    return found.group(1) if found else None


def nvcc_architectures(nvcc: str) -> tuple[str, ...]:
    """Return the architectures of an nvcc, e.g. ``sm_80``."""
    return tuple(re.findall(r"\bsm_\d+\b", said(nvcc, "--list-gpu-code")))


def driver_version() -> str | None:
    """Return the version of the NVIDIA kernel driver, e.g. ``580.65.06``; None without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", text)
    if found:
        return found.group(1)
    if shutil.which("nvidia-smi"):
        text = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found = re.search(r"\d{3,4}\.\d+(?:\.\d+)?", text)
    return found.group(0) if found else None


def oom_kills() -> int:
    """Return the number of processes that the kernel has killed for want of memory."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text().splitlines():
                if line.startswith("oom_kill "):
                    count += int(line.split()[1])
    return count


def cpu_name() -> str:
    """Return the CPU's model name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of the checkout, with ``-dirty`` if files differ; None outside of one."""
    if not (PROJECT_ROOT / ".git").exists():
        return None
    git = ("git", "-C", str(PROJECT_ROOT))
    head = said(*git, "rev-parse", "HEAD").strip()
    if not re.fullmatch(r"[0-9a-f]{40,64}", head):
        return None
    dirty = said(*git, "status", "--porcelain", "--untracked-files=no").strip()
    return head + ("-dirty" if dirty else "")


def said(*command: str) -> str:
    """Return the output of a short command; empty if it fails or takes longer than 20 s."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def describe_environment(gpus: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the environment of a run as plain JSON; null for parts that this machine lacks.

    Args:
        gpus: names of the visible GPUs, in order.
    """
    build = torch_build()
    compiler, nvcc = find_compiler(), find_nvcc()
    return {
        "harness": VERSION,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "gpu": list(gpus),
        "driver": driver_version(),
        "torch": build.version if build else None,
        "cuda": build.cuda if build else None,
        "nvcc": nvcc_version(nvcc) if nvcc else None,
        "compiler": said(compiler, "--version").partition("\n")[0] or None if compiler else None,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "os": platform.platform(),
    }
