"""Memory that a worker maps holds nothing of the judge's."""

from __future__ import annotations

import pytest
import torch

from harness.ipc import device_arena


@pytest.mark.gpu
def test_what_the_judge_freed_is_not_in_its_next_arena() -> None:
    secret = torch.full((1 << 28,), 255, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    del secret
    torch.cuda.empty_cache()
    arena = device_arena.DeviceArena.create(1 << 28, "cuda:0")
    assert int(arena.flat().count_nonzero()) == 0
    arena.close()
