"""Indices of a sort that promises no order among equal elements."""

from __future__ import annotations

import pytest
import torch

from harness.judge.reference.dataflow import FreeOrders, are_free_elements


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_some_indices_may_name_other_elements_that_are_equal(dim: int) -> None:
    keys = torch.randint(0, 3, (6, 8)).float()
    with FreeOrders() as watch:
        expected = torch.sort(keys, dim=dim).indices
    places = torch.arange(0, keys.numel(), 3)
    other = torch.sort(keys.flip(dim), dim=dim, stable=True).indices
    other = keys.shape[dim] - 1 - other
    got = other.flatten()[places]
    assert not torch.equal(got, expected.flatten()[places])
    assert are_free_elements(got, expected, places, watch.found, 1e-6)
    wrong = got.clone()
    wrong[0] = expected.select(dim, -1).flatten()[0]  # of the largest, where the least is due
    assert not are_free_elements(wrong, expected, places, watch.found, 1e-6)
    assert not are_free_elements(got + 99, expected, places, watch.found, 1e-6)
    assert not are_free_elements(got, expected, places, [], 1e-6)
