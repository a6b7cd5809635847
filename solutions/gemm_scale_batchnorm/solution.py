"""Linear, times a learned scale, then BatchNorm1d, on the ordinary float units.

    z = (x @ W^T + bias) * scale                               x (M, K), W (N, K), z (M, N)
    y = (z - mean[n]) / sqrt(var[n] + eps) * weight[n] + shift[n]

Idea     A matrix product whose tiles are finished in registers. Evaluation: one launch; `gemm`
         applies bias, scale and BatchNorm to its accumulators. Training: `gemm` writes z and the
         moments of its tile's columns, `finish_columns` merges them by Chan's formula and updates
         the running statistics, and `normalise` makes y of z.
Mapping  A block of 256 threads makes a tile of 128 x 128; a thread makes 8 x 8 of it, as four 4 x 4
         pieces 64 apart. So its reads of shared memory are 16 bytes wide and free of bank
         conflicts, and 4 reads (64 bytes) feed 64 multiply-adds. x and W are both row-major along
         K; their slices are stored transposed in shared memory. The next slice is loaded into
         registers while this one is multiplied: two buffers, one barrier per slice.
Bound    Arithmetic. 16384 x 4096 x 4096 is 5.5e11 flops; the float units of an H200 did
         50.7 TFLOP/s in cuBLAS: 10.8 ms.

It runs on any GPU from compute capability 7.5; hopper.py beside this file uses the tensor cores.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

KERNELS = r"""
constexpr int kThreads = 256;
constexpr int kTile = 128;    // rows and columns of the tile of a block
constexpr int kStride = 132;  // of a slice in shared memory: a multiple of 16 bytes, off the banks

// Everything a launch needs.
template <typename T>
struct Problem {
  using A = typename Accumulator<T>::type;
  const T *x, *w;
  PerChannel<T> bias, scale, weight, shift, running_mean, running_var;
  int64_t scale_step;  // 0 where one scale serves all columns
  T* y;
  A* z;           // training: y itself, or a wider workspace for 16-bit y
  A* partial;     // training: [3][tile rows][n], mean, low and M2 of every tile's columns
  A* statistics;  // training: [3][n], mean, low and 1 / sqrt(var + eps)
  void *new_mean, *new_var;
  int64_t* batches;
  int64_t m, n, k, tile_rows, tile_columns;
  double eps, momentum;
  bool training, vectors;
};

// The share of one thread in a slice: kDepth columns of kTile rows of x or W, zeros outside.
template <typename T, int kDepth>
struct Slice {
  using A = typename Accumulator<T>::type;
  static constexpr int kAcross = kDepth / 4;  // fours per row of the slice
  static constexpr int kRowStep = kThreads / kAcross, kFours = kTile / kRowStep;
  const T* at[kFours];  // null for rows outside
  A v[kFours][4];

  __device__ __forceinline__ static int row() { return threadIdx.x / kAcross; }
  __device__ __forceinline__ static int column() { return threadIdx.x % kAcross * 4; }
  __device__ __forceinline__ Slice(const T* from, int64_t row0, int64_t rows, int64_t k) {
    UNROLL for (int i = 0; i < kFours; ++i) {
      const int64_t r = row0 + row() + i * kRowStep;
      at[i] = r < rows ? from + r * k + column() : nullptr;
    }
  }
  // Loads and moves on. left: how many columns of the matrix there are from this thread's on.
  __device__ __forceinline__ void load(int left, bool vectors) {
    UNROLL for (int i = 0; i < kFours; ++i) {
      if (vectors && at[i] != nullptr && left > 0) {
        const Four<T> f = *reinterpret_cast<const Four<T>*>(at[i]);
        UNROLL for (int e = 0; e < 4; ++e) v[i][e] = static_cast<A>(f.v[e]);
      } else {
        UNROLL for (int e = 0; e < 4; ++e)
          v[i][e] = at[i] != nullptr && e < left ? static_cast<A>(at[i][e]) : A(0);
      }
      if (at[i] != nullptr) at[i] += kDepth;
    }
  }
  // Transposed: to[column][row].
  __device__ __forceinline__ void store(A* to) const {
    UNROLL for (int i = 0; i < kFours; ++i)
      UNROLL for (int e = 0; e < 4; ++e)
        to[(column() + e) * kStride + row() + i * kRowStep] = v[i][e];
  }
};

