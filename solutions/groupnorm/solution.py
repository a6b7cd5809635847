"""GroupNorm: statistics per sample and group, affine per channel.

    y = (x - mean[n, g]) / sqrt(var[n, g] + eps) * weight[c] + bias[c]        g = c / (C / G)

Idea     In NCHW the C / G planes of a group follow each other, so a group is one contiguous range.
         A group is read twice: once for its statistics, once to be normalised.
           Groups of up to 16384 elements: one block per group, one launch. The second read comes
           out of L1 or L2.
           Larger groups: `group_moments` cuts every group into parts and stores count, mean and M2
           (the sum of squared deviations) of each part. `normalise_planes` merges the parts and
           writes y. It starts at the end of x, which the first launch has just left in L2.
Bound    Bandwidth: two reads and one write. (112, 64, 512, 512) float32 moves 21 GiB.
Digits   Never E[x^2] - E[x]^2: with a mean of 1e4 it loses every digit of the variance. A thread
         takes the moments of a few values in registers and merges them into its own by Chan's
         formula, which merges lanes, warps and blocks as well.

It runs on any GPU from compute capability 7.5; hopper.py beside this file reads x once.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

KERNELS = r"""
constexpr int kMaxThreads = 256;
constexpr int kMomentThreads = 512;
constexpr int kUnroll = 4;              // 16-byte loads in flight per thread
constexpr int64_t kSmallGroup = 16384;  // one block takes a group of up to this many elements
constexpr int64_t kPart = 65536;        // elements of a large group per block of group_moments

// Where the moments of all parts are kept: [4][groups * parts], n, mean, low and M2.
template <typename A>
struct Parts {
  A* data;
  int64_t groups, parts;

  __device__ __forceinline__ Moments<A> get(int64_t group, int64_t part) const {
    const int64_t at = group * parts + part, all = groups * parts;
    return {data[at], data[all + at], data[2 * all + at], data[3 * all + at]};
  }
  __device__ __forceinline__ void put(int64_t group, int64_t part, const Moments<A>& m) const {
    const int64_t at = group * parts + part, all = groups * parts;
    data[at] = m.n, data[all + at] = m.mean;
    data[2 * all + at] = m.low, data[3 * all + at] = m.m2;
  }
};

// The moments of what one thread reads: the packs begin, begin + blockDim.x, ... before `end`, and
// the edges edge, edge + edge_stride, ...
template <typename T>
__device__ __forceinline__ Moments<typename Accumulator<T>::type> thread_moments(
    const T* from, const Cut<T>& cut, int64_t begin, int64_t end, int64_t edge,
    int64_t edge_stride) {
  using A = typename Accumulator<T>::type;
  constexpr int kSize = Pack<T>::kSize;
  const int threads = blockDim.x;
  const uint4* packs = reinterpret_cast<const uint4*>(from + cut.head);
  Moments<A> m{0, 0, 0, 0};
  int64_t i = begin;
  // The loads of a round go out before the arithmetic of the round before it.
  Pack<T> pack[kUnroll];
  bool more = i + (kUnroll - 1) * threads < end;
  if (more) UNROLL for (int u = 0; u < kUnroll; ++u) pack[u].raw = packs[i + u * threads];
  while (more) {
    A v[kUnroll * kSize];
    UNROLL for (int k = 0; k < kUnroll * kSize; ++k)
      v[k] = static_cast<A>(pack[k / kSize].v[k % kSize]);
    i += kUnroll * threads;
    more = i + (kUnroll - 1) * threads < end;
    if (more) UNROLL for (int u = 0; u < kUnroll; ++u) pack[u].raw = packs[i + u * threads];
    add<kUnroll * kSize>(m, v);
  }
  for (; i < end; i += threads) {
    Pack<T> pack;
    A v[kSize];
    pack.raw = packs[i];
    UNROLL for (int k = 0; k < kSize; ++k) v[k] = static_cast<A>(pack.v[k]);
    add<kSize>(m, v);
  }
  for (int64_t e = edge; e < cut.edges; e += edge_stride) {
    const A v = static_cast<A>(from[cut.edge(e)]);
    add<1>(m, &v);
  }
  return m;
}

// First launch of a large group. A block takes one part of one group: part_packs packs.
template <typename T>
__global__ void __launch_bounds__(kMomentThreads)
    group_moments(const T* __restrict__ x, Parts<typename Accumulator<T>::type> parts,
                  int64_t group_size, int64_t part_packs) {
  for (int64_t job = blockIdx.x; job < parts.groups * parts.parts; job += gridDim.x) {
    const int64_t group = job / parts.parts, part = job - group * parts.parts;
    const T* from = x + group * group_size;
    const Cut<T> cut(from, group_size, true);
    const int64_t begin = part * part_packs + threadIdx.x;
    const int64_t end = std::min<int64_t>(cut.packs, (part + 1) * part_packs);
    auto m = thread_moments(from, cut, begin, end, part * blockDim.x + threadIdx.x,
                            parts.parts * blockDim.x);
    m = block_merge(m, threadIdx.x, blockDim.x);
    if (threadIdx.x == 0) parts.put(group, part, m);
  }
}

