import functools

import pytest
import torch

from tests.pairs import builds
from tests.pairs.conftest import Bench

PAIR = "groupnorm"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def make(bench, shape, dtype=torch.float32, mean=0.0, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return x.to(bench.torch_device, dtype)


# (channels, groups, shape): both kernels' forms, planes that are not a multiple of 16 bytes, no
# spatial dimensions, one and three of them, one group, one channel per group.
CASES = [
    (8, 4, (3, 8, 5, 7)),
    (8, 1, (1, 8, 4, 4)),
    (6, 6, (2, 6, 9)),
    (10, 5, (4, 10)),
    (6, 3, (1, 6, 3, 4, 5)),
    (4, 2, (2, 4, 99, 97)),
    (2, 1, (1, 2, 200, 201)),
    (1, 1, (1, 1, 3, 3)),
]


@pytest.mark.parametrize(("channels", "groups", "shape"), CASES, ids=str)
def test_odd_shapes_match(bench, checks, channels, groups, shape):
    model, new = bench.pair(PAIR, channels, groups)
    checks.assert_call(model, new, make(bench, shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 9, 7), (1, 6, 93, 94)], ids=str)
def test_every_floating_dtype_matches(bench, checks, dtype, shape):
    model, new = bench.pair(PAIR, 6, 2, dtype=dtype)
    checks.assert_call(model, new, make(bench, shape, dtype))


@pytest.mark.parametrize("shape", [(2, 6, 9, 7), (1, 6, 93, 94)], ids=str)
def test_large_means_keep_their_digits(bench, checks, shape):
    model, new = bench.pair(PAIR, 6, 2)
    for mean in (1e3, -1e5):
        checks.assert_call(model, new, make(bench, shape, mean=mean))


@pytest.mark.parametrize("shape", [(3, 6, 9, 7), (2, 6, 93, 94)], ids=str)
def test_other_layouts_match(bench, checks, shape):
    model, new = bench.pair(PAIR, 6, 2)
    x = make(bench, shape)
    checks.assert_call(model, new, x.contiguous(memory_format=torch.channels_last))
    checks.assert_call(model, new, x.transpose(2, 3))
    shifted = torch.empty(x.numel() + 1, device=x.device)[1:].view(x.shape)
    checks.assert_call(model, new, shifted.copy_(x))


def test_state_loads_strictly_and_seeds_alike(bench):
    torch.manual_seed(0)
    model = bench.reference(PAIR).Model(6, 3)
    torch.manual_seed(0)
    new = bench.solution(PAIR).ModelNew(6, 3)
    assert list(model.state_dict()) == list(new.state_dict())
    new.load_state_dict(model.state_dict(), strict=True)


def test_channels_must_be_divisible_by_groups(bench):
    with pytest.raises(ValueError, match="divisible"):
        bench.reference(PAIR).Model(10, 3)
    with pytest.raises(ValueError, match="divisible"):
        bench.solution(PAIR).ModelNew(10, 3)


def test_wrong_inputs_are_refused(bench):
    _, new = bench.pair(PAIR, 6, 3)
    with pytest.raises(RuntimeError, match="at least 2 dimensions"):
        new(make(bench, (6,)))
    with pytest.raises(RuntimeError, match="shape"):
        new(make(bench, (2, 9, 3)))
    with pytest.raises(RuntimeError, match="Convert one"):
        new(make(bench, (2, 6, 3), torch.float64))


def test_backward_raises_instead_of_detaching(bench):
    _, new = bench.pair(PAIR, 6, 3)
    y = new(make(bench, (2, 6, 3, 3)))
    with pytest.raises(RuntimeError, match="forward only"):
        y.sum().backward()


def test_off_the_gpu_it_is_torchs_group_norm(off_gpu):
    model, new = off_gpu.pair(PAIR, 6, 3)
    x = make(off_gpu, (2, 6, 3, 3))
    want, got = model(x), new(x)
    assert torch.equal(got, want)
    (got * x).sum().backward()
    (want * x).sum().backward()
    assert torch.equal(new.gn.weight.grad, model.gn.weight.grad)


