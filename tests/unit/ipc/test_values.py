"""Values cross the wire as they are, as far as the other side may be trusted with them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from harness import ipc


class Config(NamedTuple):
    scale: float
    parts: list[Any]


VALUE = [Config(2.0, [Config(1.5, [])]), (1, "a")]


def test_named_tuple_keeps_the_names_of_its_fields_on_the_way_to_a_worker() -> None:
    encoder = ipc.Encoder(None)
    described = encoder.encode(VALUE)
    config, plain = ipc.Decoder(None, encoder.table, private=False).decode(described)
    assert (config.scale, config.parts[0].scale) == (2.0, 1.5)
    assert config == VALUE[0]
    assert type(config) is type(config.parts[0])
    assert type(plain) is tuple


def test_worker_describes_a_named_tuple_as_a_tuple_and_the_judge_makes_no_types() -> None:
    encoder = ipc.Encoder(None, names=False)
    assert ipc.Decoder(None, encoder.table).decode(encoder.encode(VALUE)) == VALUE
    with pytest.raises(ipc.WireViolation):
        ipc.Decoder(None, []).decode(ipc.Encoder(None).encode(VALUE))