// mean, low and 1 / sqrt(var + eps) of a group from its parts, to every thread of the block.
template <typename A>
__device__ __forceinline__ void group_statistics(const Parts<A>& parts, int64_t group, A eps,
                                                 A& mean, A& low, A& invstd) {
  __shared__ A shared[3];
  if (threadIdx.x < 32) {
    Moments<A> m{0, 0, 0, 0};
    for (int64_t i = threadIdx.x; i < parts.parts; i += 32) m = merge(m, parts.get(group, i));
    for (int step = 16; step > 0; step /= 2) m = merge(m, shuffle_down(m, step));
    if (threadIdx.x == 0)
      shared[0] = m.mean, shared[1] = m.low, shared[2] = A(1) / sqrt(m.m2 / m.n + eps);
  }
  __syncthreads();
  mean = shared[0], low = shared[1], invstd = shared[2];
  __syncthreads();  // the array may be written again by the block's next job
}

// Second launch. A block takes blockDim.x * kUnroll packs of one plane, so it has one channel. The
// last of x come first.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    normalise_planes(const T* __restrict__ x, T* __restrict__ y, PerChannel<T> weight,
                     PerChannel<T> bias, Parts<typename Accumulator<T>::type> parts,
                     typename Accumulator<T>::type eps, int64_t planes, int64_t channels,
                     int64_t width, int64_t plane_size, int64_t chunks, bool vectors) {
  using A = typename Accumulator<T>::type;
  const int threads = blockDim.x;
  const int64_t jobs = planes * chunks;
  for (int64_t k = blockIdx.x; k < jobs; k += gridDim.x) {
    const int64_t job = jobs - 1 - k;
    const int64_t plane = job / chunks, chunk = job - plane * chunks;
    const T* from = x + plane * plane_size;
    T* to = y + plane * plane_size;
    const Cut<T> cut(from, plane_size, vectors);
    const uint4* vfrom = reinterpret_cast<const uint4*>(from + cut.head);
    uint4* vto = reinterpret_cast<uint4*>(to + cut.head);

    // The loads of x go out before the statistics are merged: one wait for both.
    const int64_t first = chunk * threads * kUnroll + threadIdx.x;
    Pack<T> p[kUnroll];
    UNROLL for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * threads;
      if (i < cut.packs) p[u].raw = vfrom[i];
    }
    A mean, low, invstd;
    group_statistics(parts, plane / width, eps, mean, low, invstd);
    const int64_t c = plane % channels;
    const A scale = weight.get(c, A(1)) * invstd, shift = bias.get(c, A(0));
    UNROLL for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * threads;
      if (i < cut.packs) {
        UNROLL for (int e = 0; e < Pack<T>::kSize; ++e)
          p[u].v[e] = static_cast<T>(((static_cast<A>(p[u].v[e]) - mean) - low) * scale + shift);
        __stcs(vto + i, p[u].raw);
      }
    }
    for (int64_t e = chunk * threads + threadIdx.x; e < cut.edges; e += chunks * threads) {
      const int64_t at = cut.edge(e);
      to[at] = static_cast<T>(((static_cast<A>(from[at]) - mean) - low) * scale + shift);
    }
  }
}