@pytest.mark.gpu
def test_graph_capture_and_current_stream(gpu):
    model, new = gpu.pair(PAIR, 8, 2)
    x = make(gpu, (2, 8, 96, 96))
    with torch.no_grad():
        graph = torch.cuda.CUDAGraph()
        new(x)
        with torch.cuda.graph(graph):
            y = new(x)
        x.add_(1.0)
        graph.replay()
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(gpu):
    _, new = gpu.pair(PAIR, 4, 2, dtype=torch.bfloat16)
    x = torch.empty(2, 4, 16387, 16411, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x.normal_(1.0, 1.0)
    with torch.no_grad():
        y = new(x)
        for n in range(2):
            for c in range(4):
                part = x[n, c, -8:].float() - 1.0
                want = part * new.gn.weight[c].float() + new.gn.bias[c].float()
                torch.testing.assert_close(y[n, c, -8:].float(), want, rtol=2e-2, atol=2e-2)


# -- the variant for compute capability 9.0 -------------------------------------------------------


@functools.cache
def hopper_module():
    return builds.import_file(builds.ROOT / "solutions" / PAIR / "hopper.py", f"gpu_{PAIR}_hopper")


class Hopper(Bench):
    def solution(self, problem):
        return hopper_module()


@pytest.fixture
def hopper():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs a GPU of compute capability 9.0")
    return Hopper("cuda")


# (channels, groups, shape) that stream: one block per group and teams of several, full chunks and
# shares of a plane, planes of one and of many chunks, fewer groups than blocks, more groups than
# entries on the board, every block of the GPU on one group.
STREAMS = [
    (4, 2, (3, 4, 32, 64)),
    (4, 1, (2, 4, 128, 128)),
    (6, 2, (5, 6, 100, 52)),
    (8, 4, (150, 8, 48, 48)),
    (2, 2, (700, 2, 64, 64)),
    (4, 1, (3, 4, 512, 700)),
    (8, 8, (3, 8, 700, 1000)),
    (8, 1, (2, 8, 512, 512)),
    (2, 1, (1, 2, 1600, 1600)),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "groups", "shape"), CASES + STREAMS, ids=str)
def test_hopper_shapes_match(hopper, checks, channels, groups, shape):
    model, new = hopper.pair(PAIR, channels, groups)
    x = make(hopper, shape)
    checks.assert_call(model, new, x)
    assert new(x).shape == x.shape


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 9, 7), (1, 6, 93, 94), (5, 6, 256, 200)], ids=str)
def test_hopper_dtypes_match(hopper, checks, dtype, shape):
    test_every_floating_dtype_matches(hopper, checks, dtype, shape)
    if dtype.itemsize == 2:
        model, new = hopper.pair(PAIR, 6, 2)
        x = make(hopper, shape, dtype)
        with torch.no_grad():
            torch.testing.assert_close(new(x), model.to(dtype)(x), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 6, 9, 7), (2, 6, 256, 200)], ids=str)
def test_hopper_large_means_and_outliers_keep_their_digits(hopper, checks, shape):
    test_large_means_keep_their_digits(hopper, checks, shape)
    model, new = hopper.pair(PAIR, 6, 2)
    x = make(hopper, shape)
    x[0, 0, 0, 0] = 1e4
    checks.assert_call(model, new, x)


@pytest.mark.gpu
def test_hopper_other_layouts_match(hopper, checks):
    model, new = hopper.pair(PAIR, 6, 2)
    x = make(hopper, (3, 6, 64, 60))
    shifted = torch.empty(x.numel() + 1, device=x.device)[1:].view(x.shape).copy_(x)
    for other in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), shifted):
        checks.assert_call(model, new, other)
        assert new(other).shape == other.shape


@pytest.mark.gpu
def test_hopper_state_and_refusals(hopper):
    test_state_loads_strictly_and_seeds_alike(hopper)
    test_channels_must_be_divisible_by_groups(hopper)
    test_backward_raises_instead_of_detaching(hopper)
    _, new = hopper.pair(PAIR, 6, 3)
    for wrong, message in [
        (make(hopper, (6,)), "at least 2 dimensions"),
        (make(hopper, (2, 9, 3)), "shape"),
        (make(hopper, (2, 6, 3), torch.float16), None),
        (make(hopper, (2, 6, 3), torch.float64), "use solution.py"),
        (torch.randn(2, 6, 4, 4), "use solution.py"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            new(wrong)
    with pytest.raises(RuntimeError, match="Convert one"):
        new.half()(make(hopper, (2, 6, 3)))


@pytest.mark.gpu
def test_hopper_streams_graphs_and_repeats(hopper):
    test_graph_capture_and_current_stream(hopper)
    _, new = hopper.pair(PAIR, 8, 2)
    x = make(hopper, (40, 8, 256, 256))
    with torch.no_grad():
        first = new(x)
        for _ in range(50):
            assert torch.equal(new(x), first)


@pytest.mark.gpu
def test_hopper_more_than_two_to_the_31_elements(hopper):
    test_more_than_two_to_the_31_elements(hopper)
    _, new = hopper.pair(PAIR, 4, 2, dtype=torch.bfloat16)
    x = torch.empty(2050, 4, 512, 512, device="cuda", dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    with torch.no_grad():
        torch.testing.assert_close(new(x)[-1:], new(x[-1:].clone()))
