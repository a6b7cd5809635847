import pytest
import torch

PAIR = "elementwise_add"
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture
def new(bench):
    return bench.solution(PAIR).ModelNew()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 128), (), (7,), (1031,), (65, 33), (3, 5, 7, 11)], ids=str)
def test_sum_equals_torch(bench, new, shape, dtype):
    a = torch.randn(shape).to(bench.torch_device, dtype)
    b = torch.randn(shape).to(bench.torch_device, dtype)
    assert torch.equal(new(a, b), a + b)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_wrap_as_torch(bench, new, dtype):
    info = torch.iinfo(dtype)
    a, b = (
        torch.randint(info.min // 2, info.max, (1003,), dtype=dtype).to(bench.torch_device)
        for _ in range(2)
    )
    assert torch.equal(new(a, b), a + b)


def test_broadcast_strided_and_dense_layouts(bench, new):
    x = torch.randn(4, 6, 5, 3).to(bench.torch_device)
    last = x.contiguous(memory_format=torch.channels_last)
    cases = [
        (x, x[:1]),
        (x[:, :1], x),
        (x.transpose(1, 3), x.transpose(1, 3)),
        (x[:, ::2], x[:, 1::2]),
        (last, last),
        (last, x),
        (x.flatten()[1:], x.flatten()[1:]),
        (x.flatten()[1:], x.flatten()[:-1]),
        (x, x[0, 0, 0, 0]),
        (x[:0], x[:0]),
    ]
    for a, b in cases:
        got = new(a, b)
        assert torch.equal(got, a + b)
    assert new(last, last).is_contiguous(memory_format=torch.channels_last)


def test_inputs_stay_as_they_are(bench, new):
    a, b = torch.randn(9, 9).to(bench.torch_device), torch.randn(9, 9).to(bench.torch_device)
    before = a.clone(), b.clone()
    new(a, b)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_unsupported_inputs_are_refused(bench, new):
    a = torch.randn(4).to(bench.torch_device)
    with pytest.raises(RuntimeError, match="does not promote"):
        new(a, a.double())
    with pytest.raises(RuntimeError):
        new(a, a[:3])
    with pytest.raises(RuntimeError, match="not implemented"):
        new(a.to(torch.complex64), a.to(torch.complex64))


def test_backward_raises_instead_of_detaching(bench, new):
    a = torch.randn(4).to(bench.torch_device).requires_grad_()
    y = new(a, a)
    assert y.requires_grad
    with pytest.raises(RuntimeError, match="forward only"):
        y.sum().backward()


def test_off_the_gpu_it_is_torchs_addition(off_gpu):
    new = off_gpu.solution(PAIR).ModelNew()
    a = torch.randn(3, 4, requires_grad=True)
    y = new(a, torch.ones(4, dtype=torch.float64))
    assert torch.equal(y, a.double() + 1)
    assert y.dtype is torch.float64
    y.sum().backward()
    assert torch.equal(a.grad, torch.ones(3, 4))


@pytest.mark.gpu
def test_inputs_on_two_devices_are_refused(gpu):
    new = gpu.solution(PAIR).ModelNew()
    with pytest.raises(RuntimeError, match="Move one"):
        new(torch.randn(4, device="cuda"), torch.randn(4))


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(gpu):
    new = gpu.solution(PAIR).ModelNew()
    a = torch.randint(-9, 9, (2**31 + 77,), device="cuda", dtype=torch.int8)
    b = torch.randint(-9, 9, (2**31 + 77,), device="cuda", dtype=torch.int8)
    assert torch.equal(new(a, b), a + b)
    rows = a[: 2**31].view(2, 2**30)
    assert torch.equal(new(rows, rows[:, :1]), rows + rows[:, :1])
