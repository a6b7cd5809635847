"""BatchNorm2d in training: statistics, normalisation and running statistics in one launch.

    mean, var  over n, h, w of one channel      var biased in y, unbiased in running_var
    y            = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]
    running      = (1 - m) * running + m * batch     m = momentum, or 1 / batches seen for None

Idea     x must be read twice: once for the statistics and once to normalise. A cooperative grid, as
         many blocks as fit on the device at once, does both in one launch. After the first pass it
         waits at a barrier of the whole grid, and then walks back, in reverse order: what was read
         last may still be in L2.
Layout   NCHW: a plane is one (n, c), H * W elements in a row. Any other layout, channels_last
         included, is first copied to NCHW.
Bytes    two reads and one write per element, less what L2 serves in the second pass.
Bound    bandwidth: (64, 64, 512, 512) float32 moves 12 GiB, 8 GiB if x were kept on chip, as
         hopper.py does with most of it.

No E[x^2] - E[x]^2: with a mean of 1e4 that loses every digit of the variance. A thread takes the
moments of a few values in registers in two passes and merges them into its own by Chan's formula
(T. Chan, G. Golub, R. LeVeque 1979). The same formula merges lanes, warps and blocks.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

KERNEL = r"""
constexpr int kThreads = 512;
constexpr int kBlocksPerSm = 2;
constexpr int kUnroll = 4;  // 16-byte loads in flight per thread
// Elements per item of the first pass: enough to hide the block's reduction at its end.
constexpr int64_t kItem = 131072;
// Planes below this size share an item.
constexpr int64_t kSmallItem = 4096;

