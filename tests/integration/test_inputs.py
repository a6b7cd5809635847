"""An extension is built anew when a file that its compiler read has changed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.worker import inputs
from harness.worker.build import Builder

NINJA = """rule compile
  command = g++ -MMD -MF $out.d {folders} -fPIC -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = g++ -shared $in -o $out
build main.o: compile main.cpp
build {name}.so: link main.o
"""


def torch_build(
    name: str,
    *,
    cpp_sources: list[str],
    build_directory: str,
    extra_include_paths: list[str],
    **_: Any,
) -> None:
    """Build as torch does, by ninja with depfiles, but without torch's headers."""
    folder = Path(build_directory)
    (folder / "main.cpp").write_text("\n".join(cpp_sources))
    folders = " ".join(f"-I{p}" for p in extra_include_paths)
    (folder / "build.ninja").write_text(NINJA.format(folders=folders, name=name))
    subprocess.run(["ninja", "-C", str(folder)], check=True, capture_output=True)


@pytest.fixture
def built(tmp_path: Path) -> Callable[[], Builder]:
    """Return what asks for an extension in a worker of its own and moves it into the cache."""
    solution = tmp_path / "solution.py"
    solution.write_text("")
    (tmp_path / "inc" / "deep").mkdir(parents=True)
    (tmp_path / "inc" / "number.h").write_text('#include "deep/deep.h"\n')
    (tmp_path / "inc" / "deep" / "deep.h").write_text("#define NUMBER 1\n")
    cache = tmp_path / "cache"
    cache.mkdir()

    def build() -> Builder:
        staging = Path(tempfile.mkdtemp(dir=tmp_path))
        builder = Builder(
            device="cuda",
            cache=cache,
            build_folder=staging,
            support=tmp_path,
            solution=solution,
            announce=lambda event, name: None,
        )
        builder._torch_load_inline = torch_build
        builder.load_inline(
            "stale",
            '#include "number.h"\nint number() { return NUMBER; }\n',
            extra_include_paths=[str(tmp_path / "inc")],
            is_python_module=False,
        )
        for folder in staging.iterdir():
            folder.rename(cache / folder.name)
        return builder

    return build


def test_header_below_an_include_path_decides_what_is_built(
    built: Callable[[], Builder], tmp_path: Path
) -> None:
    deep = tmp_path / "inc" / "deep" / "deep.h"
    first, again = built(), built()
    assert first.keys == again.keys
    assert first.files == again.files == {str(deep), str(tmp_path / "inc" / "number.h")}
    deep.write_text("#define NUMBER 2\n")
    second = built()
    assert second.keys != first.keys
    deep.write_text("#define NUMBER 1\n")
    assert built().keys == first.keys
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_header_that_now_comes_first_decides_what_is_built(
    built: Callable[[], Builder], tmp_path: Path
) -> None:
    first = built()
    (tmp_path / "inc" / "other.h").write_text("")
    assert built().keys != first.keys


def test_rule_of_a_compiler_is_read() -> None:
    assert inputs.in_rule("a.o: a.cpp \\\n /x/b\\ c.h /y.h\n") == ["a.cpp", "/x/b c.h", "/y.h"]


def test_headers_of_the_tool_chain_are_told_from_the_solutions() -> None:
    import torch

    own = ["/home/me/inc/a.h", "/usr/local/include/b.h"]
    theirs = ["/usr/include/stdio.h", f"{torch.__path__[0]}/include/c10/util/Half.h"]
    theirs += ["/usr/lib/gcc/x86_64-linux-gnu/12/include/stddef.h", "/usr/local/cuda-13.0/a.h"]
    assert not [p for p in own if inputs.of_the_tool_chain(Path(p))]
    assert not [p for p in theirs if not inputs.of_the_tool_chain(Path(p))]
