"""A package that is not installed is named with what to install; a misspelt name is a mistake."""

from __future__ import annotations

import importlib.util

import pytest

from harness.usercode import packages


def error_of(name: str) -> ModuleNotFoundError:
    with pytest.raises(ModuleNotFoundError) as raised:
        __import__(name)
    return raised.value


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is installed")
def test_known_package_that_is_missing_is_named_with_what_to_install() -> None:
    told = packages.missing(error_of("flash_attn.layers"))
    assert told.endswith("which is not installed. Next: pip install flash-attn")


def test_name_that_nobody_knows_is_no_missing_package() -> None:
    assert packages.missing(error_of("tranformers")) == ""
    assert packages.missing(error_of("torch.no_such_module")) == ""
    assert packages.missing(ImportError("cannot import name", name="einops")) == ""


def test_installed_package_is_not_missing() -> None:
    assert packages.missing(ModuleNotFoundError("raised by hand", name="numpy")) == "" or (
        importlib.util.find_spec("numpy") is None
    )