// The rows or columns of a thread: i in 0..7 is 0..3 and 64..67, from 4 * t on.
__device__ __forceinline__ int spread(int t, int i) { return (i / 4) * 64 + t * 4 + i % 4; }

// One block per SM: with room for two, 128 registers, it spills and loses 2 % (H200, 2026-11-21).
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) gemm(Problem<T> p) {
  using A = typename Accumulator<T>::type;
  constexpr int kDepth = 64 / sizeof(A);  // slice along K: 16 in float, 8 in double
  constexpr int kBuffer = kDepth * kStride;
  // Two slices of x and two of W, 33 KiB; afterwards three numbers per thread and column.
  constexpr int kStorage = 4 * kBuffer > 48 * kTile ? 4 * kBuffer : 48 * kTile;
  __shared__ float4 storage[kStorage * sizeof(A) / 16];
  A* shared = reinterpret_cast<A*>(storage);
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t tile = blockIdx.x;
  const int64_t row0 = tile / p.tile_columns * kTile, column0 = tile % p.tile_columns * kTile;

  A acc[8][8] = {};
  Slice<T, kDepth> xs(p.x, row0, p.m, p.k), ws(p.w, column0, p.n, p.k);
  int left = static_cast<int>(p.k) - xs.column(), current = 0;
  xs.load(left, p.vectors), ws.load(left, p.vectors);
  for (int rest = static_cast<int>(p.k); rest > 0; rest -= kDepth) {
    A *a = shared + current * 2 * kBuffer, *b = a + kBuffer;
    xs.store(a), ws.store(b);
    // One barrier per slice: the other buffer was last read before the previous barrier's end,
    // and is written only after this one.
    __syncthreads();
    if (rest > kDepth) {
      left -= kDepth;
      xs.load(left, p.vectors), ws.load(left, p.vectors);
    }
    UNROLL for (int k = 0; k < kDepth; ++k) {
      A ra[8], rb[8];
      read_four(a + k * kStride + ty * 4, ra), read_four(a + k * kStride + 64 + ty * 4, ra + 4);
      read_four(b + k * kStride + tx * 4, rb), read_four(b + k * kStride + 64 + tx * 4, rb + 4);
      UNROLL for (int i = 0; i < 8; ++i)
        UNROLL for (int j = 0; j < 8; ++j) acc[i][j] += ra[i] * rb[j];
    }
    current ^= 1;
  }
  // Bias, scale and, in evaluation, BatchNorm.
  UNROLL for (int j = 0; j < 8; ++j) {
    const int64_t column = column0 + spread(tx, j);
    if (column >= p.n) continue;
    const A bias = p.bias.get(column, A(0)), scale = p.scale.get(column * p.scale_step, A(1));
    UNROLL for (int i = 0; i < 8; ++i) acc[i][j] = (acc[i][j] + bias) * scale;
    if (!p.training) {
      const A mean = p.running_mean.get(column, A(0)), shift = p.shift.get(column, A(0));
      const A var = p.running_var.get(column, A(1));
      const A factor = p.weight.get(column, A(1)) / sqrt(var + static_cast<A>(p.eps));
      UNROLL for (int i = 0; i < 8; ++i) acc[i][j] = (acc[i][j] - mean) * factor + shift;
    }
  }
  UNROLL for (int i = 0; i < 8; ++i) {
    const int64_t row = row0 + spread(ty, i);
    if (row >= p.m) continue;
    UNROLL for (int half = 0; half < 2; ++half) {
      const int64_t column = column0 + half * 64 + tx * 4, at = row * p.n + column;
      const A* const v = &acc[i][half * 4];
      if (p.training) {
        UNROLL for (int e = 0; e < 4; ++e)
          if (column + e < p.n) p.z[at + e] = v[e];
      } else if (p.n % 4 == 0) {
        if (column < p.n) {
          Four<T> f;
          UNROLL for (int e = 0; e < 4; ++e) f.v[e] = static_cast<T>(v[e]);
          *reinterpret_cast<Four<T>*>(p.y + at) = f;
        }
      } else {
        UNROLL for (int e = 0; e < 4; ++e)
          if (column + e < p.n) p.y[at + e] = static_cast<T>(v[e]);
      }
    }
  }
  if (!p.training) return;

  // Moments of the tile's columns: of a thread's rows in two passes, then of the 16 threads of a
  // column through shared memory, which the product no longer needs.
  __syncthreads();
  A *means = shared, *lows = shared + 16 * kTile, *m2s = shared + 32 * kTile;
  int valid = 0;
  UNROLL for (int i = 0; i < 8; ++i) valid += row0 + spread(ty, i) < p.m ? 1 : 0;
  UNROLL for (int j = 0; j < 8; ++j) {
    A sum = 0, m2 = 0;
    UNROLL for (int i = 1; i < 8; ++i)
      sum += row0 + spread(ty, i) < p.m ? acc[i][j] - acc[0][j] : A(0);
    const A low = valid > 0 ? sum / A(valid) : A(0), mean = acc[0][j] + low;
    UNROLL for (int i = 0; i < 8; ++i) {
      const A d = row0 + spread(ty, i) < p.m ? (acc[i][j] - acc[0][j]) - low : A(0);
      m2 += d * d;
    }
    const int at = ty * kTile + spread(tx, j);
    means[at] = mean, lows[at] = low - (mean - acc[0][j]), m2s[at] = m2;
  }
  __syncthreads();
  const int64_t column = column0 + threadIdx.x;
  if (threadIdx.x < kTile && column < p.n) {
    Moments<A> m{0, 0, 0, 0};
    for (int y = 0; y < 16; ++y) {
      int rows = 0;
      for (int i = 0; i < 8; ++i) rows += row0 + spread(y, i) < p.m ? 1 : 0;
      const int at = y * kTile + threadIdx.x;
      m = merge(m, Moments<A>{A(rows), means[at], lows[at], m2s[at]});
    }
    const int64_t at = tile / p.tile_columns * p.n + column;
    p.partial[at] = m.mean, p.partial[p.tile_rows * p.n + at] = m.low;
    p.partial[2 * p.tile_rows * p.n + at] = m.m2;
  }
}

