"""What a call leaves unwritten shows: the memory that it is handed holds NaN."""

from __future__ import annotations

import pytest
import torch

from harness.worker import calls

SIZES = [512, 4096, 512, 0, 512, (1 << 20) + 4, 512, (1 << 20) + 4]


def test_every_block_is_filled_whatever_its_size() -> None:
    blocks = calls.poisoned_blocks(SIZES, torch.device("cpu"))
    assert [block.numel() for block in blocks] == [size for size in SIZES if size]
    assert len({block.data_ptr() for block in blocks}) == len(blocks)
    for block in blocks:
        assert bool(block.view(torch.float32).isnan().all())


@pytest.mark.gpu
def test_what_the_allocator_hands_out_next_is_poisoned() -> None:
    device = torch.device("cuda")
    calls.poison([512] * 1000 + [3 << 20] * 3, device)
    outputs = [torch.empty(128, device=device) for _ in range(1000)]
    outputs += [torch.empty(3 << 18, device=device) for _ in range(3)]
    assert all(bool(output.isnan().all()) for output in outputs)
