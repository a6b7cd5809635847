"""The CPU runner's half and bfloat16 have every function that CUDA's headers declare."""

from __future__ import annotations

import bisect
import ctypes
import math
import re
import subprocess
from pathlib import Path

import pytest
import torch

from harness.machine.environment import find_nvcc
from harness.worker.cuda_on_cpu.support import (
    RUNTIME,
    base_flags,
    compiler,
    torch_include_flags,
)

_FUNCTION = re.compile(
    r"__CUDA_(?:HOSTDEVICE_)?(?:FP16|BF16)_DECL__\s+([^;{}]*?)\b(\w+)\s*\(([^)]*)\)\s*[;{]"
    r"|__CUDA_HOSTDEVICE__ __CUDA_\w+_FORCEINLINE__\s+([^;{}]*?)(operator\s*[^\s(]+)\s*\(([^)]*)\)"
)
_COMMENT_OR_DIRECTIVE = re.compile(
    r"/\*.*?\*/|//[^\n]*|^[ \t]*#(?:[^\n\\]|\\.)*", re.DOTALL | re.MULTILINE
)


def declared(header: str) -> list[tuple[str, str, list[str]]]:
    """Return result, name and parameter types of each function in the toolkit's header."""
    homes = [Path(tool).resolve().parents[1]] if (tool := find_nvcc()) else []
    paths = [home / "include" / header for home in (*homes, Path("/usr/local/cuda"))]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        pytest.skip("no CUDA toolkit is installed here")
    text = _COMMENT_OR_DIRECTIVE.sub("", path.read_text())
    found = []
    for match in _FUNCTION.finditer(text):
        result, name, parameters = match.groups()[:3] if match[2] else match.groups()[3:]
        if "DEPRECATION" in result:  # shuffles without a mask: no architecture of today has them
            continue
        types = [re.sub(r"\b\w+(?:\s*=.*)?$", "", p.strip()) for p in parameters.split(",")]
        found.append((result.strip(), name.replace(" ", ""), types))
    return found


@pytest.mark.parametrize(
    ("header", "number", "pair"),
    [
        ("cuda_fp16.h", "__half", "__half2"),
        ("cuda_bf16.h", "__nv_bfloat16", "__nv_bfloat162"),
    ],
)
def test_every_function_of_the_toolkits_header_is_there(
    tmp_path: Path, header: str, number: str, pair: str
) -> None:
    functions = declared(header)
    assert len(functions) > 200
    checks = [f"#include <{header}>\n#include <concepts>\n#include <utility>\n"]
    for i, (result, name, types) in enumerate(functions):
        # The types depend on the template's, so that a missing name is no error but false.
        own = [re.sub(rf"\b({number}|{pair})\b(?!_raw)", r"Only<T, \1>", t) for t in types]
        values = ", ".join(f"std::declval<Only<T, {t}>>()" for t in own)
        checks.append(
            f"template <class T> concept has{i} = requires {{ {{ {name}({values}) }} -> "
            f"std::same_as<{result}>; }};\n"
            f'static_assert(has{i}<int>, "{name}({", ".join(types)}) -> {result}");\n'
        )
    checks.insert(1, "template <class T, class U> struct OnlyT { using type = U; };\n")
    checks.insert(2, "template <class T, class U> using Only = typename OnlyT<T, U>::type;\n")
    source = tmp_path / "functions.cpp"
    source.write_text("".join(checks))
    command = [compiler(), *base_flags(), "-fsyntax-only", "-w", "-I", str(RUNTIME / "include")]
    done = subprocess.run(
        [*command, *torch_include_flags(), str(source)], capture_output=True, text=True
    )
    missing = re.findall(r"static assertion failed: (.*)", done.stderr)
    assert "\n".join(missing) == ""
    assert done.returncode == 0, done.stderr


