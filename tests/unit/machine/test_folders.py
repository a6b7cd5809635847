"""What the harness makes goes where it can be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.machine import folders


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No home, and temporary files in a folder of the test's."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path


READ_ONLY = Path("/proc")  # nobody can make a folder there


def test_checkout_comes_first(tmp_path: Path) -> None:
    assert folders.kept(tmp_path, ".cache") == tmp_path / ".cache"
    assert (tmp_path / ".cache").is_dir()


def test_users_cache_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folders.kept(READ_ONLY, ".cache") == tmp_path / "xdg" / "kernel-eval" / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / ".cache" / "kernel-eval" / "results"
    assert folders.kept(READ_ONLY, "results") == expected


def test_without_a_home_later_runs_find_the_same_temporary_folder(homeless: Path) -> None:
    first = folders.kept(READ_ONLY, ".cache")
    assert first.is_relative_to(homeless)
    assert folders.kept(READ_ONLY, ".cache") == first


def test_temporary_folder_that_somebody_else_has_laid_is_not_used(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual = folders.kept(READ_ONLY, ".cache").parent
    (usual / "cache").rmdir()
    usual.rmdir()
    (tmp_path / "theirs").mkdir()
    usual.symlink_to(tmp_path / "theirs")
    assert not folders.kept(READ_ONLY, ".cache").is_relative_to(usual)
    assert not list((tmp_path / "theirs").iterdir())
