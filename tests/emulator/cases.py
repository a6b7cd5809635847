"""The kernels of kernels/*.cu: what each is called with and what must come of it.

An honest case gives its inputs and the expected output; a defect gives its inputs and the kind of
finding, whose line is the one marked ``// BUG name`` in the source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Tensors = tuple[Any, ...]


@dataclass(frozen=True)
class Honest:
    """Runs without a finding and gives ``expected(*inputs())``."""

    source: str
    inputs: Callable[[], Tensors]
    expected: Callable[..., Any]
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Defect:
    """Gives a finding of one of ``kinds`` in every thread order of ``orders``."""

    source: str
    inputs: Callable[[], Tensors]
    kinds: tuple[str, ...]
    marked: bool = True
    orders: tuple[str, ...] = ("forward", "reverse", "shuffled")


def _f(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def _i(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, dtype=torch.int32)


def _votes(x: torch.Tensor) -> torch.Tensor:
    even = int((x % 2 == 0).sum())
    same = torch.tensor([int((x == v).sum()) for v in x], dtype=torch.int32)
    any_, total = int((x > 6).any()), int(x.sum())
    return even + 100 * same + 10000 * any_ + 20000 + 100000 * total


def _tiles(x: torch.Tensor) -> torch.Tensor:
    t = x.reshape(-1, 16)
    return torch.stack([t.sum(1), t.amax(1)], 1)


def _early_exit(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flip(0) for part in x.split(64)])


def _uniform_branch(x: torch.Tensor) -> torch.Tensor:
    parts = x.split(64)
    swap = torch.arange(64) ^ 1
    return torch.cat([p.flip(0) if i % 2 == 0 else p[swap] for i, p in enumerate(parts)])


def _coalesced(x: torch.Tensor) -> torch.Tensor:
    n = int((x % 3 == 0).sum())
    return torch.tensor([n, n - 1], dtype=torch.int32)


def _count(x: torch.Tensor) -> torch.Tensor:
    return ((x > 0).sum(1) + 1000).to(torch.int32)


def _index3d(_: torch.Tensor) -> torch.Tensor:
    z, y, x = torch.meshgrid(torch.arange(5), torch.arange(7), torch.arange(9), indexing="ij")
    return (x + 100 * y + 10000 * z).to(torch.int32)


def _flags(x: torch.Tensor) -> torch.Tensor:
    previous = torch.cat([torch.zeros(1, x.shape[1]), x[:-1]])
    return x + previous


def _math(x: torch.Tensor) -> torch.Tensor:
    i = torch.arange(x.numel())
    clz = torch.tensor([32 - int(k + 1).bit_length() for k in i])
    return (
        torch.rsqrt(x * x + 1) + x.sin() / 2 + x.cos() * 2 + 1 + (x.abs() + 1).sqrt() + x
        + i.clamp(min=3) + 0.6931472 + 2 + 2 + x.clamp(0, 1) + clz + x.clamp(max=1) + 0.5
    )  # fmt: skip


def _rare(x: torch.Tensor) -> torch.Tensor:
    largest = (torch.arange(32) % 7).cummax(0).values
    before = torch.cat([torch.zeros(1, dtype=torch.long), largest[:-1]])
    return x + (x + 1) / 2 + before + 1 + (x.half() + 2).clamp(0, 1).float()


def _blas_vectors(a: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    product = 3 * (a @ x) + y / 2
    return torch.cat([a + 3 * torch.outer(y, x), product.unsqueeze(1)], 1) + 1


def _bins(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(8, dtype=x.dtype).index_add(0, index, x)


_B, _F = "honest_basics.cu", "honest_features.cu"
HONEST: dict[str, Honest] = {
    "add_dispatch": Honest(_B, lambda: (_f(1000), _f(1000)), torch.add),
    "relu_stride": Honest(_B, lambda: (_f(1001),), torch.relu),
    "add_float4": Honest(_B, lambda: (_f(1003), _f(1003)), torch.add),
    "transpose": Honest(_B, lambda: (_f(37, 50),), lambda x: x.t()),
    "index3d": Honest(_B, lambda: (_f(1),), _index3d),
    "row_sum": Honest(_B, lambda: (_f(7, 300),), lambda x: x.sum(1)),
    "softmax": Honest(_B, lambda: (_f(5, 333),), lambda x: x.softmax(1)),
    "scan_warp": Honest(
        _B, lambda: (_i(9, 96),), lambda x: x.reshape(3, 32).cumsum(1).to(torch.int32).flatten()
    ),
    "partial_mask": Honest(_B, lambda: (_f(8),), lambda x: x.sum().reshape(1)),
    "atomic_sum": Honest(_B, lambda: (_f(1000),), lambda x: x.sum().reshape(1), 1e-3),
    "histogram": Honest(
        _B,
        lambda: (_i(16, 2000),),
        lambda x: torch.bincount(x.long(), minlength=16).to(torch.int32),
    ),
    "last_block": Honest(_B, lambda: (_f(3000),), lambda x: x.sum().reshape(1), 1e-3),
    "last_block_all": Honest(_B, lambda: (_f(6, 64),), lambda x: 2 * x.sum(0)),
    "cas_max": Honest(_B, lambda: (_f(500),), lambda x: x.max().reshape(1)),
    "uniform_branch": Honest(_B, lambda: (_f(256),), _uniform_branch),
    "early_exit": Honest(_B, lambda: (_f(150),), _early_exit),
    "big_shared": Honest(_B, lambda: (_f(20000),), lambda x: x.flip(0)),
    "same_value": Honest(_B, lambda: (_f(4, 64),), lambda x: (x < 0).any(1).to(torch.int32)),
    "bytes": Honest(
        _B, lambda: (torch.randint(0, 256, (301,), dtype=torch.uint8),), lambda x: 255 - x
    ),
    "test_then_max": Honest(_B, lambda: (_i(10000, 300),), lambda x: x.max().reshape(1)),
    "matmul": Honest(_B, lambda: (_f(19, 30), _f(30, 13)), torch.matmul),
    "block_scan": Honest(_B, lambda: (_f(128),), lambda x: x.cumsum(0)),
    "syncwarp": Honest(_B, lambda: (_f(192),), lambda x: x.reshape(-1, 32).sum(1)),
    "count": Honest(_B, lambda: (_f(5, 96),), _count),
    "grid_sync": Honest(_F, lambda: (torch.rand(500) + 0.1,), lambda x: x / x.sum()),
    "compact_sum": Honest(
        _F,
        lambda: (_f(500),),
        lambda x: torch.stack([x.clamp(min=0).sum(), (x > 0).float().sum()]),
        1e-3,
    ),
    "coalesced": Honest(_F, lambda: (_i(100, 300),), _coalesced),
    "half2_fma": Honest(
        _F, lambda: (_f(200).half(), _f(200).half()), lambda a, b: a * b + 0.5, 1e-2
    ),
    "bf16_silu": Honest(
        _F, lambda: (_f(100).bfloat16(),), lambda a: torch.nn.functional.silu(a), 2e-2
    ),
    "polynomial": Honest(_F, lambda: (_f(200),), lambda x: 1 + x * (2 + x * (3 + 4 * x)), 1e-3),
    "device_variable": Honest(_F, lambda: (_f(1),), lambda x: torch.full((1,), 150.0)),
    "carved": Honest(_F, lambda: (_f(70),), lambda x: x.flip(0)),
    "file_scope_shared": Honest(_F, lambda: (_f(70).double(),), lambda x: x.flip(0)),
    "welford": Honest(_F, lambda: (_f(6, 500) + 100,), lambda x: x.var(1, unbiased=False), 1e-3),
    "functor": Honest(_F, lambda: (_f(200),), lambda x: 2 * torch.nn.functional.gelu(x)),
    "device_lambda": Honest(_F, lambda: (_f(200),), lambda x: x + 3),
    "function_pointer": Honest(_F, lambda: (_f(100),), lambda x: 3 * x),
    "launch_macro": Honest(_F, lambda: (_f(100),), lambda x: 2 * x),
    "tiles": Honest(_F, lambda: (_f(128),), _tiles),
    "accessor": Honest(_F, lambda: (_f(9, 4, 5),), lambda x: x.sum((1, 2)).reshape(-1, 1)),
    "pun": Honest(_F, lambda: (_f(50),), lambda x: torch.zeros(50, dtype=torch.int32)),
    "votes": Honest(_F, lambda: (_i(10, 32),), _votes),
    "scatter": Honest(_F, lambda: (torch.randint(0, 8, (100,)), _f(100).double()), _bins),
    "workspace": Honest(_F, lambda: (_f(100),), lambda x: x + 1),
    "flags": Honest(_F, lambda: (_f(5, 64),), _flags),
    "spin_lock": Honest(_F, lambda: (_f(40),), lambda x: x.sum().reshape(1), 1e-3),
    "math": Honest(_F, lambda: (_f(60),), _math, 1e-3),
    "half_atomic": Honest(
        _F, lambda: (torch.ones(20).half(),), lambda x: torch.full((1,), 20.0).half()
    ),
    "half_in_place": Honest(_F, lambda: (_f(150).half(),), lambda x: x * 2),
    "half_tree": Honest(
        _F, lambda: (_i(9, 64).half(),), lambda x: x.float().sum().half().reshape(1)
    ),
    "bytes_in_place": Honest(
        _F,
        lambda: (torch.randint(0, 200, (96,), dtype=torch.uint8),),
        lambda x: x.reshape(-1, 4).flip(1).flatten() + 4,
    ),
    "rare": Honest(_F, lambda: (torch.rand(32) * 1.8 - 0.9,), _rare, 1e-3),
    "blas": Honest(_F, lambda: (_f(5, 7), _f(6, 7)), lambda a, b: 2 * a @ b.t() + 1),
    "blas_vectors": Honest(_F, lambda: (_f(5, 7), _f(7), _f(5)), _blas_vectors),
}

_D = "defects.cu"
_OOB_W, _OOB_R = ("out-of-bounds write",), ("out-of-bounds read",)
_SHARED_RACE, _BLOCK_RACE = ("shared memory race",), ("data race between blocks", "data race")
_BARRIER, _LAUNCH = ("divergent barrier", "divergent warp operation"), ("bad launch configuration",)


def _index(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


DEFECTS: dict[str, Defect] = {
    "oob_write": Defect(_D, lambda: (_f(100),), _OOB_W),
    "oob_read": Defect(_D, lambda: (_f(100),), _OOB_R),
    "oob_negative": Defect(_D, lambda: (_f(100),), _OOB_R),
    "oob_far": Defect(_D, lambda: (_f(50, 20),), _OOB_R),
    "oob_vector": Defect(_D, lambda: (_f(30),), _OOB_R),
    "oob_dtype": Defect(_D, lambda: (_f(64).half(),), _OOB_R),
    "oob_atomic": Defect(_D, lambda: (_i(20, 32),), _OOB_W),
    "oob_ldg": Defect(_D, lambda: (_f(32),), _OOB_R),
    "oob_shared": Defect(_D, lambda: (_f(64),), ("out-of-bounds shared write",)),
    "oob_shared_read": Defect(_D, lambda: (_f(64),), ("out-of-bounds shared read",)),
    "oob_dynamic": Defect(_D, lambda: (_f(64),), ("out-of-bounds shared write",)),
    "no_dynamic": Defect(_D, lambda: (_f(64),), ("out-of-bounds shared write",)),
    "null_pointer": Defect(_D, lambda: (_f(32),), ("null pointer write",)),
    "dangling": Defect(_D, lambda: (_f(40),), ("read of freed memory",)),
    "use_after_free": Defect(_D, lambda: (_f(1),), ("write to freed memory",)),
    "double_free": Defect(_D, lambda: (_f(1),), ("invalid free",), marked=False),
    "copy_too_much": Defect(_D, lambda: (_f(50),), ("out-of-bounds copy",), marked=False),
    "host_overrun": Defect(_D, lambda: (_f(50),), _OOB_W, marked=False),
    "uninit_accumulator": Defect(_D, lambda: (_f(50),), ("uninitialised read",)),
    "uninit_global": Defect(_D, lambda: (_f(50),), ("uninitialised read",)),
    "uninit_malloc": Defect(_D, lambda: (_f(1),), ("uninitialised read",)),
    "uninit_shared": Defect(_D, lambda: (_f(64),), ("uninitialised shared memory",)),
    "uninit_bins": Defect(_D, lambda: (_i(8, 32),), ("uninitialised shared memory",)),
    "uninit_halo": Defect(_D, lambda: (_f(64),), ("uninitialised shared memory",)),
    "missing_barrier": Defect(
        _D, lambda: (_f(64),), (*_SHARED_RACE, "uninitialised shared memory")
    ),
    "reduction_race": Defect(_D, lambda: (_f(128),), _SHARED_RACE),
    "overwrite_race": Defect(_D, lambda: (_f(4, 64),), _SHARED_RACE, marked=False),
    "broadcast_race": Defect(
        _D, lambda: (_f(128),), (*_SHARED_RACE, "uninitialised shared memory"), marked=False
    ),
    "warp_race": Defect(
        _D, lambda: (_f(32),), (*_SHARED_RACE, "uninitialised shared memory"), marked=False
    ),
    "volatile_warp": Defect(_D, lambda: (_f(64),), _SHARED_RACE, marked=False),
    "histogram_race": Defect(_D, lambda: (_i(8, 64),), _SHARED_RACE, marked=False),
    "lost_update": Defect(_D, lambda: (_f(128),), _BLOCK_RACE),
    "block_race": Defect(_D, lambda: (_f(8),), _BLOCK_RACE),
    "stencil_in_place": Defect(_D, lambda: (_f(128),), _BLOCK_RACE),
    "missing_fence": Defect(_D, lambda: (_f(8),), _BLOCK_RACE),
    "no_grid_sync": Defect(_D, lambda: (_f(8),), _BLOCK_RACE, marked=False),
    "divergent_barrier": Defect(_D, lambda: (_f(64),), _BARRIER, marked=False),
    "deadlock": Defect(_D, lambda: (_f(32),), _BARRIER, marked=False),
    "absent_lane": Defect(_D, lambda: (_f(16),), ("shuffle from an absent lane",)),
    "absent_down": Defect(_D, lambda: (_f(32),), ("shuffle from an absent lane",)),
    "wrong_mask": Defect(_D, lambda: (_f(32),), ("warp mask without the caller",)),
    "plain_grid_sync": Defect(_D, lambda: (_f(1),), ("grid barrier without a cooperative launch",)),
    "too_many_threads": Defect(_D, lambda: (_f(100),), _LAUNCH),
    "empty_grid": Defect(_D, lambda: (_f(100),), _LAUNCH),
    "deep_block": Defect(_D, lambda: (_f(100),), _LAUNCH),
    "no_opt_in": Defect(_D, lambda: (_f(64),), _LAUNCH),
    "unchecked_then_checked": Defect(_D, lambda: (_f(100),), _LAUNCH),
    "misaligned": Defect(_D, lambda: (_f(64),), ("misaligned access",)),
    "misaligned_store": Defect(_D, lambda: (_f(1),), ("misaligned access",)),
    "device_assert": Defect(_D, lambda: (_f(8),), ("device assert",)),
    "divide_by_zero": Defect(
        _D, lambda: (_index(1, 2, 0, 4, 5, 6, 7, 8),), ("integer division by zero",)
    ),
    "blas_too_large": Defect(_D, lambda: (_f(8, 8),), _OOB_R, marked=False),
    "half_race": Defect(_D, lambda: (_f(128).half(),), ("data race",), marked=False),
    "byte_race": Defect(
        _D,
        lambda: (torch.randint(0, 200, (64,), dtype=torch.uint8),),
        _SHARED_RACE,
        marked=False,
    ),
}
