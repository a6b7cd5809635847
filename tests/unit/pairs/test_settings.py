"""SETTINGS is read without running the reference, and mistakes in it are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.domain import UsageError
from harness.pairs.settings import Interval, Settings, SolutionSettings, Tolerances, read_settings

FULL = """\
raise SystemExit("nobody runs this file")
batch_size = 4096
(rows, columns) = 1, 2
shape: tuple = (3, 4)
if True:
    hidden = 5
SETTINGS = {
    "modes": ["eval", "train"],
    "sizes": {"small": {"batch_size": 4, "shape": (1, (2, 3)), "columns": [1, 2], "hidden": None}},
    "tolerances": {"atol": 1e-3},
    "domain": {"x": {"min": 0, "max": 1.5}, "y": {"min": -1}},
    "fold_state": True,
    "solutions": {"hopper": {"precision": "tf32", "requires": "sm_90a"}, "solution": {}},
}
"""


def read(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "reference.py"
    path.write_text(text)
    return read_settings(path)


def test_reference_without_settings_has_the_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path, "import no_such_module\n")
    assert settings == Settings(modes=("forward",), fold_state=False, tolerances=None)


def test_every_key_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, FULL) == Settings(
        modes=("eval", "train"),
        sizes={"small": {"batch_size": 4, "shape": (1, (2, 3)), "columns": [1, 2], "hidden": None}},
        tolerances=Tolerances(atol=1e-3),
        domain={"x": Interval(min=0, max=1.5), "y": Interval(min=-1)},
        fold_state=True,
        solutions={
            "hopper": SolutionSettings(precision="tf32", requires="sm_90a"),
            "solution": SolutionSettings(),
        },
    )


def test_settings_survive_json(tmp_path: Path) -> None:
    settings = read(tmp_path, FULL)
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert Settings.from_json(json.loads(json.dumps(Settings().to_json()))) == Settings()


def test_literals_that_json_lacks_survive_json(tmp_path: Path) -> None:
    text = "a = 0\nSETTINGS = {'sizes': {'s': {'a': {1: (2, b'3'), 'k': 1 + 2j}}}}\n"
    settings = read(tmp_path, text)
    again = Settings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again.sizes["s"]["a"] == {1: (2, b"3"), "k": 1 + 2j}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('SETTINGS = {\n "mods": ["eval"]}', r"reference.py:2: .*'mods'; did you mean 'modes'"),
        ('SETTINGS = {"fold": True}', "did you mean 'fold_state'"),
        ('SETTINGS = {"zzz": 1}', "valid: modes, sizes, tolerances"),
        ('SETTINGS = {"modes": ["evall"]}', "unknown mode 'evall'; did you mean 'eval'"),
        ('SETTINGS = {"modes": "eval"}', "modes must be a list"),
        ('SETTINGS = {"modes": []}', "modes must be a list"),
        ('N = 1\nSETTINGS = {"sizes": {"small": {"n": 1}}}', ":2: .*'n'; did you mean 'N'"),
        ('SETTINGS = {"sizes": {"small": {"n": 1}}}', "valid: none"),
        ('N = 1\nSETTINGS = {"sizes": {"small": {"N": N}}}', "must be a literal, not 'N'"),
        ('SETTINGS = {"sizes": ["small"]}', "sizes must be a dict"),
        ('SETTINGS = {"tolerances": {"tol": 1}}', "did you mean 'rtol'"),
        ('SETTINGS = {"tolerances": {"atol": "1"}}', "atol must be a number"),
        ('SETTINGS = {"tolerances": {"atol": -1}}', "at least 0"),
        ('SETTINGS = {"tolerances": {"atol": True}}', "must be a number, not True"),
        ('SETTINGS = {"domain": {"x": {"mim": 1}}}', "did you mean 'min'"),
        ('SETTINGS = {"domain": {"x": {"min": 2, "max": 1}}}', "domain of 'x' is empty"),
        ('SETTINGS = {"fold_state": 1}', "must be True or False"),
        ('SETTINGS = {"solutions": {"s": {"precision": "fp31"}}}', "did you mean 'fp32'"),
        ('SETTINGS = {"solutions": {"s": {"requires": "hopper"}}}', "such as 'sm_90a'"),
        ('SETTINGS = {"modes": ["eval"], "modes": ["train"]}', "given twice"),
        ("SETTINGS = {1: 2}", "keys must be string"),
        ("SETTINGS = {**other}", "keys must be string"),
        ("SETTINGS = dict(modes=['eval'])", "must be a dict literal"),
        ("def broken(:\n", "reference.py:1: not valid Python"),
    ],
)
def test_mistake_names_file_line_and_the_nearest_valid_word(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        read(tmp_path, text)


def test_missing_reference_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(tmp_path / "nothing.py")
