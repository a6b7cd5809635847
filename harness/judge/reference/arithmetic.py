"""Runs the reference in another arithmetic: rounded operands, another GELU, roundings made visible.

Each arithmetic is a mode that PyTorch calls at every operator, in forward and backward. The
reference computes in float64 meanwhile, so the change of the result is that arithmetic's error.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

from harness.usercode.modules import differentiable, mapped, tensors_of

Rounding = Callable[[torch.Tensor], torch.Tensor]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


PRODUCTS = {
    "addbmm": (1, 2),
    "addmm": (1, 2),
    "_addmm_activation": (1, 2),
    "addmv": (1, 2),
    "addr": (1, 2),
    "baddbmm": (1, 2),
    "bmm": (0, 1),
    "_cdist_forward": (0, 1),
    "convolution": (0, 1),
    "convolution_backward": (0, 1, 2),
    "dot": (0, 1),
    "linear": (0, 1),
    "mm": (0, 1),
    "mv": (0, 1),
    "_trilinear": (0, 1, 2),
    "vdot": (0, 1),
}
"""Operators that multiply and add up, with the positions of their operands.

matmul, einsum, linear, bilinear, recurrent layers and attention arrive here as these.
"""

_SUMS = _names(
    """
    adaptive_avg_pool2d _adaptive_avg_pool2d _adaptive_avg_pool3d avg_pool2d avg_pool3d cumsum
    embedding_dense_backward index_add mean nansum scatter_add sum trace
    """
)
"""Operators that add up: their rounding is relative to the sum of the absolute values."""

_SPREADS = {"std", "std_mean", "var", "var_mean"}

_EXACT = _names(
    """
    _to_copy abs arange cat clamp clamp_min clone constant_pad_nd copy copy_ detach embedding empty
    empty_like expand_copy fill fill_ flip full full_like gather hardtanh index index_select
    masked_fill max max_pool2d_with_indices maximum min minimum neg new_empty new_full new_ones
    new_zeros ones ones_like relu relu_ repeat roll scalar_tensor select_backward slice_backward
    sort stack threshold_backward topk tril triu where zero_ zeros zeros_like
    """
)
"""Operators that move, choose or negate numbers, without rounding. A missing one makes the judge a
little less strict."""

_FUSED = _names(
    """
    batch_norm_backward _batch_norm_with_update cudnn_batch_norm cudnn_batch_norm_backward
    _fused_rms_norm _fused_rms_norm_backward _log_softmax _log_softmax_backward_data logsumexp
    native_batch_norm native_batch_norm_backward _native_batch_norm_legit native_group_norm
    native_group_norm_backward native_layer_norm native_layer_norm_backward _safe_softmax _softmax
    _softmax_backward_data
    """
)
"""Operators that round several times: they are decomposed first."""


_STAGNATES = 1 << 20


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Round to TF32's 11 bits, ties away from zero, as a kernel does with ``cvt.rna.tf32``."""
    return _bits_kept(x, 0x1000)


def cut_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Drop the bits beyond TF32's, as the tensor core does with a raw float32."""
    return _bits_kept(x, 0)


def _bits_kept(x: torch.Tensor, half: int) -> torch.Tensor:
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + half) & ~0x1FFF).view(torch.float32).view(x.shape).to(x.dtype)


def _cast(dtype: torch.dtype) -> Rounding:
    return lambda x: x.to(dtype).to(x.dtype)


to_bf16, to_fp16, to_fp32 = map(_cast, (torch.bfloat16, torch.float16, torch.float32))


def _real(rounding: Rounding, x: Any) -> Any:
    if not isinstance(x, torch.Tensor) or not differentiable(x):
        return x
    if x.is_complex():
        return torch.view_as_complex(rounding(torch.view_as_real(x.resolve_conj())).contiguous())
    return rounding(x)


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


