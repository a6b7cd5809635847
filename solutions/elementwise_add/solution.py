"""Elementwise addition: what a kernel at the speed of memory looks like.

Idea     Addition costs nothing; only bytes do. A thread loads 16 bytes of a and of b, adds them and
         stores 16 bytes. Neighbouring threads touch neighbouring packs, so that one access of a
         warp is four full lines of 128 bytes.
Layout   a, b and out are walked in the order of memory. Where a and b share one dense layout
         (contiguous, channels_last, transposed alike) the shape does not matter. Everything else,
         broadcasting included, goes to `add_strided`, which computes two addresses per element.
Bytes    two reads and one write per element: 12 bytes in float32.
Bound    bandwidth: 2^28 elements are 3.2 GB. At (1, 128) the launch is all there is.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

KERNELS = r"""
// One pack of each input per thread, so that blocks which run at the same time lie close together
// in memory. Four packs per thread, with streaming loads, took 0.816 ms instead of 0.737
// (docs/kernels.md).
constexpr int kThreads = 128;

// The first `packs` packs go by vectors and the rest by elements. Where an address is not a
// multiple of 16 bytes the caller says packs = 0, and all goes by elements.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_flat(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out, int64_t n,
             int64_t packs) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < packs) {
    Pack<T> p = reinterpret_cast<const Pack<T>*>(a)[at];
    const Pack<T> q = reinterpret_cast<const Pack<T>*>(b)[at];
#pragma unroll
    for (int e = 0; e < Pack<T>::kSize; ++e) p.v[e] = sum(p.v[e], q.v[e]);
    reinterpret_cast<Pack<T>*>(out)[at] = p;
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = packs * Pack<T>::kSize + static_cast<int64_t>(blockIdx.x) * kThreads +
                   threadIdx.x;
       i < n; i += stride) {
    out[i] = sum(a[i], b[i]);
  }
}

// One thread per element of the contiguous output. A dimension along which an input is broadcast
// has stride 0 there.
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
"""

LAUNCH = r"""
at::Tensor add(at::Tensor a, at::Tensor b) {
  check(a, b);
  if (a.sizes() != b.sizes()) {
    const auto shape = at::infer_size(a.sizes(), b.sizes());
    a = a.expand(shape);
    b = b.expand(shape);
  }
  const bool flat = (a.is_contiguous() && b.is_contiguous()) ||
                    (a.strides() == b.strides() && a.is_non_overlapping_and_dense());
  const at::Tensor out = flat ? at::empty_like(a) : at::empty(a.sizes(), a.options());
  const int64_t n = out.numel();
  if (n == 0) return out;

  const c10::cuda::CUDAGuard guard(out.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, a.scalar_type(), "elementwise_add", [&] {
    const scalar_t* pa = a.data_ptr<scalar_t>();
    const scalar_t* pb = b.data_ptr<scalar_t>();
    scalar_t* po = out.data_ptr<scalar_t>();
    if (flat) {
      const bool vectors = aligned(pa) && aligned(pb) && aligned(po);
      const int64_t packs = vectors ? n / Pack<scalar_t>::kSize : 0;
      const unsigned blocks = blocks_for(vectors ? packs : n, kThreads);
      add_flat<scalar_t><<<blocks, kThreads, 0, stream>>>(pa, pb, po, n, packs);
    } else {
      add_strided<scalar_t>
          <<<blocks_for(n, kThreads), kThreads, 0, stream>>>(pa, pb, po, collapse(a, b), n);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}
"""


class ModelNew(nn.Module):
    """``a + b`` for tensors of one dtype on one device, with broadcasting; forward only."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return ``a + b``."""
        if not a.is_cuda:
            return torch.add(a, b)  # off the GPU this is PyTorch's own addition
        if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
            return _ForwardOnly.apply(a, b)
        return extension.add(a, b)


class _ForwardOnly(torch.autograd.Function):
    """Keeps the output attached to the graph, so that a backward pass fails with an error."""

    @staticmethod
    def forward(ctx, a, b):
        return extension.add(a, b)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("elementwise_add is forward only: it has no backward kernel.")


# The compiler reads this part first.
HELPERS = r"""
#include <ATen/Dispatch.h>
#include <ATen/ExpandUtils.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

// Sixteen bytes, which one instruction loads or stores.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

template <typename T>
__device__ __forceinline__ T sum(T a, T b) {
  return a + b;
}

constexpr int kMaxDims = 16;

struct Geometry {
  int dims;
  int64_t size[kMaxDims], a[kMaxDims], b[kMaxDims];  // sizes, and strides of the inputs
};

// Merges neighbouring dimensions that both inputs walk without a jump: fewer divisions.
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

void check(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "elementwise_add: a is ", a.scalar_type(),
              " and b is ", b.scalar_type(), ". This kernel does not promote: convert one.");
  TORCH_CHECK(a.device() == b.device(), "elementwise_add: a is on ", a.device(), " and b is on ",
              b.device(), ". Move one.");
  TORCH_CHECK(a.layout() == at::kStrided && b.layout() == at::kStrided && !a.is_neg() &&
                  !b.is_neg(),
              "elementwise_add: only plain strided tensors are supported.");
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(std::min<int64_t>(std::max<int64_t>(blocks, 1), 2147483647));
}
"""

extension = load_inline(
    name="elementwise_add_solution",
    cpp_sources=["at::Tensor add(at::Tensor a, at::Tensor b);"],
    cuda_sources=[HELPERS, KERNELS, LAUNCH],
    functions=["add"],
    extra_cuda_cflags=["-O3"],
)
