"""Small torch headers for one extension: what they hold, and when torch's own are used."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.judge.workers.cache import ExtensionCache
from harness.worker import fast_headers
from harness.worker.build import Builder, ExtensionBuildError
from harness.worker.fast_headers import NotFast, Source, identifiers
from tests.integration.test_extension_names import compile_module

INCLUDE = Path(torch.__file__).parent / "include"
KERNEL = """
#include <torch/extension.h>
__global__ void scale(const float* x, float* y, int n) { if (threadIdx.x < n) y[0] = x[0]; }
torch::Tensor run(torch::Tensor x) {
  TORCH_CHECK(x.is_cuda(), "x is to be on a GPU: use torch::argsort, at::bmm");
  auto y = torch::zeros({x.size(0)}, x.options().dtype(torch::kFloat32)); // torch::cumsum
  /* x.softmax(0) */
  scale<<<1, 32>>>(x.data_ptr<float>(), y.data_ptr<float>(), x.numel());
  return y.relu_();
}
"""


def written(folder: Path, *texts: str, cuda: bool = True, **more: Any) -> dict[str, str]:
    """Return the headers that are written for CUDA sources, by their path."""
    sources = [Source(text=text, cuda=cuda) for text in texts]
    fast_headers.write(folder, sources, torch_include=INCLUDE, **more)
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.h")}


def test_names_in_comments_and_literals_are_no_names() -> None:
    text = """
    // commented one
    /* commented two */ auto a = "quoted three \\" still";
    const char* b = R"(raw four " )"; char c = '"'; auto w = L'"'; int d = 1'000; x.member(); // end
    #include <included/five.h>
    """
    assert identifiers(text) >= {"auto", "a", "b", "c", "w", "d", "x", "member"}
    found = identifiers(text) & {"commented", "quoted", "still", "raw", "included", "five", "end"}
    assert not found


def test_operators_that_the_source_names_are_included(tmp_path: Path) -> None:
    functions = written(tmp_path, KERNEL)["ATen/Functions.h"]
    assert "<ATen/ops/zeros.h>" in functions
    assert "<ATen/ops/relu.h>" in functions, "a method that works in place has its operator"
    for name in ("argsort", "bmm", "cumsum", "softmax"):
        assert f"<ATen/ops/{name}.h>" not in functions


def test_operator_named_as_the_solutions_own_function_is_included(tmp_path: Path) -> None:
    """With at::softmax declared, a call of the solution's own softmax may be ambiguous."""
    own = "torch::Tensor softmax(torch::Tensor x); auto f(torch::Tensor x) { return softmax(x); }"
    assert "<ATen/ops/softmax.h>" in written(tmp_path, own)["ATen/Functions.h"]


def test_factories_are_torchs_own_text(tmp_path: Path) -> None:
    """at::zeros refuses options that ask for a gradient, and dispatches through autograd."""
    types = written(tmp_path, KERNEL)["torch/types.h"]
    assert "inline at::Tensor zeros(" in types
    assert "AutoDispatchBelowADInplaceOrView" in types
    assert "inline at::Tensor ones(" not in types
    assert "kFloat32" in types


def test_source_that_may_ask_for_a_gradient_gets_the_real_variable(tmp_path: Path) -> None:
    headers = written(tmp_path, "auto o = torch::TensorOptions().requires_grad(true);")
    assert "torch/csrc/autograd/variable.h" in headers["ATen/ATen.h"]
    assert "fast_headers" not in headers["torch/types.h"]


def test_abs_of_a_float_is_no_abs_of_an_integer(tmp_path: Path) -> None:
    """Python.h brings <math.h>; a unit without bindings does not get Python.h."""
    core = written(tmp_path, "float f(float x) { return abs(x); }", cuda=False)["ATen/ATen.h"]
    assert "<math.h>" in core and "<stdlib.h>" in core


def test_bindings_bring_pybind11(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", KERNEL)
    bound = written(tmp_path / "bound", "PYBIND11_MODULE(x, m) {}", cuda=False)
    assert "pybind" not in plain["torch/extension.h"]
    assert "torch/csrc/utils/pybind.h" in bound["torch/extension.h"]


@pytest.mark.parametrize(
    "text",
    [
        "torch::nn::Linear layer(3, 4);",
        "#define NAME(x) torch::x##_like\n",
        "namespace torch { int own; }",
        "namespace t = torch;",
        "using namespace torch;",
        "TORCH_LIBRARY(own, m) {}",
        "int n = __COUNTER__;",
        '#include "missing.h"',
        "#include HEADER\n",
        "at::parallel_for(0, 1, 1, f);",
        "torch::cuda::synchronize();",
    ],
)
def test_source_that_left_out_headers_could_change_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(NotFast):
        written(tmp_path, KERNEL + text)


def test_flag_that_includes_a_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFast):
        written(tmp_path, KERNEL, flags=["-include", "own.h"])


def test_names_of_own_headers_count(tmp_path: Path) -> None:
    (tmp_path / "own.h").write_text("inline auto f(torch::Tensor x) { return x.cumsum(0); }")
    text = KERNEL + '#include "own.h"\n'
    functions = written(tmp_path / "out", text, include_paths=[tmp_path])["ATen/Functions.h"]
    assert "<ATen/ops/cumsum.h>" in functions