// An item is a chunk of a plane, or `group` small planes of one channel. Items are numbered in the
// order of memory: item = (group of samples, channel, chunk of the plane).
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) batch_norm_planes(Problem<T> p) {
  using A = typename Accumulator<T>::type;
  constexpr int kSize = Pack<T>::kSize;
  const int threads = blockDim.x, across = p.across;
  const int tx = threadIdx.x % across, ty = threadIdx.x / across, tall = threads / across;

  if (p.training) {
    for (int64_t item = blockIdx.x; item < p.items; item += gridDim.x) {
      const int64_t chunk = item % p.chunks, rest = item / p.chunks;
      const int64_t c = rest % p.channels, group = rest / p.channels;
      const int64_t last = std::min<int64_t>(p.samples, (group + 1) * p.group);
      Moments<A> m{0, 0, 0, 0};
      for (int64_t n = group * p.group + ty; n < last; n += tall) {
        const T* from = p.x + (n * p.channels + c) * p.plane_size;
        const Cut<T> cut(from, p.plane_size, p.vectors);
        const uint4* vfrom = reinterpret_cast<const uint4*>(from + cut.head);
        const int64_t end = std::min<int64_t>(cut.packs, (chunk + 1) * p.chunk_packs);
        int64_t i = chunk * p.chunk_packs + tx;
        for (; i + (kUnroll - 1) * across < end; i += kUnroll * across) {
          Pack<T> pack[kUnroll];
          A v[kUnroll * kSize];
#pragma unroll
          for (int u = 0; u < kUnroll; ++u) pack[u].raw = vfrom[i + u * across];
#pragma unroll
          for (int k = 0; k < kUnroll * kSize; ++k) {
            v[k] = static_cast<A>(pack[k / kSize].v[k % kSize]);
          }
          add<kUnroll * kSize>(m, v);
        }
        for (; i < end; i += across) {
          Pack<T> pack;
          A v[kSize];
          pack.raw = vfrom[i];
#pragma unroll
          for (int k = 0; k < kSize; ++k) v[k] = static_cast<A>(pack.v[k]);
          add<kSize>(m, v);
        }
        for (int64_t e = chunk * across + tx; e < cut.edges; e += p.chunks * across) {
          const A v = static_cast<A>(from[cut.edge(e)]);
          add<1>(m, &v);
        }
      }
      m = block_merge(m, threadIdx.x, threads);
      if (threadIdx.x == 0) leave(p, c, group * p.chunks + chunk, m);
    }
    const auto grid = cooperative_groups::this_grid();
    grid.sync();
    finish_channels(p, threadIdx.x, threads);
    grid.sync();
    if (blockIdx.x == 0 && threadIdx.x == 0) ++*p.batches;
  }

  // The same items per block, last first.
  const int64_t mine = (p.items - blockIdx.x + gridDim.x - 1) / gridDim.x;
  for (int64_t k = mine - 1; k >= 0; --k) {
    const int64_t item = blockIdx.x + k * gridDim.x;
    const int64_t chunk = item % p.chunks, rest = item / p.chunks;
    const int64_t c = rest % p.channels, group = rest / p.channels;
    const int64_t last = std::min<int64_t>(p.samples, (group + 1) * p.group);
    const Affine<T> affine(p, c);
    for (int64_t n = group * p.group + ty; n < last; n += tall) {
      const T* from = p.x + (n * p.channels + c) * p.plane_size;
      T* to = p.y + (n * p.channels + c) * p.plane_size;
      const Cut<T> cut(from, p.plane_size, p.vectors);
      const uint4* vfrom = reinterpret_cast<const uint4*>(from + cut.head);
      uint4* vto = reinterpret_cast<uint4*>(to + cut.head);
      const int64_t begin = chunk * p.chunk_packs + tx;
      const int64_t end = std::min<int64_t>(cut.packs, (chunk + 1) * p.chunk_packs);
      for (int64_t first = begin; first < end; first += kUnroll * across) {
        Pack<T> pack[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int64_t i = first + u * across;
          if (i < end) pack[u].raw = vfrom[i];
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int64_t i = first + u * across;
          if (i < end) {
#pragma unroll
            for (int e = 0; e < kSize; ++e) pack[u].v[e] = affine(pack[u].v[e]);
            __stcs(vto + i, pack[u].raw);
          }
        }
      }
      for (int64_t e = chunk * across + tx; e < cut.edges; e += p.chunks * across) {
        to[cut.edge(e)] = affine(from[cut.edge(e)]);
      }
    }
  }
}
"""

LAUNCH = r"""
// momentum < 0 stands for None. In training running_mean, running_var and batches are updated.
at::Tensor batch_norm(const at::Tensor& x_, const at::Tensor& weight, const at::Tensor& bias,
                      const at::Tensor& running_mean, const at::Tensor& running_var,
                      const at::Tensor& batches, double eps, double momentum, bool training) {
  check(x_, {&weight, &bias, &running_mean, &running_var});
  TORCH_CHECK_VALUE(!training || (x_.size(1) > 0 && x_.numel() / x_.size(1) > 1),
                    "Expected more than 1 value per channel when training, got input size ",
                    x_.sizes());
  TORCH_CHECK(batches.device() == x_.device() && batches.scalar_type() == at::kLong &&
                  batches.numel() == 1,
              "batchnorm2d_training: num_batches_tracked must be one int64 beside x.");
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous(), y = at::empty_like(x);
  if (y.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(),
                                  "batchnorm2d_training", [&] {
    using A = typename Accumulator<scalar_t>::type;
    constexpr int kSize = Pack<scalar_t>::kSize;
    const auto of = per_channel<scalar_t>;
    Problem<scalar_t> p{x.data_ptr<scalar_t>(), y.data_ptr<scalar_t>(), of(weight), of(bias),
                        of(running_mean), of(running_var), batches.data_ptr<int64_t>(), eps,
                        momentum, training};
    p.samples = x.size(0);
    p.channels = x.size(1);
    p.plane_size = x.size(2) * x.size(3);
    // Equal alignment of x and y makes the cut of a plane hold for both.
    p.vectors = reinterpret_cast<uintptr_t>(p.x) % 16 == reinterpret_cast<uintptr_t>(p.y) % 16;
    p.chunks = ceil_div(p.plane_size, kItem);
    p.chunk_packs = ceil_div(ceil_div(p.plane_size, p.chunks), kSize);
    p.group = std::min(p.samples, std::max<int64_t>(1, kSmallItem / p.plane_size));
    const int threads = threads_for(ceil_div(p.group * p.plane_size, kSize * kUnroll), kThreads);
    p.across = std::min(threads, threads_for(ceil_div(p.plane_size, kSize), kThreads));
    p.parts = ceil_div(p.samples, p.group) * p.chunks;
    p.items = p.parts * p.channels;
    at::Tensor workspace;
    if (training) {
      workspace = at::empty({(4 * p.parts + 3) * p.channels},
                            x.options().dtype(c10::CppTypeToScalarType<A>::value));
      p.statistics = workspace.data_ptr<A>();
      p.partial = p.statistics + 3 * p.channels;
    }
    // A cooperative launch: no more blocks than fit on the device together.
    const auto kernel = batch_norm_planes<scalar_t>;
    int processors = 0, per_processor = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount,
                                          x.device().index()));
    C10_CUDA_CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, 0));
    const auto blocks = std::min<int64_t>(p.items, int64_t{processors} * per_processor);
    void* arguments[] = {&p};
    C10_CUDA_CHECK(cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                                               dim3(threads), arguments, 0,
                                               c10::cuda::getCurrentCUDAStream().stream()));
  });
  if (training) {
    // Written behind autograd's back: say so, as an in-place operator would.
    for (const at::Tensor* t : {&running_mean, &running_var, &batches}) {
      if (!t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
    }
  }
  return y;
}
"""


class ModelNew(nn.Module):
    """BatchNorm2d with batch statistics in training mode, running ones after ``.eval()``.

    Forward only. ``bn`` holds the parameters, the buffers and the settings.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features, eps=eps, momentum=momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (N, C, H, W), normalised per channel."""
        bn = self.bn
        if not x.is_cuda:
            return bn(x)  # off the GPU this is PyTorch's own
        args = (x, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.num_batches_tracked)
        args += (bn.eps, -1.0 if bn.momentum is None else bn.momentum, self.training)
        if torch.is_grad_enabled() and (
            x.requires_grad or bn.weight.requires_grad or bn.bias.requires_grad
        ):
            return _ForwardOnly.apply(*args)
        return extension.batch_norm(*args)


class _ForwardOnly(torch.autograd.Function):
    """Keeps the output attached to the graph, so that a backward pass fails with an error."""

    @staticmethod
    def forward(ctx, *args):
        return extension.batch_norm(*args)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("batchnorm2d_training is forward only: it has no backward kernel.")


# The compiler reads this part first.
HELPERS = r"""
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cooperative_groups.h>

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

