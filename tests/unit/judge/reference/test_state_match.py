"""Which of the reference's tensors each of the candidate's tensors gets."""

from __future__ import annotations

from typing import Any

import pytest

from harness.domain import Status
from harness.judge.reference.state import Match, StateMismatch, match


def tensor(name: str, *shape: int, kind: str = "parameter", tie: str = "") -> dict[str, Any]:
    return {"name": name, "tie": tie or name, "kind": kind, "shape": shape, "dtype": "float32"}


def matched(ours: list[Any], theirs: Any, *constants: str, training: bool = True) -> Match:
    return match(ours, theirs, frozenset(constants), training=training)


NORM = [tensor("bn.weight", 4), tensor("bn.bias", 4), tensor("bn.mean", 4, kind="buffer")]


def test_names_match_first() -> None:
    found = matched(NORM, NORM)
    assert found.source == {"bn.weight": "bn.weight", "bn.bias": "bn.bias", "bn.mean": "bn.mean"}
    assert found.notes == ()


def test_suffix_matches_where_it_is_unique() -> None:
    theirs = [tensor("w.weight", 4), tensor("b.bias", 4), tensor("s.mean", 4, kind="buffer")]
    found = matched(NORM, theirs)
    assert found.source == {"w.weight": "bn.weight", "b.bias": "bn.bias", "s.mean": "bn.mean"}
    assert found.notes[0] == "w.weight <- bn.weight (by suffix)"


def test_position_matches_where_both_sides_have_as_many() -> None:
    found = matched([tensor("a", 4), tensor("b", 4)], [tensor("x", 4), tensor("y", 4)])
    assert found.source == {"x": "a", "y": "b"}


def test_constant_may_be_left_out_and_an_own_buffer_added() -> None:
    ours = [tensor("w", 4), tensor("mask", 8, kind="buffer")]
    found = matched(ours, [tensor("w", 4), tensor("scratch", 2, kind="buffer")], "mask")
    assert (found.source, found.unheld) == ({"w": "w"}, ("mask",))
    assert len(found.notes) == 2


def test_parameter_as_a_buffer_matches_without_gradients_only() -> None:
    ours, theirs = [tensor("w", 4)], [tensor("w", 4, kind="buffer")]
    assert matched(ours, theirs, training=False).source == {"w": "w"}
    with pytest.raises(StateMismatch, match="w is a buffer, the reference's w is a parameter"):
        matched(ours, theirs)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ([tensor("w", 5)], r"w is \[5\], the reference's w is \[4\]"),
        ([], "nothing of the candidate takes the reference's w"),
        ([tensor("w", 4), tensor("v", 3)], "nothing of the reference gives the candidate's v"),
    ],
)
def test_mismatch_carries_status_and_both_lists(theirs: Any, said: str) -> None:
    with pytest.raises(StateMismatch, match=said) as mismatch:
        matched([tensor("w", 4)], theirs)
    assert mismatch.value.status is Status.STATE_MISMATCHED
    assert mismatch.value.lists


def test_two_tensors_of_the_reference_are_not_one() -> None:
    theirs = [tensor("a", 4), tensor("b", 4, tie="a")]
    with pytest.raises(StateMismatch, match="a and b are one tensor"):
        matched([tensor("a", 4), tensor("b", 4)], theirs)


def test_name_with_a_line_feed_keeps_the_message_on_one_line() -> None:
    with pytest.raises(StateMismatch) as mismatch:
        matched([tensor("w", 4)], [tensor("w", 4), tensor("x\ny", 3)])
    assert "\n" not in str(mismatch.value)
