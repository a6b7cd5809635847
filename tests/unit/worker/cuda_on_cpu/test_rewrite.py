"""The rewriter, token by token: what it changes, and what it must leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.worker.cuda_on_cpu.build import _bindings
from harness.worker.cuda_on_cpu.locate import locate
from harness.worker.cuda_on_cpu.rewrite import has_definitions, rewrite_cuda, rewrite_host
from harness.worker.cuda_on_cpu.tokens import text_of, tokenize
from harness.worker.cuda_on_cpu.unsupported import find_unsupported


@pytest.mark.parametrize(
    "source",
    [
        'auto s = R"x(<<<a>>>()x"; // <<<1, 2>>>(3)\n/* k<<<1,1>>>() */ char c = \'"\';',
        "int x = 1'000'000; float f = 1.5e-3f; a >>= 2; p->*q; x = a >> b;",
        '#define A(x) \\\n  foo(x) \\\n  bar\n"unfinished \\" string";\r\n',
    ],
)
def test_tokens_joined_give_the_source_back(source: str) -> None:
    assert text_of(tokenize(source)) == source


def test_launch_in_comment_or_string_is_left_alone() -> None:
    source = '// k<<<1, 2>>>(3)\nconst char* s = "k<<<1, 2>>>(3)";'
    assert rewrite_cuda(source) == source


@pytest.mark.parametrize(
    ("launch", "kernel"),
    [
        ("k<<<1, 2>>>(x);", "k"),
        ("ns::k<T, 4, (a > b)><<<g, dim3(1, 2), n * sizeof(T), s>>>(x);", "ns::k<T, 4, (a > b)>"),
        ("k<std::pair<int, int>><<<1, 2>>>(x);", "k<std::pair<int, int>>"),
        ("table[i]<<<1, 2>>>(x);", "table[i]"),
        ("(f)<<<1, 2>>>(x);", "(f)"),
        ("::top::k<<<1, 2>>>(x);", "::top::k"),
        ("if (n > 0) k<<<(n + 255) / 256, 256>>>(x);", "k"),
        ("return k<<<1, 2>>>(x);", "k"),
    ],
)
def test_launch_calls_its_kernel(launch: str, kernel: str) -> None:
    text = rewrite_cuda(launch)
    assert f"{{ {kernel}(emu_p...); }}" in text
    assert "<<<" not in text


def test_launch_over_several_lines_keeps_the_line_count() -> None:
    source = "k<float,\n  4><<<grid,\n  block>>>(\n  a,  // first\n  b);\nint after;\n"
    assert rewrite_cuda(source).count("\n") == source.count("\n")


@pytest.mark.parametrize(
    ("declaration", "names"),
    [
        ("__shared__ float a[32][33], b;", ["a", "b"]),
        ("__shared__ typename R::Storage temp;", ["temp"]),
        ("volatile __shared__ std::pair<int, float> p[4];", ["p"]),
        ("__shared__ __align__(16) half tile[2][8 * 4];", ["tile"]),
        ("__shared__ struct { int x; } s;", ["s"]),
    ],
)
def test_static_shared_variables_become_references(declaration: str, names: list[str]) -> None:
    text = rewrite_cuda(f"void k() {{ {declaration} }}")
    for name in names:
        assert f"{name}_emu_type& {name} = ::emu::shared<{name}_emu_type" in text


def test_dynamic_shared_memory_inside_and_outside_a_function() -> None:
    inside = rewrite_cuda("void k() { extern __shared__ __align__(16) float s[]; }")
    assert "float* s = reinterpret_cast<float*>(emu_dynamic_shared())" in inside
    outside = rewrite_cuda("namespace n { extern __shared__ float s[]; }")
    assert "static ::emu::DynamicShared<float> s" in outside


def test_questions_for_the_device_are_answered_by_the_runner() -> None:
    text = rewrite_host(
        "if (!x.is_cuda() && y->device().is_cpu()) f(x.device().type() == torch::kCUDA);"
    )
    assert "!::emu::is_cuda((x))" in text
    assert "::emu::is_cpu((::emu::device(*(y))))" in text
    assert "== ::emu::cuda_type()" in text


def test_device_and_its_index_are_those_of_a_gpu() -> None:
    text = rewrite_host("f((t).device().index(), o.options().device(), g(x).get_device());")
    assert text == (
        "f(::emu::device(((t))).index(), ::emu::device((o.options())), ::emu::get_device((g(x))));"
    )
    assert rewrite_host("o.device(torch::Device(d))") == "o.device(torch::Device(d))"


def test_switch_over_a_device_type_meets_its_labels() -> None:
    body = "{ case torch::kCUDA: break; case c10::DeviceType::CPU: f(); }"
    assert rewrite_host(f"switch (x.device().type()) {body}") == (
        f"switch (::emu::switched(::emu::device((x)).type())) {body}"
    )
    assert rewrite_host(f"switch (auto t = y.t(); t) {body}") == (
        f"switch (auto t = y.t();::emu::switched( t)) {body}"
    )
    assert rewrite_host("switch (n) { case 1: f(); }") == "switch (n) { case 1: f(); }"


def test_cpu_device_is_only_touched_in_comparisons() -> None:
    text = rewrite_host("auto o = torch::empty({1}, torch::kCPU); bool b = d.type() == at::kCPU;")
    assert "torch::empty({1}, torch::kCPU)" in text
    assert "== ::emu::cpu_type_compared()" in text


def test_cooperative_launch_keeps_the_kernels_type() -> None:
    text = rewrite_cuda("cudaLaunchCooperativeKernel((void*)ns::k<float>, g, b, args, 0, s);")
    assert (
        '::emu::launch_by_array("k", __FILE__, __LINE__, 1, ns::k<float>, g, b, args, 0, s)' in text
    )


@pytest.mark.parametrize(
    ("source", "what", "line"),
    [
        ('__device__ void f() {\n asm volatile("bar.sync 0;");\n}', "inline PTX", 2),
        ("#include <mma.h>\n", "tensor-core", 1),
        ("void f() {\n\n  cublasSgemmBatched(h);\n}", "cuBLAS", 3),
        ("using namespace nvcuda;", "wmma", 1),
        ("#include <cub/cub.cuh>", "CUB", 1),
    ],
)
def test_unsupported_construct_is_named_with_its_line(source: str, what: str, line: int) -> None:
    found = find_unsupported(source)
    assert found is not None
    assert what in found[0]
    assert found[1] == line


@pytest.mark.parametrize(
    "source",
    [
        "// asm volatile here\nint x;",
        'const char* s = "asm";',
        '#if 0\nasm("x");\n#endif\n',
        '#if __CUDA_ARCH__ >= 900\nasm("x");\n#else\nint y;\n#endif\n',
        "int cub = 3; int thrust;",
    ],
)
def test_what_is_never_compiled_is_not_unsupported(source: str) -> None:
    assert find_unsupported(source) is None


def test_bindings_are_those_of_load_inline() -> None:
    text = _bindings({"f": 'say "hi"'}, error_handling=True)
    assert 'm.def("f", torch::wrap_pybind_function(f), "say \\"hi\\"");' in text


def test_declarations_are_told_from_definitions() -> None:
    assert not has_definitions("// { }\ntorch::Tensor f(torch::Tensor x);")
    assert has_definitions("int f() { return 1; }")


def test_source_is_located_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "solution.py"
    file.write_text('import torch\n\nsource = """\nint a;\nint b;\n"""\n')
    assert locate("\nint a;\nint b;\n", str(file)) == 3
    file.write_text(
        'n = 4\nsource = f"""\nint first_line = {n};\nint second_line;\nint third_line;\n"""\n'
    )
    assert locate("\nint first_line = 4;\nint second_line;\nint third_line;\n", str(file)) == 2
    assert locate("int never_there;", str(file)) is None