// >>> shared: batch_norm_check
// Refuses what the kernels cannot take. x is (N, C, H, W); the state is (C,), of x's dtype or
// float32 beside 16-bit x.
void check(const at::Tensor& x, std::initializer_list<const at::Tensor*> state) {
  const char* const who = "batchnorm2d_training: ";
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

// Everything a launch needs, passed by value.
template <typename T>
struct Problem {
  using A = typename Accumulator<T>::type;
  const T* x;
  T* y;
  PerChannel<T> weight, bias, running_mean, running_var;
  int64_t* batches;
  double eps, momentum;  // momentum < 0: cumulative average
  bool training, vectors;
  int64_t samples, channels, plane_size;
  A* partial;     // [4][channels * parts]: n, mean, low, M2 of each item
  A* statistics;  // [3][channels]: mean, low, 1 / sqrt(var + eps)
  // An item is `group` planes, or the share `chunk_packs` of one of them.
  int64_t items, parts, group, chunks, chunk_packs;
  int across;  // threads side by side in a plane; the others take the next planes of the group
};

template <typename T>
__device__ __forceinline__ void leave(const Problem<T>& p, int64_t c, int64_t part,
                                      const Moments<typename Accumulator<T>::type>& m) {
  const int64_t at = c * p.parts + part, all = p.parts * p.channels;
  p.partial[at] = m.n;
  p.partial[all + at] = m.mean;
  p.partial[2 * all + at] = m.low;
  p.partial[3 * all + at] = m.m2;
}

template <typename T>
__device__ __forceinline__ void store(const PerChannel<T>& to, int64_t c, double value) {
  using A = typename Accumulator<T>::type;
  void* data = const_cast<void*>(to.data);
  if (to.wide) {
    static_cast<A*>(data)[c] = static_cast<A>(value);
  } else {
    static_cast<T*>(data)[c] = static_cast<T>(static_cast<A>(value));
  }
}

// Between the barriers: one block per channel merges its items, in double, and updates the running
// statistics. The counter is read here by many blocks and written only after the next barrier.
template <typename T>
__device__ void finish_channels(const Problem<T>& p, int thread, int threads) {
  using A = typename Accumulator<T>::type;
  const int64_t all = p.parts * p.channels;
  for (int64_t c = blockIdx.x; c < p.channels; c += gridDim.x) {
    Moments<double> m{0, 0, 0, 0};
    for (int64_t part = thread; part < p.parts; part += threads) {
      const int64_t at = c * p.parts + part;
      const double mean = static_cast<double>(p.partial[all + at]) + p.partial[2 * all + at];
      m = merge(m, Moments<double>{p.partial[at], mean, 0, p.partial[3 * all + at]});
    }
    m = block_merge(m, thread, threads);
    if (thread == 0) {
      const double count = static_cast<double>(p.samples * p.plane_size);
      const A high = static_cast<A>(m.mean);
      p.statistics[c] = high;
      p.statistics[p.channels + c] = static_cast<A>((m.mean - high) + m.low);
      p.statistics[2 * p.channels + c] = static_cast<A>(1.0 / sqrt(m.m2 / count + p.eps));
      const double factor =
          p.momentum < 0 ? 1.0 / static_cast<double>(*p.batches + 1) : p.momentum;
      const double mean = static_cast<double>(p.running_mean.get(c, A(0)));
      const double var = static_cast<double>(p.running_var.get(c, A(1)));
      store(p.running_mean, c, mean + factor * (m.mean - mean));
      store(p.running_var, c, var + factor * (m.m2 / (count - 1) - var));
    }
  }
}

// (x - mean - low) * scale + bias for one channel.
template <typename T>
struct Affine {
  using A = typename Accumulator<T>::type;
  A mean, low, scale, bias;

  __device__ __forceinline__ Affine(const Problem<T>& p, int64_t c) {
    A invstd;
    if (p.training) {
      mean = p.statistics[c];
      low = p.statistics[p.channels + c];
      invstd = p.statistics[2 * p.channels + c];
    } else {
      mean = p.running_mean.get(c, A(0));
      low = 0;
      invstd = A(1) / sqrt(p.running_var.get(c, A(1)) + static_cast<A>(p.eps));
    }
    scale = p.weight.get(c, A(1)) * invstd;
    bias = p.bias.get(c, A(0));
  }
  __device__ __forceinline__ T operator()(T x) const {
    return static_cast<T>(((static_cast<A>(x) - mean) - low) * scale + bias);
  }
};
"""

DECLARATION = """
at::Tensor batch_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      const at::Tensor& running_mean, const at::Tensor& running_var,
                      const at::Tensor& batches, double eps, double momentum, bool training);
"""

extension = load_inline(
    name="batchnorm2d_training_solution",
    cpp_sources=[DECLARATION],
    cuda_sources=[HELPERS, KERNEL, LAUNCH],
    functions=["batch_norm"],
    extra_cuda_cflags=["-O3"],
)
