"""Builds fail as the real tool chain's do, and say so at the solution's own line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.domain import BuildFailed, Unsupported
from harness.worker import inputs
from harness.worker.cuda_on_cpu import compile_files, compile_inline
from harness.worker.cuda_on_cpu.unsupported import CUDA_HEADER

pytestmark = pytest.mark.slow

GOOD = """#include <torch/extension.h>
__global__ void k(float* o) { o[threadIdx.x] = 1; }
torch::Tensor f(torch::Tensor x) {
    k<<<1, 4>>>(x.data_ptr<float>());
    return x;
}
"""
DECLARED = "torch::Tensor f(torch::Tensor x);"


@pytest.fixture
def build(support: Path, tmp_path: Path) -> Any:
    def run(cuda: str, cpp: str = DECLARED, functions: Any = ("f",), **more: Any) -> Path:
        solution = tmp_path / "solution.py"
        solution.write_text(f'# a solution\ncuda = """{cuda}"""\ncpp = """{cpp}"""\n')
        return compile_inline(
            name="ext",
            cpp_sources=[cpp],
            cuda_sources=[cuda],
            functions=functions if functions is None else list(functions),
            solution_file=str(solution),
            build_dir=tmp_path / "build",
            support_dir=support,
            **more,
        )

    return run


@pytest.mark.parametrize(
    ("cuda", "functions", "line", "text"),
    [
        (GOOD.replace("return x;", "return undeclared(x);"), ["f"], 6, "undeclared"),
        (GOOD.replace("= 1;", "= this_grid().size();"), ["f"], 3, "this_grid"),
        (GOOD.replace("k<<<1, 4>>>", "missing<<<1, 4>>>"), ["f"], 5, "missing"),
        (
            GOOD.replace("return x;", "C10_CUDA_CHECK(cudaGetLastError()); return x;"),
            ["f"],
            6,
            "C10_CUDA_CHECK",
        ),
        (
            GOOD.replace("= 1;", "= __half2float(__float2half(1.f) + __float2half(2.f));"),
            ["f"],
            3,
            "operator+",
        ),
    ],
    ids=["undeclared", "missing-include", "missing-kernel", "missing-header", "half-operators"],
)
def test_compiler_error_names_the_solutions_own_line(
    build: Any, cuda: str, functions: list[str], line: int, text: str
) -> None:
    with pytest.raises(BuildFailed) as failure:
        build(cuda, functions=functions)
    assert str(failure.value).startswith(f"solution.py:{line}: ")
    assert text in str(failure.value)
    assert "error" in failure.value.log


def test_cpp_and_cuda_sources_are_two_units(build: Any) -> None:
    cpp = (
        "#define WIDTH 8\nstatic int helper() { return WIDTH; }\nnamespace { struct Part {}; }\n"
        "torch::Tensor f(torch::Tensor x, double a = 2.0, int64_t n = helper());"
    )
    cuda = (
        GOOD.replace("torch::Tensor x)", "torch::Tensor x, double a = 2.0, int64_t n = 4)")
        + "#define WIDTH 4\nstatic int helper() { return WIDTH; }\nnamespace { class Part {}; }\n"
    )
    assert build(cuda, cpp=cpp).is_file()


def test_function_of_the_cpp_sources_that_the_cuda_sources_do_not_declare_is_unknown_there(
    build: Any,
) -> None:
    cpp = "static int helper() { return 4; }\n" + DECLARED
    with pytest.raises(BuildFailed, match=r"solution\.py:5: .*helper.*was not declared"):
        build(GOOD.replace("<<<1, 4>>>", "<<<1, helper()>>>"), cpp=cpp)


def test_function_in_the_list_that_is_not_declared_fails(build: Any) -> None:
    with pytest.raises(BuildFailed, match=r"functions=:\d+: .*forward"):
        build(GOOD, functions=["forward"])


def test_missing_declaration_in_cpp_sources_fails(build: Any) -> None:
    with pytest.raises(BuildFailed, match=r"functions=.*was not declared"):
        build(GOOD, cpp="")


def test_return_type_in_a_function_name_fails(build: Any) -> None:
    with pytest.raises(BuildFailed):
        build(GOOD, functions=["torch::Tensor f"])


def test_unsupported_construct_is_refused_with_its_line(build: Any) -> None:
    with pytest.raises(Unsupported, match=r"solution\.py:3: inline PTX"):
        build(GOOD.replace("o[threadIdx.x] = 1;", 'asm volatile("");'))


def test_half_operators_come_back_with_their_macro_and_limits_need_no_header(build: Any) -> None:
    source = GOOD.replace(
        "= 1;", "= __half2float(__float2half(1.f) + __float2half(2.f)) - FLT_MAX;"
    )
    macro = ["-U__CUDA_NO_HALF_OPERATORS__"]
    empty = {"extra_cflags": [""], "extra_ldflags": [""]}
    assert build(source, extra_cuda_cflags=["", *macro], **empty).is_file()


@pytest.mark.parametrize("how", ["path", "flag"])
def test_headers_that_are_reached_are_rewritten_and_noted(
    build: Any, tmp_path: Path, how: str
) -> None:
    (tmp_path / "inc" / "deep").mkdir(parents=True)
    (tmp_path / "inc" / "stage.cuh").write_text('#pragma once\n#include "deep/kernel.cuh"\n')
    (tmp_path / "inc" / "deep" / "kernel.cuh").write_text(
        '#include "../size.h"\n#include "../stage.cuh"\n'
        "__global__ void k(float* o) { __shared__ float s[SIZE]; o[0] = s[0] = 1; }\n"
        "inline void start(float* o) { k<<<1, SIZE>>>(o); }\n"
    )
    (tmp_path / "inc" / "size.h").write_text("#define SIZE 4\n")
    (tmp_path / "inc" / "never.cuh").write_text('__device__ void f() { asm("nop;"); }\n')
    source = "#include <stage.cuh>\n" + GOOD.replace(
        "__global__ void k(float* o) { o[threadIdx.x] = 1; }", "#if 0\n#include <never.cuh>\n#endif"
    ).replace("k<<<1, 4>>>", "start")
    inc = str(tmp_path / "inc")
    more = {"extra_include_paths": [inc]} if how == "path" else {"extra_cuda_cflags": ["-I" + inc]}
    library = build(source, **more)
    wanted = {"stage.cuh", "deep/kernel.cuh", "size.h"}
    assert inputs.noted(library.parent).keys() == {str(tmp_path / "inc" / n) for n in wanted}


def test_error_in_a_header_names_the_headers_own_line(build: Any, tmp_path: Path) -> None:
    (tmp_path / "part.cuh").write_text("\n\ninline int f() { return undeclared; }\n")
    with pytest.raises(BuildFailed, match=r"part\.cuh:3: .*undeclared"):
        build('#include "part.cuh"\n' + GOOD, extra_include_paths=[str(tmp_path)])
    (tmp_path / "part.cuh").write_text('\n__device__ void f() { asm("nop;"); }\n')
    with pytest.raises(Unsupported, match=r"part\.cuh:2: inline PTX"):
        build('#include "part.cuh"\n' + GOOD, extra_include_paths=[str(tmp_path)])


@pytest.mark.parametrize(
    "header", ["ATen/cuda/cub.cuh", "ATen/cuda/CUDAApplyUtils.cuh", "nvToolsExt.h", "cuComplex.h"]
)
def test_cuda_header_that_the_runner_lacks_is_unsupported(build: Any, header: str) -> None:
    with pytest.raises(Unsupported, match=rf"solution\.py:2: <{header}> .* lacks"):
        build(f"#include <{header}>\n{GOOD}")


@pytest.mark.parametrize("header", ["ATen/cuda/CUDAContexts.h", "cuda_fp61.h", "missing.h"])
def test_header_that_does_not_exist_anywhere_fails_the_build(build: Any, header: str) -> None:
    with pytest.raises(BuildFailed, match=rf"solution\.py:2: {header}: No such file"):
        build(f"#include <{header}>\n{GOOD}")


def test_every_header_of_the_toolkit_is_known_as_one() -> None:
    folder = Path("/usr/local/cuda/include")
    if not folder.is_dir():
        pytest.skip("no CUDA toolkit is installed here")
    names = [p.name for p in folder.iterdir() if p.is_file()]
    assert [n for n in names if not CUDA_HEADER.fullmatch(n)] == []


def test_files_with_their_own_bindings_build(support: Path, tmp_path: Path) -> None:
    (tmp_path / "kernel.cu").write_text(GOOD.replace("torch/extension.h", "torch/types.h"))
    (tmp_path / "bind.cpp").write_text(
        "#include <torch/extension.h>\n"
        f'{DECLARED}\nPYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {{ m.def("f", &f); }}\n'
    )
    library = compile_files(
        name="from_files",
        sources=[str(tmp_path / "bind.cpp"), str(tmp_path / "kernel.cu")],
        build_dir=tmp_path / "build",
        support_dir=support,
    )
    assert library.name == "from_files.so"
