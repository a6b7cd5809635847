"""Reading tensors of any form where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from harness import ipc
from harness.domain import HarnessError
from harness.judge.workers.peer_memory import PeerMemory

FORMS = {
    "plain": lambda: torch.randn(7, 5),
    "transposed": lambda: torch.randn(7, 5).t(),
    "a part": lambda: torch.randn(9, 8)[1:6, 2:7],
    "expanded": lambda: torch.randn(4, 1).expand(4, 6),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "a number": lambda: torch.tensor(3.5),
    "half": lambda: torch.randn(33).half(),
    "bfloat16": lambda: torch.randn(33).bfloat16(),
    "whole numbers": lambda: torch.randint(-9, 9, (11, 3)),
    "truth": lambda: torch.rand(21) > 0.5,
    "conjugated": lambda: torch.randn(6, 2, dtype=torch.complex64).conj(),
    "negated": lambda: torch.randn(6, 2, dtype=torch.complex64).conj().imag,
}


@pytest.fixture
def peer_memory() -> Iterator[PeerMemory]:
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    yield PeerMemory(fd, torch.device("cpu"), 1 << 20)
    os.close(fd)


@pytest.mark.parametrize("name", FORMS)
def test_a_tensor_is_read_as_it_is(name: str, peer_memory: PeerMemory) -> None:
    tensor = FORMS[name]()
    form = ipc.form(ipc.described(tensor))
    assert form is not None
    read = peer_memory.whole(ipc.address(tensor), form)
    assert read is not None
    assert torch.equal(read, tensor) and read.shape == tensor.shape
    numbers = np.random.default_rng(1).integers(0, 1 << 62, 64)
    got = peer_memory.elements(ipc.address(tensor), form, peer_memory.plan_read(form, numbers))
    want = torch.take(tensor, torch.from_numpy(numbers % tensor.numel()))
    assert got is not None and torch.equal(got, want)


def test_what_was_read_is_private(peer_memory: PeerMemory) -> None:
    tensor = torch.ones(100)
    form = ipc.form(ipc.described(tensor))
    assert form is not None
    read = peer_memory.whole(tensor.data_ptr(), form)
    tensor.zero_()
    assert read is not None and read.eq(1).all()


def test_what_has_no_address_has_no_form() -> None:
    sparse = torch.eye(3).to_sparse()
    assert ipc.address(sparse) == 0 and ipc.described(sparse) is None
    assert ipc.address("text") == 0 and ipc.described(None) is None
    assert ipc.form(None) is None


def test_a_system_that_shows_no_memory_is_named() -> None:
    with pytest.raises(HarnessError, match="/proc/self/mem"):
        PeerMemory(None, torch.device("cpu"), 1)


def test_gpu_memory_where_there_is_no_gpu_is_refused(peer_memory: PeerMemory) -> None:
    with pytest.raises(ipc.WireViolation, match="no GPU"):
        peer_memory.learn([{"base": 4096, "bytes": 4096, "handle": bytes(64)}])


@pytest.mark.gpu
def test_outputs_on_a_gpu_are_read_by_another_process() -> None:
    """Only a peer can map what this process allocated, so the test is one of two processes."""
    import subprocess
    import sys

    program = """
import json, sys, torch
from harness import ipc
from harness.ipc import device_arena
kept = [torch.randn(2, 3, 4, 5, device="cuda").to(memory_format=torch.channels_last)]
kept += [torch.full((1 << 22,), float(i), device="cuda") for i in range(3)]
torch.cuda.synchronize()
print(json.dumps({"where": [t.data_ptr() for t in kept], "forms": [ipc.described(t) for t in kept],
    "allocations": device_arena.allocations([t.data_ptr() for t in kept], None),
    "sum": float(kept[0].double().sum())}), flush=True)
sys.stdin.readline()
"""
    import json

    peer = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert peer.stdout is not None and peer.stdin is not None
    said = json.loads(peer.stdout.readline())
    peer_memory = PeerMemory(0, torch.device("cuda:0"), 1 << 30)
    for one in said["allocations"]:
        one["handle"] = bytes.fromhex(one["handle"])
    longer = [{**said["allocations"][0], "bytes": 1 << 40}]
    peer_memory.learn(longer)
    assert "not what the handle" in peer_memory.blind
    peer_memory.learn([{"base": 1 << 40, "bytes": 4096, "handle": b"\xab" * 64}])
    peer_memory.learn(said["allocations"])
    torch.ones(3, device="cuda").sum().item()  # no error of the driver's is left behind
    forms = [ipc.form(f) for f in said["forms"]]
    first = peer_memory.whole(said["where"][0], forms[0])
    assert float(first.double().sum()) == pytest.approx(said["sum"])
    for i, (at, form) in enumerate(zip(said["where"][1:], forms[1:], strict=True)):
        index = peer_memory.plan_read(form, np.arange(5) * 1_000_003)
        assert peer_memory.elements(at, form, index).eq(i).all()
    assert peer_memory.whole(said["where"][0] - (1 << 40), forms[0]) is None
    peer_memory.close()
    assert peer_memory.whole(said["where"][0], forms[0]) is None
    peer.communicate("\n", timeout=30)
    assert peer.returncode == 0
