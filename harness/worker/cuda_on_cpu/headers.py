"""The headers that a solution's sources reach: copied with their CUDA rewritten, and told apart.

A copy takes each header's place: the ``#include`` that names the header names the copy instead.
Headers of torch, the system and the CUDA toolkit are no copies: the compiler finds them itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness.domain import Unsupported
from harness.worker.cuda_on_cpu.rewrite import rewrite_cuda, rewrite_host
from harness.worker.cuda_on_cpu.support import RUNTIME
from harness.worker.cuda_on_cpu.unsupported import dead_lines, find_unsupported
from harness.worker.inputs import of_the_tool_chain

_INCLUDE = re.compile(r'(?P<head>[ \t]*#[ \t]*include[ \t]*)(?P<quote>["<])(?P<name>[^">\n]+)[">]')
_TOOLKIT = "cuda_runtime_api.h"


class Headers:
    """Copies of the headers that the units of one kind reach.

    Args:
        folder: where the copies go.
        include_paths: the solution's own, in the compiler's order.
        host: the units are C++ without kernels, not CUDA.
    """

    def __init__(self, folder: Path, include_paths: Sequence[str], *, host: bool) -> None:
        self._folder = folder
        self._paths = [Path(p) for p in include_paths if not (Path(p) / _TOOLKIT).exists()]
        self._host = host
        self.copies: dict[Path, Path] = {}

    def rewritten(self, source: str, beside: Path | None = None) -> str:
        """Return a source, rewritten, that includes the copies of the headers that it reaches.

        Args:
            source: the text.
            beside: folder of the file that it stands in, if it stands in one.

        Raises:
            Unsupported: a header has a construct that the CPU runner does not run.
        """
        dead = dead_lines(source)
        lines = source.split("\n")
        for number, line in enumerate(lines, start=1):
            match = _INCLUDE.match(line)
            if match is None or number in dead:
                continue
            header = self._found(match["name"], beside if match["quote"] == '"' else None)
            if header is not None:
                rest = line[match.end() :]
                lines[number - 1] = f'{match["head"]}"{self._copy(header)}"{rest}'
        text = "\n".join(lines)
        return rewrite_host(text) if self._host else rewrite_cuda(text)

    def _found(self, name: str, beside: Path | None) -> Path | None:
        """Return the header of the solution's own that an include names, or None."""
        if beside is not None and (beside / name).is_file():
            return (beside / name).resolve()
        if (RUNTIME / "include" / name).is_file():  # comes before the solution's include paths
            return None
        for folder in self._paths:
            if (folder / name).is_file():
                header = (folder / name).resolve()
                return None if of_the_tool_chain(header) else header
        return None

    def _copy(self, header: Path) -> Path:
        if header in self.copies:
            return self.copies[header]
        text = header.read_text(encoding="utf-8", errors="replace")
        found = None if self._host else find_unsupported(text)
        if found:
            raise Unsupported(
                f"{header}:{found[1]}: {found[0]} cannot run on the CPU; "
                "next: evaluate it on a GPU with --device cuda"
            )
        copy = self._folder / f"{len(self.copies)}_{header.name}"
        self.copies[header] = copy
        self._folder.mkdir(parents=True, exist_ok=True)
        directive = f'#line 1 "{header}"\n'
        copy.write_text(directive + self.rewritten(text, header.parent))
        return copy