PROBE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" int from_integer(long long v, int to) {
    const __half h[] = {__ll2half_rn(v), __ll2half_rd(v), __ll2half_ru(v), __ll2half_rz(v)};
    return h[to].bits;
}
extern "C" int from_double(double v) { return __double2half(v).bits; }
extern "C" int from_float(float v, int to) {
    const __nv_bfloat16 h[] = {__float2bfloat16_rn(v), __float2bfloat16_rd(v),
                               __float2bfloat16_ru(v), __float2bfloat16_rz(v)};
    return h[to].bits;
}
extern "C" int to_integer(float v, int to) {
    const __half h = __float2half(v);
    const int nearest = __half2short_rn(h), down = __half2short_rd(h), up = __half2short_ru(h);
    return to == 0 ? nearest : to == 1 ? down : to == 2 ? up : __half2short_rz(h);
}
extern "C" int compared(float x, float y) {
    const __half a = __float2half(x), b = __float2half(y);
    const __half2 p = __halves2half2(a, b), q = __halves2half2(b, b);
    return __heq(a, b) | __hne(a, b) << 1 | __hneu(a, b) << 2 | __hltu(a, b) << 3
        | __hgeu(a, b) << 4 | (p == q) << 5 | (p != q) << 6 | (p <= q) << 7
        | (__hlt2_mask(p, q) == 0xffffu) << 8;
}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cpp").write_text(PROBE)
    command = [compiler(), *base_flags(), "-O1", "-shared", "-w", "-I", str(RUNTIME / "include")]
    command += [*torch_include_flags(), str(folder / "probe.cpp"), "-o", str(folder / "probe.so")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "probe.so"))
    library.from_integer.argtypes = ctypes.c_longlong, ctypes.c_int
    library.from_double.argtypes = (ctypes.c_double,)
    library.from_float.argtypes = library.to_integer.argtypes = ctypes.c_float, ctypes.c_int
    library.compared.argtypes = ctypes.c_float, ctypes.c_float
    return library


def number(bits: int, dtype: torch.dtype) -> float:
    return float(torch.tensor([bits], dtype=torch.int32).to(torch.int16).view(dtype))


def roundings(value: float, dtype: torch.dtype) -> list[float]:
    """Return value rounded to nearest, down, up, towards zero, found among all numbers."""
    everything = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).double()
    known = sorted(set(everything[~everything.isnan()].tolist()))
    below = known[bisect.bisect_right(known, value) - 1]
    above = known[bisect.bisect_left(known, value)]
    nearest = float(torch.tensor(value, dtype=torch.float64).to(dtype))
    return [nearest, below, above, above if value < 0 else below]


@pytest.mark.parametrize(
    "value", [0, 1, 2049, -2049, 2051, -2051, 65504, 65519, 65520, -70000, 9**18]
)
def test_integers_are_rounded_as_asked(probe: ctypes.CDLL, value: int) -> None:
    got = [number(probe.from_integer(value, to), torch.float16) for to in range(4)]
    assert got == roundings(value, torch.float16)


@pytest.mark.parametrize("value", [1.0, 1.001, -1.001, 1e-40, -3e38, 3.4e38, 257.0, 0.0])
def test_floats_are_rounded_as_asked(probe: ctypes.CDLL, value: float) -> None:
    value = ctypes.c_float(value).value
    got = [number(probe.from_float(value, to), torch.bfloat16) for to in range(4)]
    assert got == roundings(value, torch.bfloat16)


def test_double_is_rounded_once(probe: ctypes.CDLL) -> None:
    tie_and_a_bit = 1 + 2**-11 + 2**-40  # rounding to float first would make it a tie
    assert number(probe.from_double(tie_and_a_bit), torch.float16) == 1 + 2**-10
    assert math.isnan(number(probe.from_double(math.nan), torch.float16))


def test_numbers_become_integers_as_asked(probe: ctypes.CDLL) -> None:
    assert [probe.to_integer(-2.5, to) for to in range(4)] == [-2, -3, -2, -2]
    assert [probe.to_integer(v, 0) for v in (1e9, -1e9, math.nan)] == [32767, -32768, 0]


@pytest.mark.parametrize(
    ("a", "b", "bits"),
    [
        (1.0, 1.0, "eq geu p==q p<=q"),
        (1.0, 2.0, "ne neu ltu p<=q mask"),
        (2.0, 1.0, "ne neu geu"),
        (math.nan, 1.0, "neu ltu geu"),
    ],
)
def test_comparisons_know_nan_and_those_of_pairs_ask_both_halves(
    probe: ctypes.CDLL, a: float, b: float, bits: str
) -> None:
    names = ["eq", "ne", "neu", "ltu", "geu", "p==q", "p!=q", "p<=q", "mask"]
    got = probe.compared(a, b)
    assert [n for i, n in enumerate(names) if got >> i & 1] == bits.split()
