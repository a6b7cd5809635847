"""The tests that users typed for these systems.

Changed only where they could not run: sizes are reduced off the GPU (the full ones need 8 GiB per
tensor), and a copy into a parameter, a leaf that requires gradients, stands inside `no_grad`.
"""

import time

import pytest
import torch

REDUCED = {
    "elementwise_add": {"batch_size": 65, "features": 1031},
    "batchnorm2d_inference": {"batch_size": 4, "features": 8, "dim1": 40, "dim2": 36},
    "batchnorm2d_frozen_autograd": {"batch_size": 4, "features": 8, "dim1": 40, "dim2": 36},
    "batchnorm2d_training": {"batch_size": 4, "features": 8, "dim1": 40, "dim2": 36},
    "groupnorm": {"batch_size": 2, "features": 8, "num_groups": 2, "dim1": 96, "dim2": 96},
    "gemm_scale_batchnorm": {
        "batch_size": 200,
        "in_features": 72,
        "out_features": 136,
        "scale_shape": (136,),
    },
}


@pytest.fixture
def typed(bench, monkeypatch):
    """Return Model, ModelNew, get_inputs, get_init_inputs of a problem at its reduced size."""

    def of(problem):
        reference = bench.reference(problem)
        for constant, value in REDUCED[problem].items():
            monkeypatch.setattr(reference, constant, value)
        new = bench.solution(problem).ModelNew
        return reference.Model, new, reference.get_inputs, reference.get_init_inputs

    return of


def test_inference_on_cpu_inputs_straight_from_get_inputs(typed):
    Model, ModelNew, get_inputs, get_init_inputs = typed("batchnorm2d_inference")
    model = Model(*get_init_inputs())
    model_new = ModelNew(*get_init_inputs())
    model.eval()
    model_new.eval()
    inputs = get_inputs()
    with torch.no_grad():
        out = model(*inputs)
        out_new = model_new(*inputs)
    diff = (out - out_new).abs().max().item()
    print("max diff:", diff)
    assert diff <= 1e-6


@pytest.mark.parametrize("problem", sorted(REDUCED))
def test_new_model_as_constructed(bench, typed, problem):
    Model, ModelNew, get_inputs, get_init_inputs = typed(problem)
    torch.manual_seed(0)
    model = Model(*get_init_inputs()).to(bench.torch_device)
    torch.manual_seed(0)
    model_new = ModelNew(*get_init_inputs()).to(bench.torch_device)
    inputs = [x.to(bench.torch_device) for x in get_inputs()]
    out = model_new(*inputs)
    assert torch.allclose(model(*inputs), out, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("evaluating", [True, False])
def test_gemm_from_the_same_seed_then_by_attribute(bench, typed, evaluating):
    Model, ModelNew, get_inputs, get_init_inputs = typed("gemm_scale_batchnorm")
    torch.manual_seed(42)
    model = Model(*get_init_inputs(), eps=1e-5, momentum=0.1).to(bench.torch_device)
    torch.manual_seed(42)
    new = ModelNew(*get_init_inputs(), eps=1e-5, momentum=0.1).to(bench.torch_device)
    if evaluating:
        model.eval()
        new.eval()
    inputs = [x.to(bench.torch_device) for x in get_inputs()]
    with torch.no_grad():
        assert torch.allclose(model(*inputs), new(*inputs), atol=1e-4, rtol=1e-4)

    other = Model(*get_init_inputs()).to(bench.torch_device).train(not evaluating)
    with torch.no_grad():
        new.gemm.weight.copy_(other.gemm.weight)
        new.gemm.bias.copy_(other.gemm.bias)
        new.scale.copy_(other.scale)
        new.bn.weight.copy_(other.bn.weight)
        new.bn.bias.copy_(other.bn.bias)
        new.bn.running_mean.copy_(other.bn.running_mean)
        new.bn.running_var.copy_(other.bn.running_var)
    assert torch.allclose(other(*inputs), new(*inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "sizes"),
    [
        ("batchnorm2d_inference", {"batch_size": 16, "features": 64, "dim1": 256, "dim2": 256}),
        ("batchnorm2d_training", {"batch_size": 16, "features": 64, "dim1": 256, "dim2": 256}),
        ("groupnorm", {"batch_size": 16, "features": 64, "dim1": 256, "dim2": 256}),
    ],
)
def test_a_thousand_calls_by_a_host_clock(gpu, monkeypatch, problem, sizes):
    reference = gpu.reference(problem)
    for constant, value in sizes.items():
        monkeypatch.setattr(reference, constant, value)
    model = reference.Model(*reference.get_init_inputs()).cuda()
    new = gpu.solution(problem).ModelNew(*reference.get_init_inputs()).cuda()
    inputs = [x.cuda() for x in reference.get_inputs()]
    seconds = []
    with torch.no_grad():
        for m in (model, new):
            for _ in range(10):
                m(*inputs)
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(1000):
                m(*inputs)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    print("Reference:", seconds[0], "New:", seconds[1])
    assert seconds[1] < seconds[0]