@contextlib.contextmanager
def opened(mode: TorchDispatchMode, *, recurrent: bool) -> Iterator[None]:
    """Enter a mode; decompose operators that contain products.

    Args:
        mode: to enter.
        recurrent: recurrent layers run: cuDNN, which computes them in one operator, is off.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    cudnn = torch.backends.cudnn
    try:
        with (
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            cudnn.flags(
                enabled=cudnn.enabled and not recurrent,
                benchmark=cudnn.benchmark,
                deterministic=cudnn.deterministic,
                allow_tf32=False,
            ),
            mode,
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Mode(TorchDispatchMode):
    """A mode that PyTorch calls at every operator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Skip dynamo: nothing is compiled here, and its import takes seconds."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]


class TanhGelu(Mode):
    """Computes GELU by its tanh approximation wherever the reference computes it exactly.

    Attributes:
        replaced: how many were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaced = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        exact = kwargs.get("approximate", "none") == "none"
        if _name(func) in ("gelu", "gelu_", "gelu_backward") and exact:
            kwargs["approximate"] = "tanh"
            self.replaced += 1
        return func(*args, **kwargs)


class RoundedProducts(TanhGelu):
    """Rounds the operands of products.

    Args:
        rounding: of each operand.
        results: also round the products, like a kernel that returns 16 bits.
        only: numbers of those products of a call that are rounded, None for all of them.
        tanh: also compute GELU by its tanh approximation.

    Attributes:
        products: how many the calls had.
    """

    def __init__(
        self,
        rounding: Rounding,
        *,
        results: bool = False,
        only: frozenset[int] | None = None,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        self._rounding = rounding
        self._results = results
        self._only = only
        self._tanh = tanh
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = PRODUCTS.get(_name(func))
        if operands is None and self._tanh:
            return super().__torch_dispatch__(func, types, args, kwargs)
        number = self.products
        self.products += operands is not None
        if operands is None or (self._only is not None and number not in self._only):
            return func(*args, **(kwargs or {}))
        args = [_real(self._rounding, a) if i in operands else a for i, a in enumerate(args)]
        result = func(*args, **(kwargs or {}))
        if self._results:
            result = mapped(result, lambda t: _real(self._rounding, t))
        return result


class RoundedEverywhere(Mode):
    """Rounds the result of every operator that rounds, like a module cast to 16 bits."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self._rounding = rounding

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _name(func) in _EXACT:
            return func(*args, **kwargs)
        operands = PRODUCTS.get(_name(func), ())
        args = [_real(self._rounding, a) if i in operands else a for i, a in enumerate(args)]
        result = func(*args, **kwargs)
        for t in _fresh(func, result, args, kwargs):
            if t is not None:
                t.copy_(_real(self._rounding, t))
        return result


class Roundings(Mode):
    """Moves every result up or down at random, by the error that an honest arithmetic may have.

    A sum of K terms moves by sqrt(K) roundings of the sum of its absolute values, for any order of
    its terms. A variance moves by as much of the mean square, so that E[x^2] - E[x]^2 is allowed.
    Every other result moves by one rounding. Later operators compute from the moved results, so an
    ill-conditioned model moves as far as an honest kernel may.

    Args:
        unit: half a unit in the last place of 1, in the required arithmetic.
        generator: of the signs, on the device of the call.

    Source: rounding errors of sums grow as sqrt(K) with high probability: N. J. Higham and
    T. Mary, A new approach to probabilistic rounding error analysis, 2019.
    """

    def __init__(self, unit: float, generator: torch.Generator) -> None:
        super().__init__()
        self._unit = unit
        self._generator = generator

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        """Return a real input, each element half a unit in the last place up or down."""
        return x + self._signs(x) * self._unit * x.abs()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name in _FUSED and func in decomposition_table:
            with self:
                return decomposition_table[func](*args, **kwargs)
        fresh = name not in _EXACT and not func.is_view
        sizes = self._sizes(func, name, args, kwargs) if fresh else []
        result = func(*args, **kwargs)
        for i, t in enumerate(_fresh(func, result, args, kwargs) if fresh else []):
            if t is not None:
                size, terms = sizes[i] if i < len(sizes) else (None, _folded(t, args))
                self._move(name, t, size, terms)
        return result

    def _sizes(
        self, func: Any, name: str, args: Any, kwargs: Any
    ) -> list[tuple[torch.Tensor, float]]:
        """Return, for each result of a sum, the sum of absolute values and how many they are."""
        if name in _SPREADS:
            return _spread_sizes(name, args, kwargs)
        if name not in _SUMS and name not in PRODUCTS:
            return []
        first = next(iter(tensors_of(list(args))), None)
        if first is None or not differentiable(first):
            return []  # counting is exact
        sizes = mapped(list(args), lambda t: t.abs() if differentiable(t) else t)
        results = tensors_of(func(*sizes, **kwargs))
        if name in PRODUCTS:
            return list(zip(results, _product_terms(name, args), strict=False))
        if name == "cumsum":
            return [(results[0], args[0].shape[args[1]] if args[0].dim() else 1)]
        return [(results[0], _folded(results[0], args))]

    def _move(self, name: str, t: torch.Tensor, size: torch.Tensor | None, terms: float) -> None:
        if size is None:
            size = t.abs()
            if name.startswith("_fft"):
                size = size.square().mean().sqrt().expand(t.shape)
                terms = max(terms, math.log2(t.numel() + 1))
        unit = max(self._unit, torch.finfo(t.dtype).eps / 2)
        size = size.reshape(t.shape)
        if t.is_complex():
            # The error of each part is relative to the size of both.
            t, size = torch.view_as_real(t), size.unsqueeze(-1)
        t.add_(self._signs(t) * size * (unit * _roundings(terms)))

    def _signs(self, t: torch.Tensor) -> torch.Tensor:
        up = torch.rand(t.shape, generator=self._generator, device=t.device) < 0.5
        return torch.where(up, 1.0, -1.0).to(t.dtype)


