"""Elementwise addition with 16-byte accesses: what a bandwidth-bound kernel looks like.

Layout   a, b and out are walked in memory order. When a and b share one dense layout
         (contiguous, channels_last, transposed alike) that order is the same for all three and
         the shape does not matter. Otherwise `add_strided` computes two addresses per element.
Mapping  `add_flat`: a thread owns one 16-byte pack; neighbouring threads touch neighbouring
         packs, so a warp access is four full 128-byte lines.
Bytes    two reads and one write per element: 12 bytes in float32.
Bound    bandwidth: 2^28 elements are 3.2 GB. At (1, 128) it is one launch.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

CPP_SOURCE = r"""
#include <ATen/Dispatch.h>
#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>

void add_cuda(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out, bool flat);

namespace cpu {

template <typename T> struct Accumulator { using type = T; };
template <> struct Accumulator<at::Half> { using type = float; };
template <> struct Accumulator<at::BFloat16> { using type = float; };

template <typename T>
void add_flat(const T* a, const T* b, T* out, int64_t n) {
  using A = typename Accumulator<T>::type;
  at::parallel_for(0, n, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<T>(static_cast<A>(a[i]) + static_cast<A>(b[i]));
    }
  });
}

}  // namespace cpu

at::Tensor add(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "elementwise_add: a is ", a.scalar_type(),
              " and b is ", b.scalar_type(), ". This kernel does not promote: convert one.");
  TORCH_CHECK(a.device() == b.device(), "elementwise_add: a is on ", a.device(), " and b is on ",
              b.device(), ". Move one.");
  TORCH_CHECK(a.layout() == at::kStrided && b.layout() == at::kStrided && !a.is_neg() &&
                  !b.is_neg(),
              "elementwise_add: only plain strided tensors are supported.");

  at::Tensor p = a, q = b;
  if (a.sizes() != b.sizes()) {
    const auto shape = at::infer_size(a.sizes(), b.sizes());
    p = a.expand(shape);
    q = b.expand(shape);
  }
  // One memory order for both inputs: the output takes it too, and indices need no arithmetic.
  const bool flat = (p.is_contiguous() && q.is_contiguous()) ||
                    (p.strides() == q.strides() && p.is_non_overlapping_and_dense());
  const at::Tensor out = flat ? at::empty_like(p) : at::empty(p.sizes(), p.options());
  if (out.numel() == 0) return out;

  if (a.is_cuda()) {
    add_cuda(p, q, out, flat);
    return out;
  }
  TORCH_CHECK(a.device().is_cpu(), "elementwise_add: no kernel for device ", a.device(), ".");
  const at::Tensor pc = flat ? p : p.contiguous();
  const at::Tensor qc = flat ? q : q.contiguous();
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, a.scalar_type(), "elementwise_add", [&] {
    cpu::add_flat(pc.data_ptr<scalar_t>(), qc.data_ptr<scalar_t>(), out.data_ptr<scalar_t>(),
                  out.numel());
  });
  return out;
}
"""

CUDA_SOURCE = r"""
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace gpu {

// One pack of each input per thread: what runs at the same time then lies close together in memory.
// Four per thread, with streaming loads, took 0.816 ms instead of 0.737 (docs/kernels.md).
constexpr int kThreads = 128;
constexpr int kMaxDims = 16;

template <typename T> struct Accumulator { using type = T; };
template <> struct Accumulator<at::Half> { using type = float; };
template <> struct Accumulator<at::BFloat16> { using type = float; };

template <typename T>
__device__ __forceinline__ T sum(T a, T b) {
  using A = typename Accumulator<T>::type;
  return static_cast<T>(static_cast<A>(a) + static_cast<A>(b));
}

// Sixteen bytes seen as one load or as elements.
template <typename T>
union Pack {
  static constexpr int kSize = 16 / sizeof(T);
  uint4 raw;
  T v[kSize];
  __device__ Pack() {}
};

// The first `packs` packs by vectors, what is left by elements. An input whose address is not a
// multiple of 16 bytes comes with packs = 0 and goes by elements throughout.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_flat(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out, int64_t n,
             int64_t packs) {
  const uint4* va = reinterpret_cast<const uint4*>(a);
  const uint4* vb = reinterpret_cast<const uint4*>(b);
  uint4* vout = reinterpret_cast<uint4*>(out);

  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < packs) {
    Pack<T> p, q;
    p.raw = va[at];
    q.raw = vb[at];
#pragma unroll
    for (int e = 0; e < Pack<T>::kSize; ++e) p.v[e] = sum(p.v[e], q.v[e]);
    vout[at] = p.raw;
  }

  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = packs * Pack<T>::kSize + static_cast<int64_t>(blockIdx.x) * kThreads +
                   threadIdx.x;
       i < n; i += stride) {
    out[i] = sum(a[i], b[i]);
  }
}

