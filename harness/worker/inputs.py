"""Which files a compiler read for an extension, and whether they are still as they were."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import re
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils import cpp_extension

_NAME = "inputs.json"
_SYSTEM = re.compile(r"/usr/(?:include|lib\w*|local/cuda[^/]*|lib\w*/gcc)/")


@functools.cache
def _roots() -> tuple[Path, ...]:
    places = [Path(torch.__file__).parent, Path(sysconfig.get_paths()["include"])]
    places.append(Path(__file__).parent)
    if cpp_extension.CUDA_HOME:
        places.append(Path(cpp_extension.CUDA_HOME))
    return tuple({*places, *(p.resolve() for p in places)})


def of_the_tool_chain(path: Path) -> bool:
    """Return whether a header belongs to torch, Python, CUDA, the system or the CPU runner.

    The versions of these are part of an extension's key already.
    """
    return bool(_SYSTEM.match(str(path))) or any(path.is_relative_to(root) for root in _roots())


def in_rule(text: str) -> list[str]:
    """Return the files that a make rule of a compiler (``-MD``) names after its colon."""
    _, _, after = text.replace("\\\n", " ").partition(": ")
    return [name.replace("\\ ", " ") for name in re.findall(r"(?:\\ |\S)+", after)]


def known_to_ninja(folder: Path) -> list[str]:
    """Return the files that ninja noted while it built in a folder; torch builds with it."""
    done = subprocess.run(
        ["ninja", "-C", str(folder), "-t", "deps"], capture_output=True, text=True, check=True
    )
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]


def note(folder: Path, files: Iterable[str]) -> None:
    """Note in a folder content hashes of the files that were read for the extension in it.

    Files in the folder itself and the tool chain's are left out.
    """
    own = folder.resolve()
    read = {Path(folder, f).resolve() for f in files}
    kept = [p for p in sorted(read) if not p.is_relative_to(own) and not of_the_tool_chain(p)]
    if kept:
        text = json.dumps({str(p): _digest(p) for p in kept}, indent=1)
        (folder / _NAME).write_text(text)


def finish(folder: Path) -> Path:
    """Mark an extension's folder as finished and return it under a name that says what was read.

    One that read files of the solution gets their hash behind its name: an extension that was
    built when they were different may stand beside it.
    """
    (folder / "done").touch()
    if not (folder / _NAME).is_file():
        return folder
    read = hashlib.sha256((folder / _NAME).read_bytes()).hexdigest()[:12]
    return folder.rename(folder.with_name(f"{folder.name}-{read}"))


def finished(place: Path, key: str) -> Path | None:
    """Return the finished folder of a key in a place whose files are still as they were read."""
    folders = [place / key, *sorted(place.glob(f"{glob.escape(key)}-*"))]
    return next((f for f in folders if (f / "done").exists() and _unchanged(f)), None)


def noted(folder: Path) -> dict[str, str]:
    """Return what was read for the extension in a folder: hash by path."""
    path = folder / _NAME
    read: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return read


def _unchanged(folder: Path) -> bool:
    return all(_digest(Path(path)) == content for path, content in noted(folder).items())


def _digest(path: Path) -> str:
    """Return a hash of a file's content, or why there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"