// The only launch for small groups. A block reads its group twice: statistics, then output.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    small_groups(const T* __restrict__ x, T* __restrict__ y, PerChannel<T> weight,
                 PerChannel<T> bias, typename Accumulator<T>::type eps, int64_t all_groups,
                 int64_t groups, int64_t width, int plane_size, bool vectors) {
  using A = typename Accumulator<T>::type;
  constexpr int kSize = Pack<T>::kSize;
  __shared__ A shared[3];
  const int size = static_cast<int>(width) * plane_size;
  for (int64_t group = blockIdx.x; group < all_groups; group += gridDim.x) {
    const T* from = x + group * size;
    T* to = y + group * size;
    const Cut<T> cut(from, size, vectors);
    auto m = thread_moments(from, cut, threadIdx.x, cut.packs, threadIdx.x, blockDim.x);
    m = block_merge(m, threadIdx.x, blockDim.x);
    if (threadIdx.x == 0)
      shared[0] = m.mean, shared[1] = m.low, shared[2] = A(1) / sqrt(m.m2 / m.n + eps);
    __syncthreads();
    const A mean = shared[0], low = shared[1], invstd = shared[2];
    const int64_t channel = group % groups * width;  // the group's first
    const auto value = [&](T v, int at) {
      const int64_t c = channel + at / plane_size;
      return static_cast<T>(((static_cast<A>(v) - mean) - low) *
                                (weight.get(c, A(1)) * invstd) +
                            bias.get(c, A(0)));
    };
    for (int i = threadIdx.x; i < cut.packs; i += blockDim.x) {
      const int at = static_cast<int>(cut.head) + i * kSize;
      Pack<T> p;
      p.raw = *reinterpret_cast<const uint4*>(from + at);
      UNROLL for (int e = 0; e < kSize; ++e) p.v[e] = value(p.v[e], at + e);
      *reinterpret_cast<uint4*>(to + at) = p.raw;
    }
    for (int e = threadIdx.x; e < cut.edges; e += blockDim.x) {
      const int at = static_cast<int>(cut.edge(e));
      to[at] = value(from[at], at);
    }
    __syncthreads();  // `shared` may be written again for the block's next group
  }
}
"""

LAUNCH = r"""
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
unsigned grid_for(int64_t jobs) { return unsigned(std::min<int64_t>(jobs, 2147483647)); }
// The smallest power of two of at least `wanted` threads, within one warp and a full block.
int threads_for(int64_t wanted) {
  int threads = 32;
  while (threads < kMaxThreads && threads < wanted) threads *= 2;
  return threads;
}
using Ref = const at::Tensor&;

