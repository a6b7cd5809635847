"""Speed of light: the least time that the device allows the reference's algorithm.

Bytes are counted from tensors (each input, state tensor and output once per pass), flops by
torch's dispatcher on the reference, peaks are measured on the device in the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness.domain import Bound
from harness.judge.reference.problem import Problem
from harness.usercode.modules import differentiable, tensors_of

_COPY_BYTES = 2 << 30
_SIDE = 8192
_ROUNDS = 7
_BEST_COPY = 1.05
"""Kernels that only move bytes can be a few percent faster than torch's copy (H200: 3 %)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass must do: bytes to move, flops of matrix products and convolutions."""

    moved_bytes: int
    flops: int


def passes(
    problem: Problem, mode: str, inputs: list[Any], grads: list[torch.Tensor | None] | None
) -> list[Pass]:
    """Return what the forward pass must do and, for gradient calls, what the backward pass must.

    Args:
        problem: its reference is called once.
        mode: forward, eval or train.
        inputs: of one call.
        grads: output gradients, None without gradients.
    """

    def counted(output_grads: Any) -> tuple[int, Any]:
        with _Flops() as counter:
            outcome = problem.call(problem.reference, mode, inputs, 0, output_grads)
        return counter.total, outcome

    forward_flops, outcome = counted(None)
    given, out = tensors_of(inputs), tensors_of(outcome.output)
    state = list(problem.state().values())
    forward = Pass(moved_bytes=_bytes([*given, *state, *out]), flops=forward_flops)
    if grads is None:
        return [forward]
    both, _ = counted(grads)
    wanted = [t for t in given if differentiable(t)]
    parameters = [t for t in state if isinstance(t, torch.nn.Parameter)]
    backward = Pass(
        moved_bytes=_bytes([*given, *state, *[g for g in grads if g is not None]])
        + _bytes([*wanted, *parameters]),
        flops=max(both - forward_flops, 0),
    )
    return [forward, backward]


class _Flops(TorchDispatchMode):
    """Adds up flops by torch's own formulas as operators are dispatched.

    FlopCounterMode itself hooks into modules, and its hooks do not survive autograd.grad.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, for seconds, to decide that."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out


def _bytes(tensors: list[torch.Tensor]) -> int:
    """Return the bytes of distinct tensors; expanded elements count once."""
    seen: dict[tuple[int, int, tuple[int, ...]], int] = {}
    for t in tensors:
        base = t
        for d, step in enumerate(t.stride()):
            if step == 0 and t.shape[d] > 1:
                base = base.narrow(d, 0, 1)
        key = (t.data_ptr(), t.numel(), tuple(t.stride()))
        seen[key] = base.numel() * t.element_size()
    return sum(seen.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What the device can do.

    Attributes:
        copy_gb_s: copy bandwidth, read and write, GB/s.
        rate_tflop_s: fastest matrix rate of sufficient precision; None where it was not needed.
        rate_name: how that rate is reached.
    """

    copy_gb_s: float
    rate_tflop_s: float | None = None
    rate_name: str = ""


def peaks(device: torch.device, dtype: torch.dtype, precision: str, *, matrix: bool) -> Peaks:
    """Measure the peaks of an idle CUDA device.

    Args:
        device: the device.
        dtype: of the widest floating tensor of the pair.
        precision: what the candidate is held to: ``tf32`` grants single TF32 products.
        matrix: whether a matrix rate is needed.
    """
    copy_gb_s = _copy_gb_s(device)
    if not matrix:
        return Peaks(copy_gb_s=copy_gb_s)
    name, rate = _matrix_rate(device, dtype, precision)
    return Peaks(copy_gb_s=copy_gb_s, rate_tflop_s=rate, rate_name=name)


def bound(work: list[Pass], limits: Peaks, candidate_ms: float) -> Bound:
    """Return the bound of one call.

    Args:
        work: one entry per pass; passes are bounded separately and added.
        limits: of the device, measured in the same run.
        candidate_ms: the candidate's time, for its share.
    """
    flops = sum(p.flops for p in work)
    rate = limits.rate_tflop_s if flops else None
    total_ms, by_flops = 0.0, 0.0
    for p in work:
        moving = p.moved_bytes / limits.copy_gb_s / 1e6
        computing = p.flops / rate / 1e9 if rate else 0.0
        total_ms += max(moving, computing)
        by_flops += computing if computing > moving else 0.0
    return Bound(
        bound_ms=total_ms,
        share=total_ms / candidate_ms,
        moved_bytes=sum(p.moved_bytes for p in work),
        flops=flops,
        limited_by=limits.rate_name if by_flops > total_ms / 2 else "bandwidth",
        copy_gb_s=limits.copy_gb_s,
        rate_tflop_s=rate,
    )


def why_below(limit: Bound) -> str:
    """Return the reason for a share above 1."""
    if limit.limited_by == "bandwidth" and limit.share <= _BEST_COPY:
        return "faster than a copy of as many bytes, which measures bandwidth and is not its limit"
    return (
        "below the bound: its algorithm needs less than the reference's, or the bound counts work "
        "that can be left out; the timed outputs were right"
    )


def _copy_gb_s(device: torch.device) -> float:
    free, _ = torch.cuda.mem_get_info(device)
    size = min(_COPY_BYTES, free // 4)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    best = _fastest_ms(lambda: target.copy_(source), row=8)
    return 2 * size / best / 1e6


def _matrix_rate(device: torch.device, dtype: torch.dtype, precision: str) -> tuple[str, float]:
    """Return the fastest way to products of a precision, and its TFLOP/s for useful flops.

    Single precision is also reached by three products of split operands, each in TF32 or, with
    scaling, in float16 (22 bits): their rates divided by three. Source of the splitting: Ootomo
    and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022.
    """
    if dtype in (torch.float16, torch.bfloat16):
        return str(dtype).removeprefix("torch."), _rate(device, dtype, False)
    if dtype in (torch.float64, torch.complex128):
        return "float64", _rate(device, torch.float64, False)
    if precision == "tf32":
        return "TF32", _rate(device, torch.float32, True)
    ways = {
        "float32": _rate(device, torch.float32, False),
        "3 x TF32": _rate(device, torch.float32, True) / 3,
        "3 x float16": _rate(device, torch.float16, False) / 3,
    }
    name = max(ways, key=lambda k: ways[k])
    return name, ways[name]


def _rate(device: torch.device, dtype: torch.dtype, tf32: bool) -> float:
    side = _SIDE // 2 if dtype is torch.float64 else _SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        best = _fastest_ms(lambda: torch.mm(a, b))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return float(2 * side**3 / best / 1e9)


def _fastest_ms(work: Any, row: int = 1) -> float:
    """Return the median time of one call, made ``row`` times in a row as in timed batches."""
    work()
    times = []
    for _ in range(_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(row):
            work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / row)
    return float(sorted(times)[len(times) // 2])
