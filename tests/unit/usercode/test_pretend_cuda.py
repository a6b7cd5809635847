"""Code that asks for a GPU runs on CPU tensors, and nothing stays behind afterwards."""

from __future__ import annotations

import pytest
import torch

from harness.usercode.pretend_cuda import pretend


@pytest.mark.parametrize("answer", [True, False])
def test_explicit_wishes_for_cuda_land_on_the_cpu(answer: bool) -> None:
    with pretend(answer_cuda=answer):
        tensors = [
            torch.randn(3, device="cuda"),
            torch.ones(2).cuda(),
            torch.ones(2).to("cuda:0"),
            torch.zeros(2, device=torch.device("cuda")),
            torch.ones(2).to(torch.device("cuda"), torch.float16),
            torch.empty(2).new_zeros(2, device="cuda"),
        ]
        module = torch.nn.Linear(2, 2).cuda().to("cuda")
        tensors += [module.weight, module(torch.ones(2, 2, device="cuda"))]
        answers = [t.is_cuda for t in tensors]
        devices = {t.device.type for t in tensors}
    assert all(t.device.type == "cpu" for t in tensors)
    assert answers == [answer] * len(tensors)
    assert devices == {"cuda" if answer else "cpu"}


def test_availability_is_answered_as_asked_for() -> None:
    before = torch.cuda.is_available()
    with pretend(answer_cuda=True):
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_capability() == (8, 0)
        assert torch.cuda.get_device_properties(0).multi_processor_count == 4
        torch.cuda.synchronize()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        assert event.elapsed_time(event) == 0
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.manual_seed(1)
    with pretend(answer_cuda=False):
        assert not torch.cuda.is_available()
    assert torch.cuda.is_available() == before


def test_default_device_context_lands_on_the_cpu() -> None:
    with pretend(answer_cuda=True), torch.device("cuda"):
        made = torch.zeros(2)
    assert made.device.type == "cpu"


def test_nothing_stays_behind() -> None:
    with pretend(answer_cuda=True):
        pass
    assert not torch.zeros(1).is_cuda
    assert torch.zeros(1).device.type == "cpu"
    assert torch.Generator is not None
    assert "is_cuda" not in vars(torch.Tensor)