template <typename T>
void launch(Ref x, Ref y, Ref weight, Ref bias, int64_t groups, double eps) {
  using A = typename Accumulator<T>::type;
  constexpr int kSize = Pack<T>::kSize;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t samples = x.size(0), channels = x.size(1), width = channels / groups;
  const int64_t planes = samples * channels, plane_size = x.numel() / planes;
  const int64_t group_size = width * plane_size, all_groups = samples * groups;
  const PerChannel<T> w = per_channel<T>(weight), b = per_channel<T>(bias);
  const T* from = x.data_ptr<T>();
  T* to = y.data_ptr<T>();
  // A plane of x and of y is cut at the same places if both are aligned alike.
  const bool vectors =
      reinterpret_cast<uintptr_t>(from) % 16 == reinterpret_cast<uintptr_t>(to) % 16;
  if (group_size <= kSmallGroup) {
    const int threads = threads_for(ceil_div(group_size, kSize * kUnroll));
    small_groups<T><<<grid_for(all_groups), threads, 0, stream>>>(
        from, to, w, b, static_cast<A>(eps), all_groups, groups, width,
        static_cast<int>(plane_size), vectors);
  } else {
    const int64_t count = ceil_div(group_size, kPart);
    const at::Tensor partial = at::empty({4 * all_groups * count},
                                         x.options().dtype(c10::CppTypeToScalarType<A>::value));
    const Parts<A> parts{partial.data_ptr<A>(), all_groups, count};
    const int64_t part_packs = ceil_div(ceil_div(group_size, count), kSize);
    group_moments<T><<<grid_for(all_groups * count), kMomentThreads, 0, stream>>>(
        from, parts, group_size, part_packs);
    const int threads = threads_for(ceil_div(plane_size, kSize * kUnroll));
    const int64_t chunks = ceil_div(plane_size, int64_t{threads} * kUnroll * kSize);
    normalise_planes<T><<<grid_for(planes * chunks), threads, 0, stream>>>(
        from, to, w, b, parts, static_cast<A>(eps), planes, channels, width, plane_size, chunks,
        vectors);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// x (N, C, *); weight and bias (C,), of x's dtype or float32 beside 16-bit x.
at::Tensor group_norm(Ref x, int64_t groups, Ref weight, Ref bias, double eps) {
  TORCH_CHECK(x.dim() >= 2 && x.layout() == at::kStrided && !x.is_neg(),
              "groupnorm: expected a plain x of at least 2 dimensions, (N, C, *), got ", x.sizes());
  const bool half = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  for (const at::Tensor* t : {&weight, &bias}) {
    const auto dtype = t->scalar_type();
    TORCH_CHECK(t->device() == x.device(), "groupnorm: x is on ", x.device(), " and the state on ",
                t->device(), ". Move one.");
    TORCH_CHECK(t->numel() == x.size(1) && t->is_contiguous(), "groupnorm: x has ", x.size(1),
                " channels, the state has shape ", t->sizes(), ".");
    TORCH_CHECK(dtype == weight.scalar_type() &&
                    (dtype == x.scalar_type() || (half && dtype == at::kFloat)),
                "groupnorm: x is ", x.scalar_type(), ", the state ", dtype, ". Convert one.");
  }
  TORCH_CHECK_VALUE(x.numel() == 0 || x.numel() / groups > 1,
                    "Expected more than 1 value per channel when training, got input size ",
                    x.sizes());
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor in = x.contiguous(), out = at::empty_like(in);
  if (out.numel() == 0) return out;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "groupnorm", [&] {
    launch<scalar_t>(in, out, weight, bias, groups, eps);
  });
  return out;
}
"""


class ModelNew(nn.Module):
    """GroupNorm; forward only. ``gn`` holds the parameters and the settings."""

    def __init__(self, num_features: int, num_groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(num_groups=num_groups, num_channels=num_features, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (N, C, *), normalised per sample and group."""
        gn = self.gn
        if not x.is_cuda:  # off the GPU this is PyTorch's own operator
            return gn(x)
        args = (x, gn.num_groups, gn.weight, gn.bias, gn.eps)
        if torch.is_grad_enabled() and (
            x.requires_grad or gn.weight.requires_grad or gn.bias.requires_grad
        ):
            return _ForwardOnly.apply(*args)
        return extension.group_norm(*args)


class _ForwardOnly(torch.autograd.Function):
    """Keeps the output attached to the graph, so that a backward pass fails with an error."""

    @staticmethod
    def forward(ctx, *args):
        return extension.group_norm(*args)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("groupnorm is forward only: it has no backward kernel.")


# The compiler reads this part first.
HELPERS = r"""
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define UNROLL _Pragma("unroll")
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
// >>> shared: chan
// Count, mean and sum of squared deviations. The mean is mean + low, two numbers that do not
// overlap: with values around 1e5 a float's mean alone is off by 0.004, and so is every output.
template <typename A>
struct Moments {
  A n, mean, low, m2;
};

// Chan's formula.
template <typename A>
__device__ __forceinline__ Moments<A> merge(const Moments<A>& p, const Moments<A>& q) {
  if (q.n == A(0)) return p;
  if (p.n == A(0)) return q;
  const A n = p.n + q.n, share = q.n / n;
  const A delta = (q.mean - p.mean) + (q.low - p.low), low = p.low + delta * share;
  const A mean = p.mean + low;
  return {n, mean, low - (mean - p.mean), p.m2 + q.m2 + delta * delta * p.n * share};
}
// <<< shared: chan
// >>> shared: moments
// Merge K values: their own moments in two passes first, so one division serves K values. They are
// taken relative to the first, which costs nothing and keeps all digits of close values.
template <int K, typename A>
__device__ __forceinline__ void add(Moments<A>& m, const A* v) {
  A sum = 0, m2 = 0;
#pragma unroll
  for (int k = 1; k < K; ++k) sum += v[k] - v[0];
  const A low = sum * (A(1) / K), mean = v[0] + low;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const A d = (v[k] - v[0]) - low;
    m2 += d * d;
  }
  m = merge(m, Moments<A>{A(K), mean, low - (mean - v[0]), m2});
}

// From a lane `step` further on.
template <typename A>
__device__ __forceinline__ Moments<A> shuffle_down(const Moments<A>& m, int step) {
  return {__shfl_down_sync(0xffffffffu, m.n, step), __shfl_down_sync(0xffffffffu, m.mean, step),
          __shfl_down_sync(0xffffffffu, m.low, step), __shfl_down_sync(0xffffffffu, m.m2, step)};
}

// Merge the moments of all threads of the block; the result is in thread 0. Every thread must
// arrive, and blockDim is a multiple of a warp.
template <typename A>
__device__ __forceinline__ Moments<A> block_merge(Moments<A> m, int thread, int threads) {
  __shared__ A n[32], mean[32], low[32], m2[32];
  for (int step = 16; step > 0; step /= 2) m = merge(m, shuffle_down(m, step));
  const int warp = thread / 32;
  if (thread % 32 == 0) n[warp] = m.n, mean[warp] = m.mean, low[warp] = m.low, m2[warp] = m.m2;
  __syncthreads();
  if (thread == 0) {
    for (int w = 1; w < threads / 32; ++w) m = merge(m, {n[w], mean[w], low[w], m2[w]});
  }
  __syncthreads();  // the arrays may be written again by the block's next item
  return m;
}
// <<< shared: moments
"""

extension = load_inline(
    name="groupnorm_solution",
    cpp_sources="""using Ref = const at::Tensor&;
        at::Tensor group_norm(Ref x, int64_t groups, Ref weight, Ref bias, double eps);""",
    cuda_sources=[HELPERS, KERNELS, LAUNCH],
    functions=["group_norm"],
    extra_cuda_cflags=["-O3"],
)
