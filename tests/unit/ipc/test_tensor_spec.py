"""The description of a tensor in shared bytes: hostile ones are refused, honest ones are read."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from harness import ipc

HONEST = {"dtype": "float32", "shape": [2, 3], "strides": [3, 1], "offset": 0}
HUGE = 1 << 55

HOSTILE: list[Any] = [
    None,
    [],
    "float32",
    {},
    HONEST | {"dtype": []},
    HONEST | {"dtype": "float4"},
    HONEST | {"dtype": None},
    HONEST | {"shape": None},
    HONEST | {"shape": "23"},
    HONEST | {"shape": [2]},
    HONEST | {"shape": [2, -3]},
    HONEST | {"shape": [2, 3.0]},
    HONEST | {"shape": [2, True]},
    HONEST | {"shape": [2, 1 << 64]},
    HONEST | {"shape": [HUGE, HUGE]},
    HONEST | {"shape": [HUGE, HUGE, 0], "strides": [0, 0, 0]},
    HONEST | {"shape": [1] * 65, "strides": [1] * 65},
    HONEST | {"strides": [3, -1]},
    HONEST | {"strides": [HUGE, 1]},
    HONEST | {"strides": None},
    HONEST | {"offset": 1},
    HONEST | {"offset": -512},
    HONEST | {"offset": 512.0},
    HONEST | {"offset": None},
    HONEST | {"conjugate": True},
    HONEST | {"dtype": "int32", "negative": True},
]
OUTSIDE = [
    HONEST | {"offset": 4096},
    HONEST | {"offset": 1 << 50},
    HONEST | {"shape": [1024, 3], "strides": [3, 1]},
]


def tensors() -> list[torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    return [
        *(torch.arange(6).to(dtype) for dtype in ipc.DTYPES.values()),
        base,
        base.permute(2, 0, 1),
        torch.arange(8.0).reshape(2, 1, 4).expand(2, 5, 4),
        base[:0],
        torch.empty(1 << 40, 0),
        torch.tensor(2.5),
        base.as_strided((1, 4), (1 << 50, 1)),
    ]


@pytest.mark.parametrize("entry", HOSTILE, ids=str)
def test_no_reader_takes_a_hostile_description(entry: Any) -> None:
    arena = ipc.HostArena.create(4096)
    for read in (
        lambda: ipc.form(entry if entry is not None else {}),
        lambda: ipc.Decoder(arena, [entry]).decode({"t": 0}),
        lambda: ipc.Placed(arena, [entry]).decode({"t": 0}),
    ):
        with pytest.raises(ipc.WireViolation):
            read()


@pytest.mark.parametrize("entry", OUTSIDE, ids=str)
def test_no_reader_reads_outside_the_arena(entry: Any) -> None:
    arena = ipc.HostArena.create(4096)
    for decoder in (ipc.Decoder(arena, [entry]), ipc.Placed(arena, [entry])):
        with pytest.raises(ipc.WireViolation, match="outside"):
            decoder.decode({"t": 0})
    with pytest.raises(ipc.WireViolation, match="outside"):
        ipc.Decoder(None, [entry]).decode({"t": 0})


def test_a_reader_in_place_needs_the_bytes_between_the_elements() -> None:
    gaps = HONEST | {"strides": [4000, 1]}
    arena = ipc.HostArena.create(4096)
    assert ipc.Decoder(arena, [gaps]).decode({"t": 0}).shape == (2, 3)
    with pytest.raises(ipc.WireViolation, match="outside"):
        ipc.Placed(arena, [gaps]).decode({"t": 0})


@pytest.mark.parametrize("said", [{"dtype": []}, {"dtype": {}}, {"v": []}, {"t": True}, {"t": 7}])
def test_a_hostile_value_is_a_violation(said: Any) -> None:
    with pytest.raises(ipc.WireViolation):
        ipc.Decoder(None, []).decode(said)


@pytest.mark.parametrize("index", range(len(tensors())))
def test_a_tensor_arrives_as_it_left(index: int) -> None:
    tensor = tensors()[index]
    arena = ipc.HostArena.create(4096)
    encoder = ipc.Encoder(arena)
    said = encoder.encode(tensor)
    encoder.finish()
    arrived = ipc.Decoder(arena, json.loads(json.dumps(encoder.table))).decode(said)
    assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(arrived, tensor)
    big = [d for d in range(tensor.dim()) if tensor.shape[d] > 1]
    assert [arrived.stride(d) for d in big] == [tensor.stride(d) for d in big]


@pytest.mark.parametrize("index", range(len(tensors())))
def test_both_ends_place_a_tensor_alike(index: int) -> None:
    tensor = tensors()[index]
    arena = ipc.HostArena.create(4096)
    placer = ipc.Placer(arena)
    said = placer.encode(tensor)
    if 0 not in tensor.stride():
        placer.places[0].copy_(tensor)
    there = ipc.Placed(arena, json.loads(json.dumps(placer.table))).decode(said)
    assert (there.dtype, there.shape, there.stride()) == (
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
    )
    assert torch.equal(there, placer.places[0])


def test_a_conjugate_view_is_described_where_it_lies() -> None:
    tensor = torch.view_as_complex(torch.arange(8.0).reshape(4, 2)).conj()
    spec = ipc.form(json.loads(json.dumps(ipc.described(tensor))))
    assert spec is not None
    raw = torch.view_as_real(tensor.conj()).contiguous().flatten().view(torch.uint8)
    assert torch.equal(spec.over(raw), tensor)
