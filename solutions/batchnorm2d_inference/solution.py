"""BatchNorm2d at inference: one read and one write, the speed of a copy.

    y = (x - running_mean[c]) / sqrt(running_var[c] + eps) * weight[c] + bias[c]

Idea     Each element is loaded, scaled and stored once. What counts is that little happens before
         the load, and that blocks which run at the same time lie close together in memory.
Layout   NCHW: a plane is one (n, c), H * W elements in a row, all of one channel. channels_last:
         rows of C elements. Any other layout is first copied to NCHW.
Bytes    2 * sizeof(T) per element; the state is 4 values per channel.
Bound    bandwidth: (64, 64, 512, 512) float32 is 4 GiB in, 4 GiB out.

The mean is subtracted before anything is multiplied. x * a + (bias - mean * a) is one operation
less and loses all digits when the mean is large.
"""

import torch
import torch.nn as nn
from torch.nn.functional import batch_norm
from torch.utils.cpp_extension import load_inline

KERNELS = r"""
// >>> shared: normalise_planes
// Block (chunk, plane): a pack per thread, and the channel is found once per thread. Blocks follow
// each other in memory, so that those which run at the same time lie close together; with four
// packs per thread they lie four times as far apart, and DRAM is 4 % slower (docs/kernels.md).
// Little may happen before the load, so the grid has two dimensions: nothing is divided.
constexpr int kPlaneThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kPlaneThreads)
    normalise_planes(const T* __restrict__ x, T* __restrict__ y, State<T> state, int64_t planes,
                     int64_t channels, int64_t plane_size, bool vectors) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t plane = blockIdx.y; plane < planes; plane += gridDim.y) {
    const T* from = x + plane * plane_size;
    T* to = y + plane * plane_size;
    const Cut<T> cut(from, plane_size, vectors);

    // The load of x goes out before those of the state: one wait for both.
    Pack<T> pack;
    if (i < cut.packs) pack.raw = reinterpret_cast<const uint4*>(from + cut.head)[i];
    const Affine<T> affine(state, remainder(plane, channels));
    if (i < cut.packs) {
#pragma unroll
      for (int e = 0; e < Pack<T>::kSize; ++e) pack.v[e] = affine(pack.v[e]);
      reinterpret_cast<uint4*>(to + cut.head)[i] = pack.raw;
    }
    for (int64_t k = i; k < cut.edges; k += static_cast<int64_t>(gridDim.x) * blockDim.x) {
      const int64_t at = cut.edge(k);
      to[at] = affine(from[at]);
    }
  }
}

template <typename T>
void launch_planes(const at::Tensor& x, const at::Tensor& y, const State<T>& state) {
  const T* from = x.data_ptr<T>();
  T* to = y.data_ptr<T>();
  // Where x and y are aligned alike, the cut of a plane holds for both.
  const bool vectors =
      reinterpret_cast<uintptr_t>(from) % 16 == reinterpret_cast<uintptr_t>(to) % 16;
  const int64_t planes = x.size(0) * x.size(1), plane_size = x.size(2) * x.size(3);
  const int threads = threads_for(ceil_div(plane_size, Pack<T>::kSize), kPlaneThreads);
  const dim3 grid(
      grid_for(ceil_div(plane_size, static_cast<int64_t>(threads) * Pack<T>::kSize)),
      static_cast<unsigned>(std::min<int64_t>(planes, 65535)));
  normalise_planes<<<grid, threads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      from, to, state, planes, x.size(1), plane_size, vectors);
}
// <<< shared: normalise_planes

// channels_last: a thread owns V neighbouring channels, so that their coefficients stay in
// registers while it walks down the rows. blockDim = (packs of channels, rows); a job is
// kUnroll * blockDim.y rows of one tile of channels. V is a full pack where C and the addresses
// allow it, else 1.
constexpr int kRowThreads = 256;
constexpr int kUnroll = 4;  // rows per thread, loaded before the first is used

template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads)
    normalise_rows(const T* __restrict__ x, T* __restrict__ y, State<T> state, int64_t rows,
                   int64_t channels, int64_t tiles, int64_t jobs) {
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t band = job / tiles, tile = job - band * tiles;
    const int64_t c = (tile * blockDim.x + threadIdx.x) * V;
    if (c >= channels) continue;
    const int64_t first = band * blockDim.y * kUnroll + threadIdx.y;
    Elements<T, V> p[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = first + u * static_cast<int64_t>(blockDim.y);
      if (row < rows) p[u].get(x + row * channels + c);
    }
    Affine<T> affine[V];
#pragma unroll
    for (int e = 0; e < V; ++e) affine[e] = Affine<T>(state, c + e);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = first + u * static_cast<int64_t>(blockDim.y);
      if (row < rows) {
#pragma unroll
        for (int e = 0; e < V; ++e) p[u].v[e] = affine[e](p[u].v[e]);
        p[u].put(y + row * channels + c);
      }
    }
  }
}

template <typename T>
void launch_rows(const at::Tensor& x, const at::Tensor& y, const State<T>& state) {
  constexpr int kSize = Pack<T>::kSize;
  const T* from = x.data_ptr<T>();
  T* to = y.data_ptr<T>();
  const int64_t channels = x.size(1), rows = x.numel() / channels;
  const bool vectors = channels % kSize == 0 && aligned(from) && aligned(to);
  const int64_t wide = vectors ? channels / kSize : channels;
  const int across = wide > 32 ? 64 : 32;
  const dim3 block(across, kRowThreads / across);
  const int64_t tiles = ceil_div(wide, block.x);
  const int64_t jobs = tiles * ceil_div(rows, static_cast<int64_t>(block.y) * kUnroll);
  const auto kernel = vectors ? normalise_rows<T, kSize> : normalise_rows<T, 1>;
  kernel<<<grid_for(jobs), block, 0, c10::cuda::getCurrentCUDAStream()>>>(
      from, to, state, rows, channels, tiles, jobs);
}

at::Tensor normalise(const at::Tensor& x_, const at::Tensor& mean, const at::Tensor& var,
                     const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check(x_, {&mean, &var, &weight, &bias});
  const c10::cuda::CUDAGuard guard(x_.device());
  // channels_last stays as it lies; any other layout is copied to NCHW.
  const bool last = x_.is_contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor x = last ? x_ : x_.contiguous(), y = at::empty_like(x);
  if (y.numel() == 0) return y;
  // With one element per plane NCHW is rows of C elements too, far longer than the planes.
  const bool rows = !x.is_contiguous() || x.size(2) * x.size(3) == 1;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(),
                                  "batchnorm2d_inference", [&] {
    const State<scalar_t> state(mean, var, weight, bias, eps);
    if (rows) {
      launch_rows(x, y, state);
    } else {
      launch_planes(x, y, state);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}
"""