// Second launch, blockDim = (32 columns, 8): a thread merges every eighth tile of its column.
template <typename T>
__global__ void __launch_bounds__(kThreads) finish_columns(Problem<T> p) {
  using A = typename Accumulator<T>::type;
  __shared__ double n[8][32], mean[8][32], m2[8][32];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * 32 + tx;
  Moments<double> m{0, 0, 0, 0};
  if (c < p.n) {
    for (int64_t tile = ty; tile < p.tile_rows; tile += 8) {
      const int64_t rows = std::min<int64_t>(kTile, p.m - tile * kTile);
      const int64_t at = tile * p.n + c, all = p.tile_rows * p.n;
      const double mean = static_cast<double>(p.partial[at]) + p.partial[all + at];
      m = merge(m, Moments<double>{static_cast<double>(rows), mean, 0, p.partial[2 * all + at]});
    }
  }
  n[ty][tx] = m.n, mean[ty][tx] = m.mean, m2[ty][tx] = m.m2;
  __syncthreads();
  if (ty != 0 || c >= p.n) return;
  for (int y = 1; y < 8; ++y) m = merge(m, Moments<double>{n[y][tx], mean[y][tx], 0, m2[y][tx]});
  const double count = static_cast<double>(p.m);
  const A high = static_cast<A>(m.mean);
  p.statistics[c] = high, p.statistics[p.n + c] = static_cast<A>((m.mean - high) + m.low);
  p.statistics[2 * p.n + c] = static_cast<A>(1.0 / sqrt(m.m2 / count + p.eps));
  const double factor = p.momentum < 0 ? 1.0 / static_cast<double>(*p.batches + 1) : p.momentum;
  const double old_mean = p.running_mean.get(c, A(0)), old_var = p.running_var.get(c, A(1));
  put<T>(p.new_mean, p.running_mean.wide, c, old_mean + factor * (m.mean - old_mean));
  put<T>(p.new_var, p.running_var.wide, c, old_var + factor * (m.m2 / (count - 1) - old_var));
}