struct Geometry {
  int dims;
  int64_t size[kMaxDims], a[kMaxDims], b[kMaxDims];
};

// One thread per element of the contiguous output; a and b by their strides, 0 where broadcast.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_strided(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out,
                Geometry g, int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += stride) {
    int64_t rest = i, ia = 0, ib = 0;
    for (int d = g.dims - 1; d >= 0; --d) {
      const int64_t k = rest % g.size[d];
      rest /= g.size[d];
      ia += k * g.a[d];
      ib += k * g.b[d];
    }
    out[i] = sum(a[ia], b[ib]);
  }
}

// Merge neighbouring dimensions that both inputs walk without a jump: fewer divisions.
Geometry collapse(const at::Tensor& a, const at::Tensor& b) {
  Geometry g{};
  for (int64_t d = 0; d < a.dim(); ++d) {
    const int64_t size = a.size(d), sa = a.stride(d), sb = b.stride(d);
    if (size == 1) continue;
    const int last = g.dims - 1;
    if (g.dims > 0 && g.a[last] == size * sa && g.b[last] == size * sb) {
      g.size[last] *= size;
      g.a[last] = sa;
      g.b[last] = sb;
      continue;
    }
    TORCH_CHECK(g.dims < kMaxDims, "elementwise_add: more than ", kMaxDims,
                " dimensions that cannot be merged.");
    g.size[g.dims] = size;
    g.a[g.dims] = sa;
    g.b[g.dims] = sb;
    ++g.dims;
  }
  return g;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

unsigned grid_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(std::min<int64_t>(std::max<int64_t>(blocks, 1), 2147483647));
}

}  // namespace gpu

void add_cuda(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out, bool flat) {
  const c10::cuda::CUDAGuard guard(out.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t n = out.numel();
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, a.scalar_type(), "elementwise_add", [&] {
    const scalar_t* pa = a.data_ptr<scalar_t>();
    const scalar_t* pb = b.data_ptr<scalar_t>();
    scalar_t* po = out.data_ptr<scalar_t>();
    if (flat) {
      constexpr int kSize = gpu::Pack<scalar_t>::kSize;
      const bool vectors = gpu::aligned(pa) && gpu::aligned(pb) && gpu::aligned(po);
      const int64_t packs = vectors ? n / kSize : 0;
      const unsigned blocks =
          gpu::grid_for(vectors ? packs : n, gpu::kThreads);
      gpu::add_flat<scalar_t><<<blocks, gpu::kThreads, 0, stream>>>(pa, pb, po, n, packs);
    } else {
      const gpu::Geometry geometry = gpu::collapse(a, b);
      const unsigned blocks = gpu::grid_for(n, gpu::kThreads);
      gpu::add_strided<scalar_t><<<blocks, gpu::kThreads, 0, stream>>>(pa, pb, po, geometry, n);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}
"""

extension = load_inline(
    name="elementwise_add_solution",
    cpp_sources=[CPP_SOURCE],
    cuda_sources=[CUDA_SOURCE],
    functions=["add"],
    extra_cflags=["-O3", "-fopenmp"],
    extra_cuda_cflags=["-O3"],
)


class _ForwardOnly(torch.autograd.Function):
    """Keeps the output attached to the graph, so that a backward pass cannot go wrong silently."""

    @staticmethod
    def forward(ctx, a, b):
        return extension.add(a, b)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("elementwise_add is forward only: it has no backward kernel.")


class ModelNew(nn.Module):
    """``a + b`` for tensors of one dtype on one device, with broadcasting; forward only."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return ``a + b``."""
        if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
            return _ForwardOnly.apply(a, b)
        return extension.add(a, b)
