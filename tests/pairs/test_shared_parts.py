"""Shared parts of solutions: every copy equals its source; the script finds a stale one."""

import re
from pathlib import Path

import pytest

from solutions._shared import stamp as script
from solutions._shared.stamp import SOURCES, StampError, stale, stamp


def test_every_copy_is_its_source():
    assert list(stale(SOURCES.parent, SOURCES)) == [], (
        "python -m solutions._shared.stamp writes them anew"
    )


def test_every_source_is_used():
    text = "".join(path.read_text() for path in SOURCES.parent.glob("*/*.py"))
    for source in SOURCES.glob("*.cuh"):
        assert re.search(rf"^// >>> shared: {source.stem}$", text, re.MULTILINE), source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "_shared").mkdir()
    (tmp_path / "_shared" / "part.cuh").write_text('const char* kName = "PROBLEM";\n')
    (tmp_path / "add").mkdir()
    (tmp_path / "add" / "solution.py").write_text(
        "before\n// >>> shared: part\nstale\n// <<< shared: part\nafter\n"
    )
    return tmp_path


def test_stale_copy_is_found_and_mended(folder, monkeypatch, capsys):
    solution = folder / "add" / "solution.py"
    monkeypatch.setattr(script, "SOURCES", folder / "_shared")
    assert script.main(["--check"]) == 1
    assert str(solution) in capsys.readouterr().out
    assert "stale" in solution.read_text(), "--check writes nothing"
    assert script.main([]) == 0
    assert solution.read_text().splitlines() == [
        "before",
        "// >>> shared: part",
        'const char* kName = "add";',
        "// <<< shared: part",
        "after",
    ]
    assert script.main(["--check"]) == 0


def test_solution_with_a_switch_holds_the_text_of_its_source(folder):
    part = "// >>> shared: part\nstale\n// <<< shared: part\n"
    source = "N = 3\n# >>> shared: solution.py\n" + part + "run(N)\n# <<< shared: solution.py\n"
    (folder / "add" / "solution.py").write_text(source)
    switched = folder / "add" / "switched.py"
    switched.write_text("N = 1\n# >>> shared: solution.py\n# <<< shared: solution.py\n")
    for _ in range(2):
        found = stale(folder, folder / "_shared")
        for path, text in found.items():
            path.write_text(text)
    assert found == {}, "the second time nothing is left to do"
    assert switched.read_text() == source.replace("N = 3", "N = 1").replace(
        "stale", 'const char* kName = "add";'
    )


@pytest.mark.parametrize(
    "text",
    [
        "// >>> shared: part\n",
        "// <<< shared: part\n",
        "// >>> shared: part\n// <<< shared: other\n",
        "// >>> shared: part\n// >>> shared: part\n// <<< shared: part\n",
        "// >>> shared: missing\n// <<< shared: missing\n",
    ],
)
def test_wrong_markers_are_named_with_their_file(folder, text):
    with pytest.raises(StampError, match=r"add\.py.*Next: "):
        stamp(text, problem="add", where="add.py", sources=folder / "_shared")
