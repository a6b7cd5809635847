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


@pytest.mark.parametrize("answer", [True, False])
def test_number_of_a_gpu_means_the_cpu(answer: bool) -> None:
    with pretend(answer_cuda=answer):
        x = torch.zeros(2, device=0)
        made = [x, x.to(0), x.cuda(0), x.to(torch.cuda.current_device(), torch.float64)]
        made += [torch.nn.Linear(2, 2).to(0).weight, x.new_full((2,), 3), x.to(device=0)]
        made += [torch.empty(1, device=torch.device("cuda", torch.cuda.current_device()))]
        if answer:
            assert x.get_device() == x.device.index == 0
            made.append(torch.empty(1, device=x.get_device()))
    assert {t.device.type for t in made} == {"cpu"}
    assert made[5].tolist() == [3, 3]
    assert made[3].dtype == torch.float64


@pytest.mark.parametrize("wish", ["cuda", "cuda:0", torch.device("cuda"), 0])
def test_default_device_lands_on_the_cpu_and_stays_from_call_to_call(wish: object) -> None:
    try:
        with pretend(answer_cuda=True):
            torch.set_default_device(wish)
        with pretend(answer_cuda=True):
            assert torch.get_default_device() == torch.device("cuda", 0)
            made = torch.zeros(2)
            torch.set_default_device(None)
            assert torch.get_default_device().type == "cpu"
    finally:
        torch.set_default_device(None)
    assert made.device.type == torch.zeros(1).device.type == "cpu"


def test_operators_registered_for_cuda_serve_the_tensors_that_claim_to_be_there() -> None:
    with pretend(answer_cuda=True):

        @torch.library.custom_op("pretended::twice", mutates_args=(), device_types="cuda")
        def twice(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @twice.register_kernel("cpu")
        def _(x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("no tensor is on the CPU")

        torch.library.define("pretended::more", "(Tensor x) -> Tensor")
        torch.library.impl("pretended::more", "cuda", lambda x: x + 1)
        library = torch.library.Library("pretended_more", "DEF")
        library.define("half(Tensor x) -> Tensor")
        library.impl("half", lambda x: x / 2, "CUDA")
        library.define("third(Tensor x) -> Tensor")
        for_cuda = torch.library.Library("pretended_more", "IMPL", "CUDA")
        for_cuda.impl("third", lambda x: x / 3)
        x = torch.tensor([3.0], device="cuda")
        more = torch.ops.pretended_more
        got = [twice(x), torch.ops.pretended.more(x), more.half(x), more.third(x)]
    assert torch.cat(got).tolist() == [6, 4, 1.5, 1]


def test_operators_are_registered_as_they_say_where_the_cpu_is_meant() -> None:
    with pretend(answer_cuda=False):

        @torch.library.custom_op("pretended::cpu_only", mutates_args=(), device_types="cpu")
        def cpu_only(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        assert cpu_only(torch.ones(1)).tolist() == [2]


def test_nothing_stays_behind() -> None:
    with pretend(answer_cuda=True):
        pass
    assert not torch.zeros(1).is_cuda
    assert torch.zeros(1).device.type == "cpu"
    assert torch.Generator is not None
    assert "is_cuda" not in vars(torch.Tensor)
