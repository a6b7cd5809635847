import functools

import pytest
import torch

from tests.pairs import builds

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
    checks.assert_call(model.train(training), new.train(training), make(bench, (batch, features)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_every_floating_dtype_matches(bench, checks, dtype, training):
    model, new = bench.pair(PAIR, 40, 36, (36,), dtype=dtype)
    x = make(bench, (70, 40), dtype)
    checks.assert_call(model.train(training), new.train(training), x)


@pytest.mark.parametrize("training", [False, True])
def test_one_row_in_evaluation_and_refused_in_training(bench, checks, training):
    model, new = bench.pair(PAIR, 8, 12, (12,))
    x = make(bench, (1, 8))
    if training:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            new(x)
    else:
        checks.assert_call(model.eval(), new.eval(), x)


@pytest.mark.parametrize("training", [False, True])
def test_large_means_keep_their_digits(bench, checks, training):
    model, new = bench.pair(PAIR, 16, 12, (12,))
    with torch.no_grad():
        for m in (model, new):
            m.gemm.bias.add_(1e4)
            m.bn.running_mean.copy_(m.gemm.bias * m.scale)
    checks.assert_call(model.train(training), new.train(training), make(bench, (150, 16)))


def test_other_layouts_and_one_scale_match(bench, checks):
    model, new = bench.pair(PAIR, 12, 20, (1,))
    model.eval(), new.eval()
    checks.assert_call(model, new, make(bench, (12, 30)).t())
    checks.assert_call(model, new, make(bench, (61, 12))[::2])
    shifted = torch.empty(30 * 12 + 1, device=bench.torch_device)[1:].view(30, 12)
    checks.assert_call(model, new, shifted.copy_(make(bench, (30, 12))))


def test_momentum_none_averages_over_batches(bench, checks):
    model, new = bench.pair(PAIR, 6, 10, (10,), momentum=None)
    for _ in range(3):
        checks.assert_call(model, new, make(bench, (20, 6)))


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


@pytest.mark.parametrize("training", [False, True])
def test_off_the_gpu_it_is_torchs_own(off_gpu, training):
    model, new = off_gpu.pair(PAIR, 6, 10, (10,), momentum=None)
    model.train(training), new.train(training)
    x = make(off_gpu, (4, 6))
    want, got = model(x), new(x)
    assert torch.equal(got, want)
    assert all(map(torch.equal, new.state_dict().values(), model.state_dict().values()))
    got.square().sum().backward()
    want.square().sum().backward()
    assert torch.equal(new.gemm.weight.grad, model.gemm.weight.grad)


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


# ---- The variants for compute capability 9.0 ----------------------------------------------------


@functools.cache
def tuned_module(name):
    return builds.import_file(builds.ROOT / "solutions" / PAIR / f"{name}.py", f"gpu_{PAIR}_{name}")


@pytest.fixture(params=["hopper", "tf32"])
def tuned(request, monkeypatch):
    """A variant's module; eager gets the precision that the variant is held to."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", request.param == "tf32")
    return tuned_module(request.param)


def tuned_pair(tuned, checks, features, out, scale_shape=None, **more):
    shape = (out,) if scale_shape is None else scale_shape
    model = builds.reference(PAIR).Model(features, out, shape, **more).cuda()
    new = tuned.ModelNew(features, out, shape, **more).cuda()
    checks.perturb(model)
    new.load_state_dict(model.state_dict(), strict=True)
    return model, new


def plain_state(*models):
    """Leave the product alone: y = x W^T / sqrt(1 + eps)."""
    with torch.no_grad():
        for m in models:
            m.gemm.bias.zero_(), m.scale.fill_(1)
            m.bn.weight.fill_(1), m.bn.bias.zero_()
            m.bn.running_mean.zero_(), m.bn.running_var.fill_(1)
            m.eval()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def assert_close_by_terms(model, new, x):
    """Errors as shares of sum |x| |w|: the variant's may be twice eager's, or a rounding of it."""
    with torch.no_grad():
        want, got = model(x).double(), new(x).double()
        w = model.gemm.weight.double()
        exact = x.double() @ w.t() / (1 + model.bn.eps) ** 0.5
        terms = x.double().abs() @ w.abs().t() + 1e-37
        errors = [((t - exact) / terms).abs() for t in (got, want)]
        assert errors[0].max() <= 2 * errors[1].max() + 2**-24, [e.max().item() for e in errors]
        mean = [e.square().mean().sqrt().item() for e in errors]
        assert mean[0] <= 2 * mean[1] + 2**-26, mean


# (batch, in, out): short sums, one tile, one row, several tiles, K and N no multiple of anything.
TUNED_CASES = [
    (200, 72, 136),
    (67, 45, 131),
    (3, 5, 1),
    (2, 64, 7),
    (192, 64, 256),
    (193, 130, 257),
    (500, 1021, 300),
    (700, 4500, 129),
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", TUNED_CASES, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_tuned_odd_sizes_match(tuned, checks, case, training):
    batch, features, out = case
    model, new = tuned_pair(tuned, checks, features, out)
    checks.assert_call(model.train(training), new.train(training), normal(batch, features))
    if training:
        model, new = tuned_pair(tuned, checks, features, out, scale_shape=(1,), momentum=None)
        for step in range(3):
            checks.assert_call(model, new, normal(batch, features, seed=step))


@pytest.mark.gpu
def test_tuned_one_row_is_evaluated_and_not_trained(tuned, checks):
    model, new = tuned_pair(tuned, checks, 80, 12)
    torch.backends.cuda.matmul.allow_tf32 = False  # cuBLAS has no TF32 for one row
    limit = 1e-4 if tuned is tuned_module("hopper") else 2e-2
    with torch.no_grad():
        want, got = model.eval()(normal(1, 80)), new.eval()(normal(1, 80))
    torch.testing.assert_close(got, want, rtol=limit, atol=limit)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        new.train()(normal(1, 80))


@pytest.mark.gpu
@pytest.mark.parametrize("training", [False, True])
def test_tuned_large_means_keep_their_digits(tuned, checks, training):
    model, new = tuned_pair(tuned, checks, 96, 70)
    with torch.no_grad():
        for m in (model, new):
            m.gemm.bias.add_(1e4)
            m.bn.running_mean.copy_(m.gemm.bias * m.scale)
    checks.assert_call(model.train(training), new.train(training), normal(450, 96))


@pytest.mark.gpu
@pytest.mark.parametrize("k", [64, 256, 4096])
def test_tuned_errors_are_eagers(tuned, checks, k):
    model, new = tuned_pair(tuned, checks, k, 512)
    plain_state(model, new)
    assert_close_by_terms(model, new, normal(640, k))
    assert_close_by_terms(model, new, torch.rand(640, k, device="cuda"))
    assert_close_by_terms(model, new, normal(640, k).relu())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "scaling",
    ["rows", "columns", "opposed columns", "both", "outliers", "extremes", "denormal", "sparse"],
)
def test_tuned_badly_scaled_inputs(tuned, checks, scaling):
    """The split keeps 22 bits under a row's largest element; tiles that need more are found."""
    model, new = tuned_pair(tuned, checks, 1024, 300)
    plain_state(model, new)
    x, w = normal(400, 1024), normal(300, 1024, seed=1)
    spread = torch.logspace(-6, 4, 1024, device="cuda")[torch.randperm(1024).cuda()]
    if scaling == "rows":
        x *= torch.logspace(-6, 4, 400, device="cuda")[:, None]
        w *= torch.logspace(4, -6, 300, device="cuda")[:, None]
    elif scaling == "columns":
        x *= spread
    elif scaling == "opposed columns":
        x *= spread
        w /= spread
    elif scaling == "both":
        x *= spread
        w *= spread.flip(0)
    elif scaling == "outliers":
        x[:, 3] *= 1e6
        w[::2, 3] = 0
    elif scaling == "extremes":
        x *= torch.logspace(-30, 30, 400, device="cuda")[:, None]
        w *= torch.logspace(7, -7, 300, device="cuda")[:, None]
    elif scaling == "denormal":
        x[::2] *= 1e-39
        x[1::3] = 0
        w *= 1e3
    else:
        x[torch.rand_like(x) < 0.9] = 0
        w[torch.rand_like(w) < 0.9] = 0
    with torch.no_grad():
        for m in (model, new):
            m.gemm.weight.copy_(w)
    assert_close_by_terms(model, new, x)


@pytest.mark.gpu
def test_tuned_infinities_and_nans_stay_where_they_belong(tuned, checks):
    model, new = tuned_pair(tuned, checks, 200, 400)
    plain_state(model, new)
    x = normal(600, 200)
    x[5, 7], x[300, 3], x[301, 0] = float("inf"), float("-inf"), float("nan")
    with torch.no_grad():
        for bad in (None, float("inf")):
            for m in (model, new):
                if bad is not None:
                    m.gemm.weight[170, 9] = bad
            want, got = model(x), new(x)
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.isinf() * got.sign(), want.isinf() * want.sign())
            ok = want.isfinite()
            limit = 1e-4 if not torch.backends.cuda.matmul.allow_tf32 else 2e-1
            torch.testing.assert_close(got[ok], want[ok], rtol=limit, atol=limit)
        x[5, 7] = x[300, 3] = x[301, 0] = 3e38  # sums that overflow
        assert torch.equal(new(x).isfinite(), model(x).isfinite())


@pytest.mark.gpu
def test_tuned_layouts_streams_and_capture(tuned, checks):
    model, new = tuned_pair(tuned, checks, 72, 136)
    checks.assert_call(model.eval(), new.eval(), normal(72, 200).t())
    checks.assert_call(
        model, new, torch.empty(200 * 72 + 1).cuda()[1:].view(200, 72).copy_(normal(200, 72))
    )
    for training in (False, True):
        model.train(training), new.train(training)
        stream = torch.cuda.Stream()
        with torch.no_grad(), torch.cuda.stream(stream):
            x = normal(200, 72)
            new(x)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                y = new(x)
            x.mul_(0.5)
            with torch.no_grad():
                for m in (model, new):
                    m.gemm.weight.mul_(2)  # the split of W must not be remembered
            graph.replay()
            limit = 1e-4 if not torch.backends.cuda.matmul.allow_tf32 else 2e-2
            torch.testing.assert_close(y, model(x), rtol=limit, atol=limit)
            torch.cuda.synchronize()


@pytest.mark.gpu
def test_tuned_refuses_what_it_does_not_take(tuned, checks):
    _, new = tuned_pair(tuned, checks, 6, 10)
    for wrong, message in [
        (normal(2, 3, 6), "2 dimensions"),
        (normal(2, 7), "features"),
        (normal(2, 6).double(), "Convert one"),
        (normal(2, 6).cpu(), "Move one"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            new(wrong)
    with pytest.raises(RuntimeError, match="takes float32 on a CUDA device"):
        new.half()(normal(4, 6).half())
    with pytest.raises(RuntimeError, match="takes float32 on a CUDA device"):
        new.float().cpu()(normal(4, 6).cpu())
    with pytest.raises(ValueError, match="scale_shape"):
        tuned.ModelNew(6, 10, (5,))
    y = new.cuda()(normal(4, 6))
    with pytest.raises(RuntimeError, match="forward only"):
        y.sum().backward()


@pytest.mark.gpu
def test_tuned_same_seed_gives_same_state(tuned):
    states = []
    for make_model in (builds.reference(PAIR).Model, tuned.ModelNew):
        torch.manual_seed(0)
        states.append(make_model(6, 10, (10,), eps=1e-3, momentum=0.2).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, states), strict=True))


@pytest.mark.gpu
def test_tuned_more_than_two_to_the_31_outputs(tuned):
    new = tuned.ModelNew(64, 8192, (8192,)).cuda().eval()
    x = torch.randn(2**18 + 3, 64, device="cuda")
    with torch.no_grad():
        y = new(x)
        torch.testing.assert_close(y[-200:], new(x[-200:].clone()))