class ModelNew(nn.Module):
    """BatchNorm2d with the running statistics, whatever ``.train()`` says; forward only.

    ``bn`` holds the parameters, the buffers and the settings; its own forward is never called.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (N, C, H, W), normalised per channel with the running statistics."""
        bn = self.bn
        args = (x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
        if not x.is_cuda:
            return batch_norm(*args, eps=bn.eps)  # off the GPU this is PyTorch's own
        if torch.is_grad_enabled() and (
            x.requires_grad or bn.weight.requires_grad or bn.bias.requires_grad
        ):
            return _ForwardOnly.apply(*args, bn.eps)
        return extension.normalise(*args, bn.eps)


class _ForwardOnly(torch.autograd.Function):
    """Keeps the output attached to the graph, so that a backward pass fails with an error."""

    @staticmethod
    def forward(ctx, *args):
        return extension.normalise(*args)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(
            "batchnorm2d_inference is forward only: it has no backward kernel. "
            "batchnorm2d_frozen_autograd has one."
        )


# The compiler reads this part first.
HELPERS = r"""
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

// >>> shared: pack
// What sums and products are computed in: float, for double input double.
template <typename T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };

// Sixteen bytes seen as one load or as elements.
template <typename T>
union Pack {
  static constexpr int kSize = 16 / sizeof(T);
  uint4 raw;
  T v[kSize];
  __device__ Pack() {}
};
// <<< shared: pack

// >>> shared: per_channel
// One value per channel: of x's dtype, or float beside 16-bit x (`wide`), or absent.
template <typename T>
struct PerChannel {
  using A = typename Accumulator<T>::type;
  const void* data;
  bool wide;

  __device__ __forceinline__ A get(int64_t c, A absent) const {
    if (data == nullptr) return absent;
    return wide ? static_cast<const A*>(data)[c]
                : static_cast<A>(static_cast<const T*>(data)[c]);
  }
};

template <typename T>
PerChannel<T> per_channel(const at::Tensor& t) {
  return {t.data_ptr(), t.scalar_type() != c10::CppTypeToScalarType<T>::value};
}
// <<< shared: per_channel

// >>> shared: cut
// A plane of n elements cut for 16-byte accesses: `head` elements up to the first aligned address,
// then `packs` packs, then a tail shorter than a pack. Without vectors (x and y aligned
// differently) everything is edge.
template <typename T>
struct Cut {
  int64_t head, packs, edges;

  __device__ __forceinline__ Cut(const T* p, int64_t n, bool vectors) {
    head = static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(p) % 16) % 16 / sizeof(T));
    packs = vectors && n > head ? (n - head) / Pack<T>::kSize : 0;
    if (packs == 0) head = 0;
    edges = n - packs * Pack<T>::kSize;
  }
  // The position in the plane of edge element i.
  __device__ __forceinline__ int64_t edge(int64_t i) const {
    return i < head ? i : i + packs * Pack<T>::kSize;
  }
};
// <<< shared: cut

// V neighbouring elements: one 16-byte access, or a single element.
template <typename T, int V>
struct Elements {
  T v[V];

  __device__ __forceinline__ void get(const T* p) {
    if constexpr (V == 1) {
      v[0] = *p;
    } else {
      Pack<T> pack;
      pack.raw = *reinterpret_cast<const uint4*>(p);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = pack.v[e];
    }
  }
  __device__ __forceinline__ void put(T* p) const {
    if constexpr (V == 1) {
      *p = v[0];
    } else {
      Pack<T> pack;
#pragma unroll
      for (int e = 0; e < V; ++e) pack.v[e] = v[e];
      *reinterpret_cast<uint4*>(p) = pack.raw;
    }
  }
};

// >>> shared: affine
template <typename T>
struct State {
  using A = typename Accumulator<T>::type;
  PerChannel<T> mean, var, weight, bias;
  A eps;
  State(const at::Tensor& m, const at::Tensor& v, const at::Tensor& w, const at::Tensor& b,
        double e)
      : mean(per_channel<T>(m)), var(per_channel<T>(v)), weight(per_channel<T>(w)),
        bias(per_channel<T>(b)), eps(static_cast<A>(e)) {}
};

// (x - mean) * scale + bias for one channel. The coefficients are computed on every call, since
// the state may change between calls.
template <typename T>
struct Affine {
  using A = typename Accumulator<T>::type;
  A mean, scale, bias;

  __device__ Affine() {}
  __device__ __forceinline__ Affine(const State<T>& state, int64_t c)
      : mean(state.mean.get(c, A(0))),
        scale(state.weight.get(c, A(1)) / sqrt(state.var.get(c, A(1)) + state.eps)),
        bias(state.bias.get(c, A(0))) {}
  __device__ __forceinline__ T operator()(T x) const {
    return static_cast<T>((static_cast<A>(x) - mean) * scale + bias);
  }
};

// 64-bit division costs ten times as much as 32-bit.
__device__ __forceinline__ int64_t remainder(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<unsigned>(a) % static_cast<unsigned>(b);
  return a % b;
}
// <<< shared: affine

// >>> shared: batch_norm_check
// Refuses what the kernels cannot take. x is (N, C, H, W); the state is (C,), of x's dtype or
// float32 beside 16-bit x.
void check(const at::Tensor& x, std::initializer_list<const at::Tensor*> state) {
  const char* const who = "batchnorm2d_inference: ";
  TORCH_CHECK_VALUE(x.dim() == 4, "expected 4D input (got ", x.dim(), "D input)");
  TORCH_CHECK(x.layout() == at::kStrided && !x.is_neg(), who, "x must be a plain strided tensor.");
  const auto dtype = x.scalar_type();
  const bool narrow = dtype == at::kHalf || dtype == at::kBFloat16;
  for (const at::Tensor* t : state) {
    TORCH_CHECK(t->device() == x.device(), who, "x is on ", x.device(), " and the state on ",
                t->device(), ". Move one.");
    TORCH_CHECK(t->numel() == x.size(1) && t->is_contiguous(), who, "x has ", x.size(1),
                " channels, the state has shape ", t->sizes(), ".");
    TORCH_CHECK(t->scalar_type() == dtype || (narrow && t->scalar_type() == at::kFloat), who,
                "x is ", dtype, " and the state ", t->scalar_type(), ". Convert one.");
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// <<< shared: batch_norm_check

// >>> shared: launch_sizes
// The smallest power of two of at least `wanted` threads, from one warp to `most`.
int threads_for(int64_t wanted, int most) {
  int threads = 32;
  while (threads < most && threads < wanted) threads *= 2;
  return threads;
}

unsigned grid_for(int64_t jobs) {
  return static_cast<unsigned>(std::min<int64_t>(jobs, 2147483647));
}
// <<< shared: launch_sizes

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
"""

DECLARATION = """
at::Tensor normalise(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
                     const at::Tensor& weight, const at::Tensor& bias, double eps);
"""

extension = load_inline(
    name="batchnorm2d_inference_solution",
    cpp_sources=[DECLARATION],
    cuda_sources=[HELPERS, KERNELS],
    functions=["normalise"],
    extra_cuda_cflags=["-O3"],
)