def checked(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Ask g++ whether a text compiles with the headers that are written for it."""
    written(folder, text, cuda=False)
    (folder / "main.cpp").write_text(text)
    folders = [INCLUDE, INCLUDE / fast_headers.API, sysconfig.get_paths()["include"]]
    command = ["g++", "-std=c++20", "-fsyntax-only", "-DTORCH_EXTENSION_NAME=own", f"-I{folder}"]
    command += [part for folder in folders for part in ("-isystem", str(folder))]
    return subprocess.run(
        [*command, str(folder / "main.cpp")], capture_output=True, text=True, check=False
    )


def test_header_beside_an_own_header_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.h").write_text('#include "other.h"\n')
    (tmp_path / "sub" / "other.h").write_text("inline auto f(torch::Tensor x) { return x.bmm(x); }")
    (tmp_path / "other.h").write_text("")
    text = KERNEL + '#include "sub/own.h"\n'
    functions = written(tmp_path / "out", text, include_paths=[tmp_path])["ATen/Functions.h"]
    assert "<ATen/ops/bmm.h>" in functions


@pytest.mark.slow
def test_written_headers_compile_with_bindings(tmp_path: Path) -> None:
    done = checked(
        tmp_path,
        """
        #include <torch/extension.h>
        torch::Tensor run(torch::Tensor x, std::optional<torch::Tensor> y) {
          auto z = torch::empty_like(x).fill_(2.0) + torch::ones({2, 3}, x.options());
          auto part = x.index({torch::indexing::Slice()});
          return torch::matmul(z, part).to(torch::kFloat64);
        }
        PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
          m.def("run", torch::wrap_pybind_function(run), "run");
        }
        """,
    )
    assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.slow
def test_call_that_is_ambiguous_with_torchs_headers_stays_ambiguous(tmp_path: Path) -> None:
    done = checked(
        tmp_path,
        """
        #include <torch/extension.h>
        torch::Tensor relu(torch::Tensor x) { return x; }
        torch::Tensor run(torch::Tensor x) { return relu(x); }
        """,
    )
    assert done.returncode != 0 and "ambiguous" in done.stderr


@pytest.fixture
def builds() -> list[str]:
    """Return which headers the fake torch was asked to build with, in order."""
    return []


@pytest.fixture
def make(
    tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Builder]:
    """Return a function that makes a process's builder; its torch compiles numbers."""

    def maker(fails: tuple[str, ...] = (), *, fast: bool = True) -> Builder:
        builder = Builder(
            device="cuda",
            cache=tmp_path / "none",
            build_folder=tmp_path / "staging",
            support=tmp_path,
            solution=tmp_path / "solution.py",
            announce=lambda event, name: None,
            fast_headers=fast,
        )

        def load_inline(
            name: str,
            cpp_sources: list[str],
            *,
            build_directory: str,
            extra_include_paths: list[str],
            **_: Any,
        ) -> None:
            kind = "fast" if extra_include_paths else "torch"
            builds.append(kind)
            if kind in fails:
                raise RuntimeError(f"{build_directory}/main.cpp:1:1: error: with {kind} headers")
            cpp_sources.insert(0, "as torch does")
            compile_module(Path(build_directory), name, cpp_sources[1])

        monkeypatch.setattr(builder, "_torch_load_inline", load_inline, raising=False)
        return builder

    (tmp_path / "solution.py").write_text("")
    return maker


def test_build_tries_the_fast_headers_first(
    make: Callable[..., Builder], builds: list[str]
) -> None:
    assert make().load_inline("ext", "1").value == 1
    assert builds == ["fast"]


def test_failure_with_fast_headers_is_followed_by_torchs_own(
    make: Callable[..., Builder], builds: list[str]
) -> None:
    builder = make(("fast",))
    assert builder.load_inline("ext", "1").value == 1
    assert builds == ["fast", "torch"]
    assert builder.failures == []


def test_message_of_a_broken_source_is_that_of_torchs_headers(
    make: Callable[..., Builder], builds: list[str]
) -> None:
    builder = make(("fast", "torch"))
    with pytest.raises(ExtensionBuildError, match="with torch headers"):
        builder.load_inline("ext", "1")
    assert len(builder.failures) == 1 and "fast" not in builder.failures[0]


def test_source_that_is_refused_is_compiled_once(
    make: Callable[..., Builder], builds: list[str]
) -> None:
    make().load_inline("ext", "1", "namespace torch {}")
    assert builds == ["torch"]


def test_switched_off_is_off(make: Callable[..., Builder], builds: list[str]) -> None:
    make(fast=False).load_inline("ext", "1")
    assert builds == ["torch"]


def test_another_process_finds_what_was_built_either_way(
    make: Callable[..., Builder], builds: list[str]
) -> None:
    first, second = make(("fast",)), make()
    first.load_inline("ext", "1")
    second.load_inline("ext", "1")
    assert builds == ["fast", "torch"]
    assert second.keys == first.keys


def test_key_tells_which_headers_were_used(make: Callable[..., Builder]) -> None:
    fast, own = make(), make(fast=False)
    fast.load_inline("ext", "1")
    own.load_inline("ext", "1")
    assert fast.keys != own.keys


@pytest.mark.parametrize(("fails", "used"), [((), "fast"), (("fast",), "torch")])
def test_manifest_tells_which_headers_were_used(
    make: Callable[..., Builder], tmp_path: Path, fails: tuple[str, ...], used: str
) -> None:
    solution = tmp_path / "solution.py"
    builder = make(fails)
    builder.load_inline("ext", "1")
    cache = ExtensionCache(tmp_path / "cache", solution, "cuda", fast_headers=True)
    cache.adopt(tmp_path / "staging", builder.keys, [], failed=False)
    manifest = json.loads((cache.folder / "manifest.json").read_text())
    assert list(manifest["headers"].values()) == [used]
    assert cache.complete()
    off = ExtensionCache(tmp_path / "cache", solution, "cuda", fast_headers=False)
    assert not off.complete()
