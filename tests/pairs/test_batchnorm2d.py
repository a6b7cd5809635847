"""What the three BatchNorm2d pairs share, and what is particular to each."""

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

from tests.pairs import builds
from tests.pairs.conftest import Bench

INFERENCE, FROZEN, TRAINING = (
    "batchnorm2d_inference",
    "batchnorm2d_frozen_autograd",
    "batchnorm2d_training",
)
ALL = [INFERENCE, FROZEN, TRAINING]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# One sample, one channel, planes that are and are not multiples of a 16-byte access, one element
# per plane, rows, several blocks per plane.
SHAPES = [
    (2, 3, 4, 4),
    (1, 1, 5, 7),
    (1, 5, 31, 23),
    (3, 1, 9, 1),
    (6, 7, 1, 1),
    (5, 64, 1, 1),
    (2, 40, 7, 7),
    (2, 2, 67, 65),
]


def make(shape, dtype, bench, mean=0.0, std=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * std + mean
    return x.to(bench.torch_device, dtype)


def layouts(x):
    """The same values contiguous, channels_last, transposed and off a 16-byte address."""
    yield x
    yield x.contiguous(memory_format=torch.channels_last)
    yield x.transpose(2, 3).contiguous().transpose(2, 3)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    yield shifted.copy_(x)


@pytest.mark.parametrize("problem", ALL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes_match_in_every_layout(bench, checks, problem, shape):
    model, new = bench.pair(problem, shape[1])
    for x in layouts(make(shape, torch.float32, bench)):
        checks.assert_call(model, new, x)


@pytest.mark.parametrize("problem", ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_floating_dtype_matches(bench, checks, problem, dtype):
    model, new = bench.pair(problem, 16, dtype=dtype)
    x = make((3, 16, 9, 7), dtype, bench)
    checks.assert_call(model, new, x)
    checks.assert_call(model, new, x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("problem", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float_state_beside_half_input(bench, checks, problem, dtype):
    model, new = bench.pair(problem, 6)
    checks.assert_call(model, new, make((3, 6, 5, 5), dtype, bench))


@pytest.mark.parametrize("problem", ALL)
@pytest.mark.parametrize("mean", [1e3, -1e5])
def test_large_means_keep_their_digits(bench, checks, problem, mean):
    model, new = bench.pair(problem, 4)
    with torch.no_grad():
        for m in (model, new):
            m.bn.running_mean.add_(mean)
    for shape in [(4, 4, 33, 35), (64, 4, 1, 1)]:
        x = make(shape, torch.float32, bench, mean=mean)
        checks.assert_call(model, new, x)
        checks.assert_call(model, new, x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("problem", ALL)
def test_state_changes_between_calls_take_effect(bench, checks, problem):
    model, new = bench.pair(problem, 5)
    x = make((2, 5, 6, 6), torch.float32, bench)
    for seed in range(3):
        checks.perturb(model, seed)
        checks.perturb(new, seed)
        checks.assert_call(model, new, x)


@pytest.mark.parametrize("problem", ALL)
def test_same_seed_gives_same_state_and_names(bench, problem):
    torch.manual_seed(0)
    model = bench.reference(problem).Model(7)
    torch.manual_seed(0)
    new = bench.solution(problem).ModelNew(7)
    assert list(model.state_dict()) == list(new.state_dict())
    for a, b in zip(model.state_dict().values(), new.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in new.named_parameters()]


@pytest.mark.parametrize("problem", ALL)
def test_wrong_inputs_are_refused(bench, problem):
    _, new = bench.pair(problem, 4)
    x = make((2, 4, 3, 3), torch.float32, bench)
    with pytest.raises(ValueError, match="expected 4D input"):
        new(x[0])
    with pytest.raises(RuntimeError, match="channels"):
        new(x[:, :3])
    with pytest.raises(RuntimeError, match="Convert one"):
        new(x.double())
    with pytest.raises(RuntimeError):
        new(x.long())


@pytest.mark.parametrize("problem", [INFERENCE, FROZEN])
def test_empty_batch_gives_empty_output(bench, problem):
    _, new = bench.pair(problem, 4)
    assert new(make((0, 4, 3, 3), torch.float32, bench)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("problem", [INFERENCE, TRAINING])
def test_backward_raises_instead_of_detaching(bench, problem):
    _, new = bench.pair(problem, 4)
    y = new(make((2, 4, 3, 3), torch.float32, bench))
    assert y.requires_grad
    with pytest.raises(RuntimeError, match="forward only"):
        y.sum().backward()


@pytest.mark.parametrize("problem", ALL)
def test_off_the_gpu_it_is_torchs_own(off_gpu, problem):
    model, new = off_gpu.pair(problem, 5)
    results = []
    for m in (model, new):
        x = make((2, 5, 3, 3), torch.float32, off_gpu).requires_grad_()
        y = m(x)
        y.square().sum().backward()
        results.append((y, x.grad, m.bn.weight.grad, m.bn.bias.grad, *m.state_dict().values()))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


# -- frozen statistics with gradients -------------------------------------------------------------


def gradients(model, x, g):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    return torch.autograd.grad(y, [x, model.bn.weight, model.bn.bias], g)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 16, 9, 7)], ids=str)
def test_frozen_gradients_are_sums_and_match(bench, checks, shape, dtype):
    model, new = bench.pair(FROZEN, shape[1], dtype=dtype)
    model.train()
    new.train()
    for x in itertools.islice(layouts(make(shape, dtype, bench, mean=2.0)), 2):
        g = make(shape, dtype, bench, seed=1)
        want = gradients(model, x, g)
        got = gradients(new, x, g)
        oracle = gradients(copy.deepcopy(model).double(), x.double(), g.double())
        for a, b, exact in zip(got, want, oracle, strict=True):
            checks.assert_precise(a, b, exact)


def test_frozen_gradients_only_of_what_needs_them(bench):
    model, new = bench.pair(FROZEN, 5)
    x = make((2, 5, 8, 6), torch.float32, bench)
    for flags in itertools.product([False, True], repeat=3):
        results = []
        for m in (model, new):
            inputs = [x.clone(), m.bn.weight, m.bn.bias]
            for t, flag in zip(inputs, flags, strict=True):
                t.requires_grad_(flag)
            y = m(inputs[0])
            assert y.requires_grad == any(flags)
            wanted = [t for t, flag in zip(inputs, flags, strict=True) if flag]
            results.append(torch.autograd.grad(y.square().sum(), wanted) if wanted else ())
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_frozen_gradients_of_an_expanded_output_gradient(bench):
    model, new = bench.pair(FROZEN, 3)
    x = make((2, 3, 5, 5), torch.float32, bench)
    one = torch.ones((), device=bench.torch_device).expand(x.shape)
    for a, b in zip(gradients(new, x, one), gradients(model, x, one), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_frozen_gradcheck(bench):
    _, new = bench.pair(FROZEN, 2, dtype=torch.float64)
    x = make((2, 2, 3, 3), torch.float64, bench).requires_grad_()
    module = bench.solution(FROZEN)

    def call(x, weight, bias):
        return module._FrozenBatchNorm.apply(
            x, new.bn.running_mean, new.bn.running_var, weight, bias, new.bn.eps
        )

    assert torch.autograd.gradcheck(call, (x, new.bn.weight, new.bn.bias))


def test_frozen_second_derivative_is_refused(bench):
    _, new = bench.pair(FROZEN, 2)
    x = make((2, 2, 3, 3), torch.float32, bench).requires_grad_()
    (gx,) = torch.autograd.grad(new(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gx.sum().backward()


def test_frozen_statistics_stay_frozen_in_train_mode(bench):
    _, new = bench.pair(FROZEN, 3)
    before = copy.deepcopy(new.state_dict())
    new.train()(make((2, 3, 5, 5), torch.float32, bench))
    for name, value in new.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_training_statistics_follow_torch(bench, momentum, layout):
    new = bench.solution(TRAINING).ModelNew(6, momentum=momentum).to(bench.torch_device)
    layer = torch.nn.BatchNorm2d(6, momentum=momentum).to(bench.torch_device)
    for seed in range(4):
        x = make((3, 6, 7, 5), torch.float32, bench, mean=seed, seed=seed)
        x = x.contiguous(memory_format=layout)
        torch.testing.assert_close(new(x), layer(x), rtol=1e-5, atol=1e-5)
        for name, want in layer.state_dict().items():
            torch.testing.assert_close(new.bn.state_dict()[name], want)
    assert new.bn.num_batches_tracked.item() == 4


def test_training_then_eval_uses_running_statistics(bench, checks):
    model, new = bench.pair(TRAINING, 6)
    x = make((3, 6, 7, 5), torch.float32, bench)
    model(x), new(x)
    model.eval()
    new.eval()
    checks.assert_call(model, new, x)
    checks.assert_call(model, new, x.contiguous(memory_format=torch.channels_last))


def test_training_needs_two_values_per_channel(bench):
    _, new = bench.pair(TRAINING, 6)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        new(make((1, 6, 1, 1), torch.float32, bench))
    assert new.bn.num_batches_tracked.item() == 0


def test_training_plane_of_several_items_with_an_outlier_first(bench, checks):
    model, new = bench.pair(TRAINING, 1)
    x = make((1, 1, 260, 259), torch.float32, bench)
    x[0, 0, 0, 0] = 1e4
    checks.assert_call(model, new, x)


def test_training_marks_its_buffers_as_written(bench):
    _, new = bench.pair(TRAINING, 3)
    before = new.bn.running_mean._version
    new(make((2, 3, 4, 4), torch.float32, bench))
    assert new.bn.running_mean._version > before


# -- what only a GPU shows ------------------------------------------------------------------------


@pytest.mark.gpu
def test_input_on_another_device_than_the_state_is_refused(gpu):
    for problem in ALL:
        _, new = gpu.pair(problem, 4)
        with pytest.raises(RuntimeError, match="Move one"):
            new.cpu()(torch.randn(2, 4, 3, 3, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("problem", ALL)
def test_current_stream_and_graph_capture(gpu, problem):
    model, new = gpu.pair(problem, 8)
    x = make((4, 8, 33, 31), torch.float32, gpu)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.testing.assert_close(new(x), model(x), rtol=1e-4, atol=1e-4)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = new(x)
        x.add_(1.0)
        graph.replay()
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", ALL)
def test_more_than_two_to_the_31_elements(gpu, problem):
    _, new = gpu.pair(problem, 3, dtype=torch.bfloat16)
    x = torch.empty(2, 3, 18929, 18931, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x.normal_(1.0, 1.0)
    with torch.no_grad():
        mean, var = new.bn.running_mean.float(), new.bn.running_var.float()
        y = new(x)
        for n, c in itertools.product(range(2), range(3)):
            for rows in (slice(0, 8), slice(-8, None)):
                part = x[n, c, rows].float()
                if problem == TRAINING:
                    mean[c], var[c] = 1.0, 1.0
                want = F.batch_norm(
                    part[None, None],
                    mean[c : c + 1],
                    var[c : c + 1],
                    new.bn.weight[c : c + 1].float(),
                    new.bn.bias[c : c + 1].float(),
                )
                torch.testing.assert_close(y[n, c, rows].float(), want[0, 0], rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_training_is_one_launch(gpu):
    from torch.profiler import ProfilerActivity, profile

    _, new = gpu.pair(TRAINING, 64)
    for size in (56, 55):
        x = make((8, 64, size, size), torch.float32, gpu)
        with torch.no_grad():
            new(x)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
                new(x)
                torch.cuda.synchronize()
        kernels = [e.name for e in trace.events() if e.device_type.name == "CUDA"]
        assert len(kernels) == 1, kernels
        assert "batch_norm" in kernels[0]


# -- training, the variant for compute capability 9.0 ---------------------------------------------


@functools.cache
def hopper_module():
    path = builds.ROOT / "solutions" / TRAINING / "hopper.py"
    return builds.import_file(path, f"gpu_{TRAINING}_hopper")


class Hopper(Bench):
    def solution(self, problem):
        return hopper_module()


@pytest.fixture
def hopper():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    return Hopper("cuda")


# Shapes that stream: a block per channel, whole and with a last unit that is not full, more
# channels than blocks; teams of several; all blocks on one channel; and some too small to stream.
STREAMS = [
    (8, 64, 56, 56),
    (2, 600, 64, 64),
    (23, 5, 64, 68),
    (24, 140, 64, 64),
    (64, 2, 128, 128),
    (70, 3, 260, 200),
    (150, 2, 256, 256),
    (300, 1, 200, 260),
]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES + STREAMS, ids=str)
def test_hopper_shapes_match(hopper, checks, shape):
    model, new = hopper.pair(TRAINING, shape[1])
    for x in layouts(make(shape, torch.float32, hopper)):
        checks.assert_call(model, new, x)
        assert new.bn.num_batches_tracked == model.bn.num_batches_tracked


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_hopper_dtypes_match(hopper, checks, dtype):
    test_every_floating_dtype_matches(hopper, checks, TRAINING, dtype)
    for shape in [(5, 16, 64, 64), (150, 16, 128, 128)]:
        model, new = hopper.pair(TRAINING, 16, dtype=dtype)
        checks.assert_call(model, new, make(shape, dtype, hopper))
    if dtype.itemsize == 2:
        test_float_state_beside_half_input(hopper, checks, TRAINING, dtype)
        model, new = hopper.pair(TRAINING, 16)
        checks.assert_call(model, new, make((150, 16, 128, 128), dtype, hopper))


@pytest.mark.gpu
@pytest.mark.parametrize("mean", [1e3, -1e5])
def test_hopper_large_means_keep_their_digits(hopper, checks, mean):
    test_large_means_keep_their_digits(hopper, checks, TRAINING, mean)
    for shape in [(8, 4, 64, 64), (64, 4, 128, 256)]:
        model, new = hopper.pair(TRAINING, 4)
        checks.assert_call(model, new, make(shape, torch.float32, hopper, mean=mean))


@pytest.mark.gpu
def test_hopper_outlier_first(hopper, checks):
    test_training_plane_of_several_items_with_an_outlier_first(hopper, checks)
    model, new = hopper.pair(TRAINING, 2)
    x = make((64, 2, 128, 128), torch.float32, hopper)
    x[0, 0, 0, 0] = 1e4
    checks.assert_call(model, new, x)


@pytest.mark.gpu
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_hopper_statistics_follow_torch(hopper, momentum, layout):
    test_training_statistics_follow_torch(hopper, momentum, layout)
    new = hopper_module().ModelNew(6, momentum=momentum).cuda()
    layer = torch.nn.BatchNorm2d(6, momentum=momentum).cuda()
    for seed in range(4):
        x = make((30, 6, 64, 128), torch.float32, hopper, mean=seed, seed=seed)
        torch.testing.assert_close(new(x), layer(x), rtol=1e-5, atol=1e-5)
        for name, want in layer.state_dict().items():
            torch.testing.assert_close(new.bn.state_dict()[name], want)


@pytest.mark.gpu
def test_hopper_state_refusals_and_evaluation(hopper, checks):
    test_state_changes_between_calls_take_effect(hopper, checks, TRAINING)
    test_same_seed_gives_same_state_and_names(hopper, TRAINING)
    test_wrong_inputs_are_refused(hopper, TRAINING)
    test_backward_raises_instead_of_detaching(hopper, TRAINING)
    test_training_then_eval_uses_running_statistics(hopper, checks)
    test_training_needs_two_values_per_channel(hopper)
    test_training_marks_its_buffers_as_written(hopper)
    model, new = hopper.pair(TRAINING, 6)
    checks.assert_call(model.eval(), new.eval(), make((3, 6, 40, 60), torch.float32, hopper))
    for refused in (torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3).cuda().double()):
        with pytest.raises(RuntimeError, match=r"use solution\.py"):
            hopper_module().ModelNew(4).to(refused)(refused)


@pytest.mark.gpu
def test_hopper_streams_graphs_repeats_and_launches(hopper):
    test_current_stream_and_graph_capture(hopper, TRAINING)
    test_training_is_one_launch(hopper)
    _, new = hopper.pair(TRAINING, 8)
    x = make((150, 8, 256, 256), torch.float32, hopper)
    with torch.no_grad():
        first = new(x)
        for _ in range(50):
            assert torch.equal(new(x), first)


@pytest.mark.gpu
def test_hopper_more_than_two_to_the_31_elements(hopper):
    test_more_than_two_to_the_31_elements(hopper, TRAINING)
    _, new = hopper.pair(TRAINING, 5, dtype=torch.bfloat16)
    x = torch.empty(1640, 5, 512, 512, device="cuda", dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    with torch.no_grad():
        state = (new.bn.weight.float(), new.bn.bias.float())
        mean, var = torch.zeros(5, device="cuda"), torch.ones(5, device="cuda")
        want = F.batch_norm(x[-1:].float(), mean, var, *state)
        torch.testing.assert_close(new(x)[-1:].float(), want, rtol=2e-2, atol=2e-2)
