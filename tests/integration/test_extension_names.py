"""Which extension a solution gets where it uses one name for several."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.domain import BuildFailed
from harness.judge import own_kernels
from harness.pairs.local_files import imported_files
from harness.worker import cuda_on_cpu
from harness.worker.build import Builder

MODULE = """
#include <Python.h>
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "NAME", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_NAME(void) {
    PyObject* module = PyModule_Create(&def);
    PyModule_AddIntConstant(module, "value", VALUE);
    return module;
}
"""


def compile_module(folder: Path, name: str, value: str) -> None:
    """Build a Python module that holds one number, in the place of an extension."""
    source = folder / "module.c"
    source.write_text(MODULE.replace("NAME", name).replace("VALUE", value))
    include = sysconfig.get_paths()["include"]
    library = folder / f"{name}.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(library)], check=True
    )


@pytest.fixture
def built() -> list[str]:
    """Return the names under which extensions were built."""
    return []


@pytest.fixture
def builder(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Builder]:
    """Return a function that makes the builder of a process, with a compiler of numbers."""

    def compile_inline(*, name: str, build_dir: Path, cpp_sources: list[str], **_: Any) -> None:
        built.append(name)
        compile_module(build_dir, name, cpp_sources[0])

    monkeypatch.setattr(cuda_on_cpu, "compile_inline", compile_inline)

    def make(device: str = "cpu", cache: Path = tmp_path / "none", **more: Any) -> Builder:
        return Builder(
            device=device,
            cache=cache,
            build_folder=tmp_path / "staging",
            support=tmp_path,
            solution=tmp_path / "solution.py",
            announce=lambda event, name: None,
            **more,
        )

    return make


def test_each_source_gets_its_own_extension(
    builder: Callable[..., Builder], built: list[str]
) -> None:
    process = builder()
    first, second, again = (process.load_inline("ext", value) for value in ("1", "2", "1"))
    assert (first.value, second.value, again.value) == (1, 2, 1)
    assert built == ["ext", "ext_v1"]
    assert (first.__name__, second.__name__) == ("ext", "ext_v1")


def test_other_flags_are_another_extension(
    builder: Callable[..., Builder], built: list[str]
) -> None:
    process = builder()
    process.load_inline("ext", "1")
    process.load_inline("ext", "1", extra_cflags=["-O3"])
    assert built == ["ext", "ext_v1"]


def test_another_process_finds_both(
    builder: Callable[..., Builder], built: list[str], tmp_path: Path
) -> None:
    first = builder()
    for value in ("1", "2"):
        first.load_inline("ext", value)
    second = builder(cache=tmp_path / "staging")
    assert [second.load_inline("ext", value).value for value in ("1", "2", "2")] == [1, 2, 2]
    assert built == ["ext", "ext_v1"]
    assert second.keys[:2] == first.keys


def test_process_that_asks_in_another_order_mixes_nothing_up(
    builder: Callable[..., Builder], tmp_path: Path
) -> None:
    for value in ("1", "2"):
        builder().load_inline("ext", value)
    other = builder(cache=tmp_path / "staging")
    assert [other.load_inline("ext", value).value for value in ("2", "1")] == [2, 1]


def test_number_that_the_solution_writes_itself_is_no_collision(
    builder: Callable[..., Builder], built: list[str]
) -> None:
    process = builder()
    asked = [("ext", "1"), ("ext", "2"), ("ext_v1", "3"), ("ext_v1", "4"), ("ext", "5")]
    assert [process.load_inline(*one).value for one in asked] == [1, 2, 3, 4, 5]
    assert len(set(built)) == 5


def test_extension_that_torch_renamed_is_imported_under_its_new_name(
    builder: Callable[..., Builder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch numbers by content and folder, and may come to another number than ours."""
    process = builder("cuda")

    def load_inline(name: str, *, cpp_sources: list[str], build_directory: str, **_: Any) -> None:
        compile_module(Path(build_directory), f"{name}_v7", cpp_sources[0])

    monkeypatch.setattr(process, "_torch_load_inline", load_inline, raising=False)
    assert process.load_inline("ext", "1").value == 1
    assert process.load_inline("ext", "2").value == 2


def test_a_failed_build_is_not_tried_again(
    builder: Callable[..., Builder], monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers: list[str] = []

    def fails(*, name: str, **_: Any) -> None:
        compilers.append(name)
        raise BuildFailed("x.cu:3: error: on purpose", "all of the log")

    monkeypatch.setattr(cuda_on_cpu, "compile_inline", fails)
    first = builder()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            first.load_inline("ext", "1")
    assert compilers == ["ext"]
    in_another_process = builder(failed=first.failed)
    with pytest.raises(RuntimeError, match="on purpose") as error:
        in_another_process.load_inline("ext", "1")
    assert error.value.log == "all of the log"  # type: ignore[attr-defined]
    assert compilers == ["ext"]
    assert in_another_process.failures == ["x.cu:3: error: on purpose"]
    with pytest.raises(RuntimeError, match="on purpose"):
        in_another_process.load_inline("ext", "2")
    assert compilers == ["ext", "ext_v1"]


def test_kernels_of_an_imported_module_are_the_solutions_own(tmp_path: Path) -> None:
    solution, helper = tmp_path / "solution.py", tmp_path / "parts" / "helper.py"
    helper.parent.mkdir()
    solution.write_text("from parts import helper\nNOTE = 'other.py'\n")
    helper.write_text('SOURCE = """__global__ void mine(float* x) {}"""\n')
    (tmp_path / "other.py").write_text('SOURCE = """__global__ void other(float* x) {}"""\n')
    assert imported_files(solution) == [helper]
    sources = own_kernels.sources_of(solution.read_text(), map(str, imported_files(solution)))
    assert own_kernels.kernel_names(sources) == {"mine"}