// Third launch, blockDim = (32 columns, 8): a thread keeps the coefficients of one column and walks
// down kRows rows. z and y may be the same memory. The batch counter is written here because many
// blocks of finish_columns read it.
constexpr int kRows = 16;
template <typename T>
__global__ void __launch_bounds__(kThreads) normalise(Problem<T> p, int64_t tiles) {
  using A = typename Accumulator<T>::type;
  if (blockIdx.x == 0 && threadIdx.x == 0 && threadIdx.y == 0) ++*p.batches;
  const int64_t band = blockIdx.x / tiles, c = blockIdx.x % tiles * 32 + threadIdx.x;
  if (c >= p.n) return;
  const A mean = p.statistics[c], low = p.statistics[p.n + c], shift = p.shift.get(c, A(0));
  const A factor = p.weight.get(c, A(1)) * p.statistics[2 * p.n + c];
  const int64_t first = band * 8 * kRows + threadIdx.y;
  A v[kRows];
  UNROLL for (int i = 0; i < kRows; ++i) {
    const int64_t row = first + i * 8;
    if (row < p.m) v[i] = p.z[row * p.n + c];
  }
  UNROLL for (int i = 0; i < kRows; ++i) {
    const int64_t row = first + i * 8;
    if (row < p.m) p.y[row * p.n + c] = static_cast<T>(((v[i] - mean) - low) * factor + shift);
  }
}
"""

LAUNCH = r"""
// Shapes as in the head of this file; scale has N elements or one. momentum < 0 stands for None.
// Updates mean, var and batches when training.
at::Tensor gemm_scale_batchnorm(Ref x, Ref w, Ref bias, Ref scale, Ref weight, Ref shift, Ref mean,
                                Ref var, Ref batches, double eps, double momentum, bool training) {
  check(x, {&w, &bias, &scale, &weight, &shift, &mean, &var}, batches);
  TORCH_CHECK_VALUE(!training || x.size(0) > 1,
                    "Expected more than 1 value per channel when training, got input size ",
                    x.sizes());
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor in = x.contiguous(), y = at::empty({x.size(0), w.size(0)}, x.options());
  if (y.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "gemm", [&] {
    using A = typename Accumulator<scalar_t>::type;
    const auto column = [](const at::Tensor& t) { return per_channel<scalar_t>(t); };
    Problem<scalar_t> p{};
    p.x = in.data_ptr<scalar_t>(), p.w = w.data_ptr<scalar_t>(), p.y = y.data_ptr<scalar_t>();
    p.bias = column(bias), p.scale = column(scale), p.scale_step = scale.numel() == 1 ? 0 : 1;
    p.weight = column(weight), p.shift = column(shift);
    p.running_mean = column(mean), p.new_mean = mean.data_ptr();
    p.running_var = column(var), p.new_var = var.data_ptr();
    p.batches = batches.data_ptr<int64_t>();
    p.m = x.size(0), p.k = x.size(1), p.n = w.size(0);
    p.tile_rows = ceil_div(p.m, kTile), p.tile_columns = ceil_div(p.n, kTile);
    p.eps = eps, p.momentum = momentum, p.training = training;
    p.vectors = p.k % 4 == 0 && aligned(p.x) && aligned(p.w);
    at::Tensor workspace, wide;
    if (training) {
      const auto options = x.options().dtype(c10::CppTypeToScalarType<A>::value);
      workspace = at::empty({(3 * p.tile_rows + 3) * p.n}, options);
      p.statistics = workspace.data_ptr<A>(), p.partial = p.statistics + 3 * p.n;
      if (sizeof(A) != sizeof(scalar_t)) wide = at::empty({p.m, p.n}, options);
      p.z = wide.defined() ? wide.data_ptr<A>() : reinterpret_cast<A*>(p.y);
    }
    gemm<scalar_t><<<grid_for(p.tile_rows * p.tile_columns), kThreads, 0, stream>>>(p);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    if (!training) return;
    const int64_t strips = ceil_div(p.n, 32), jobs = strips * ceil_div(p.m, 8 * kRows);
    finish_columns<scalar_t><<<grid_for(strips), dim3(32, 8), 0, stream>>>(p);
    normalise<scalar_t><<<grid_for(jobs), dim3(32, 8), 0, stream>>>(p, strips);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  if (!training) return y;
  // Written behind autograd's back: say so, as an in-place operator would.
  for (const at::Tensor* t : {&mean, &var, &batches})
    if (!t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
  return y;
}
"""


class ModelNew(nn.Module):
    """``BatchNorm1d(Linear(x) * scale)``; ``scale`` has one element or one per column."""

    def __init__(
        self, in_features: int, out_features: int, scale_shape, eps=1e-5, momentum=0.1
    ) -> None:
        super().__init__()
        self.gemm = nn.Linear(in_features, out_features)
        self.scale = nn.Parameter(torch.randn(scale_shape))
        self.bn = nn.BatchNorm1d(out_features, eps=eps, momentum=momentum)
        shape = tuple(self.scale.shape)
        if self.scale.numel() != 1 and (self.scale.numel(), shape[-1]) != (out_features,) * 2:
            raise ValueError(f"scale_shape {shape} must be ({out_features},) or one element")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, out_features) from x, (batch, in_features)."""
        gemm, bn = self.gemm, self.bn
        if not x.is_cuda:  # off the GPU these are PyTorch's own operators
            return bn(gemm(x) * self.scale)
        parameters = (gemm.weight, gemm.bias, self.scale, bn.weight, bn.bias)
        buffers = (bn.running_mean, bn.running_var, bn.num_batches_tracked)
        momentum = -1.0 if bn.momentum is None else bn.momentum
        args = (x, *parameters, *buffers, bn.eps, momentum, self.training)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
            return _ForwardOnly.apply(*args)
        return extension.gemm_scale_batchnorm(*args)


class _ForwardOnly(torch.autograd.Function):
    """Keeps the output attached to the graph, so that a backward pass fails with an error."""

    @staticmethod
    def forward(ctx, *args):
        return extension.gemm_scale_batchnorm(*args)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("gemm_scale_batchnorm is forward only: it has no backward kernel.")


# The compiler reads this part first.
HELPERS = r"""
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <array>
#define UNROLL _Pragma("unroll")

template <typename T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };

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

// Four neighbouring elements, for one wide access.
template <typename T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four { T v[4]; };

template <typename A>
__device__ __forceinline__ void read_four(const A* from, A* to) {
  const Four<A> f = *reinterpret_cast<const Four<A>*>(from);
  UNROLL for (int e = 0; e < 4; ++e) to[e] = f.v[e];
}

template <typename T>
__device__ __forceinline__ void put(void* to, bool wide, int64_t c, double value) {
  using A = typename Accumulator<T>::type;
  if (wide) static_cast<A*>(to)[c] = static_cast<A>(value);
  else static_cast<T*>(to)[c] = static_cast<T>(static_cast<A>(value));
}

using Ref = const at::Tensor&;
bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
#define WHO "gemm_scale_batchnorm: "
unsigned grid_for(int64_t jobs) {
  TORCH_CHECK(jobs <= 2147483647, WHO "more blocks than a grid can have.");
  return static_cast<unsigned>(jobs);
}
// `state`: W, bias and scale of x's dtype; BatchNorm's four, which may be float32 beside 16-bit x.
void check(Ref x, const std::array<const at::Tensor*, 7>& state, Ref batches) {
  const auto dtype = x.scalar_type();
  const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
  const int64_t n = state[0]->size(0), k = state[0]->size(1);
  TORCH_CHECK(x.dim() == 2 && x.layout() == at::kStrided && !x.is_neg(),
              WHO "expected a plain x of 2 dimensions, got ", x.sizes(), ".");
  TORCH_CHECK(x.size(1) == k && k < 2147483647 - 64, WHO "x has ", x.size(1),
              " features, the weight takes ", k, ".");
  TORCH_CHECK(batches.device() == x.device(), WHO "num_batches_tracked must lie beside x.");
  for (int i = 0; i < 7; ++i) {
    const at::Tensor& t = *state[i];
    TORCH_CHECK(t.device() == x.device(), WHO "x is on ", x.device(), " and the state on ",
                t.device(), ". Move one.");
    TORCH_CHECK(t.scalar_type() == dtype || (half && i > 2 && t.scalar_type() == at::kFloat),
                WHO "x is ", dtype, " and the state ", t.scalar_type(), ". Convert one.");
    TORCH_CHECK(t.is_contiguous() && (i == 0 || t.numel() == n || (i == 2 && t.numel() == 1)),
                WHO "state of shape ", t.sizes(), " does not fit ", n, " columns.");
  }
}
"""

extension = load_inline(
    name="gemm_scale_batchnorm_solution",
    cpp_sources="""using Ref = const at::Tensor&; at::Tensor gemm_scale_batchnorm(
        Ref, Ref, Ref, Ref, Ref, Ref, Ref, Ref, Ref, double, double, bool);""",
    cuda_sources=[HELPERS, KERNELS, LAUNCH],
    functions=["gemm_scale_batchnorm"],
    extra_cuda_cflags=["-O3"],
)
