"""Sizes of a problem file: found, and replaced before what is derived from them."""

from __future__ import annotations

import ast
from pathlib import Path

from harness.usercode import source


def test_integer_constants_are_found_in_arithmetic_and_nowhere_else() -> None:
    tree = ast.parse(
        "a = 4\nb = 16384 * 4\nc = 2**10 - 1\nd = a * 2\ne = 1.5\nf = -(3)\ng = 1 // 0\n"
    )
    found = source.integer_constants(tree)
    assert found == {"a": 4, "b": 65536, "c": 1023, "f": -3}


def test_what_is_derived_from_a_replaced_constant_follows(tmp_path: Path) -> None:
    path = tmp_path / "problem.py"
    path.write_text("features = 64 * 2\nshape = (features, 3)\n")
    module = source.execute(path, "derived_problem", {"features": 5})
    assert module.shape == (5, 3)


def test_byte_order_mark_and_windows_line_ends_are_read_as_python_reads_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "marked.py"
    path.write_bytes(b"\xef\xbb\xbfN = 4\r\nTEXT = '''a\r\nb'''\r\n")
    assert source.integer_constants(source.parse(path)) == {"N": 4}
    assert source.execute(path, "marked_problem").TEXT == "a\nb"
