import pytest
import torch

PAIR = "gemm_scale_batchnorm"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def make(bench, shape, dtype=torch.float32, mean=0.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    return x.to(bench.torch_device, dtype)


# (batch, in, out): one tile, several, none of them full, one row's width, one column, one feature.
CASES = [(200, 72, 136), (67, 45, 131), (130, 16, 128), (3, 5, 1), (2, 1, 7), (128, 33, 64)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_odd_sizes_match(bench, checks, case, training):
    batch, features, out = case
    model, new = bench.pair(PAIR, features, out, (out,))
    checks.call(model.train(training), new.train(training), make(bench, (batch, features)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_every_floating_dtype_matches(bench, checks, dtype, training):
    model, new = bench.pair(PAIR, 40, 36, (36,), dtype=dtype)
    x = make(bench, (70, 40), dtype)
    checks.call(model.train(training), new.train(training), x)


@pytest.mark.parametrize("training", [False, True])
def test_one_row_in_evaluation_and_refused_in_training(bench, checks, training):
    model, new = bench.pair(PAIR, 8, 12, (12,))
    x = make(bench, (1, 8))
    if training:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            new(x)
    else:
        checks.call(model.eval(), new.eval(), x)


@pytest.mark.parametrize("training", [False, True])
def test_large_means_keep_their_digits(bench, checks, training):
    model, new = bench.pair(PAIR, 16, 12, (12,))
    with torch.no_grad():
        for m in (model, new):
            m.gemm.bias.add_(1e4)
            m.bn.running_mean.copy_(m.gemm.bias * m.scale)
    checks.call(model.train(training), new.train(training), make(bench, (150, 16)))


def test_other_layouts_and_one_scale_match(bench, checks):
    model, new = bench.pair(PAIR, 12, 20, (1,))
    model.eval(), new.eval()
    checks.call(model, new, make(bench, (12, 30)).t())
    checks.call(model, new, make(bench, (61, 12))[::2])
    shifted = torch.empty(30 * 12 + 1, device=bench.torch_device)[1:].view(30, 12)
    checks.call(model, new, shifted.copy_(make(bench, (30, 12))))


def test_momentum_none_averages_over_batches(bench, checks):
    model, new = bench.pair(PAIR, 6, 10, (10,), momentum=None)
    for _ in range(3):
        checks.call(model, new, make(bench, (20, 6)))


def test_same_seed_gives_same_state_and_names(bench):
    torch.manual_seed(0)
    model = bench.reference(PAIR).Model(6, 10, (10,), eps=1e-3, momentum=0.2)
    torch.manual_seed(0)
    new = bench.solution(PAIR).ModelNew(6, 10, (10,), eps=1e-3, momentum=0.2)
    assert list(model.state_dict()) == list(new.state_dict())
    for a, b in zip(model.state_dict().values(), new.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert (new.bn.eps, new.bn.momentum) == (1e-3, 0.2)


def test_wrong_inputs_are_refused(bench):
    _, new = bench.pair(PAIR, 6, 10, (10,))
    with pytest.raises(RuntimeError, match="2 dimensions"):
        new(make(bench, (2, 3, 6)))
    with pytest.raises(RuntimeError, match="features"):
        new(make(bench, (2, 7)))
    with pytest.raises(RuntimeError, match="Convert one"):
        new(make(bench, (2, 6), torch.float64))
    with pytest.raises(ValueError, match="scale_shape"):
        bench.solution(PAIR).ModelNew(6, 10, (5,))


def test_backward_raises_instead_of_detaching(bench):
    _, new = bench.pair(PAIR, 6, 10, (10,))
    y = new(make(bench, (4, 6)))
    with pytest.raises(RuntimeError, match="forward only"):
        y.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("training", [False, True])
def test_graph_capture(gpu, training):
    model, new = gpu.pair(PAIR, 72, 136, (136,))
    model.train(training), new.train(training)
    x = make(gpu, (200, 72))
    with torch.no_grad():
        new(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = new(x)
        x.mul_(0.5)
        graph.replay()
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_more_than_two_to_the_31_outputs(gpu):
    _, new = gpu.pair(PAIR, 4, 8192, (8192,), dtype=torch.float16)
    x = torch.randn(2**18 + 3, 4, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        y = new.eval()(x)
        torch.testing.assert_close(y[-200:], new(x[-200:].clone()))