def _folded(result: torch.Tensor, args: Any) -> float:
    """Return how many elements of the first argument there are for each result, at least one."""
    first = args[0].numel() if args and isinstance(args[0], torch.Tensor) else 0
    return max(first / max(result.numel(), 1), 1.0)


def _roundings(terms: float) -> float:
    """Return by how many roundings a sum of so many terms may differ.

    Up to 2^20 terms it is the square root. In a longer running sum, each term is so small beside
    the sum that roundings no longer cancel, and the error grows with the number of terms: a sum of
    2^24 squares from left to right was off by 47,000 units in the last place (H200, 2026-11-30).
    """
    return math.sqrt(terms) if terms <= _STAGNATES else terms / math.sqrt(_STAGNATES)


def _product_terms(name: str, args: Any) -> list[float]:
    """Return how many products each result adds up."""
    if name == "convolution":
        weight, transposed = args[1], args[6]
        return [weight.numel() / weight.shape[1 if transposed else 0]]
    if name == "convolution_backward":
        grad, weight, transposed = args[0], args[2], args[7]
        into = weight.numel() / weight.shape[0 if transposed else 1]
        return [into, grad.numel() / grad.shape[1], grad.numel() / grad.shape[1]]
    if name == "_trilinear":
        return [args[0].shape[-1] * args[1].shape[-1]]
    if name == "addr":
        return [1]
    return [args[PRODUCTS[name][0]].shape[-1]]


def _spread_sizes(name: str, args: Any, kwargs: Any) -> list[tuple[torch.Tensor, float]]:
    x = args[0]
    dim = args[1] if len(args) > 1 and not isinstance(args[1], bool) else kwargs.get("dim")
    dims = list(range(x.dim())) if dim in (None, []) else dim
    square = x.square().mean(dims)
    terms = x.numel() / max(square.numel(), 1)
    if name.startswith("std"):
        square = square / (2 * x.std(dims, correction=0)).clamp_min(1e-300)
    return [(square, terms), (x.abs().mean(dims), terms)]


def _fresh(func: Any, result: Any, args: Any, kwargs: Any) -> list[torch.Tensor | None]:
    """Return the results that an operator has just computed, None for those that it only passes."""
    if func.is_view:
        return []
    if func._schema.is_mutable:
        known: set[int] = set()
    else:
        known = {t.untyped_storage().data_ptr() for t in tensors_of([list(args), kwargs])}
    return [
        t
        if differentiable(t) and t.numel() and t.untyped_storage().data_ptr() not in known
        else None
        for t in tensors_of(result)
    ]
