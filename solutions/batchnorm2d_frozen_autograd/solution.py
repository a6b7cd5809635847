"""BatchNorm2d with frozen statistics, as in fine-tuning: forward and backward in one extension.

    y      = (x - mean[c]) * r[c] * weight[c] + bias[c]        r = 1 / sqrt(var + eps)
    dx     = g * weight[c] * r[c]
    dweight[c] = sum over n, h, w of g * (x - mean[c]) * r[c]   sums, not means
    dbias[c]   = sum over n, h, w of g

Idea     One pass computes all three gradients: it reads g and x, writes dx and keeps two sums. Each
         block leaves one partial sum per channel, and `finish` adds them up in a fixed order, so
         that gradients repeat bit for bit. Atomics would not.
Layout   NCHW: a plane is one (n, c), H * W elements in a row, all of one channel. Any other layout,
         channels_last included, is first copied to NCHW.
Bytes    forward 2, backward 3 accesses per element.
Bound    bandwidth: (16, 64, 512, 512) float32 moves 2 GiB forward and 3 GiB backward.

The forward pass is that of batchnorm2d_inference, which explains it.
"""

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm
from torch.utils.cpp_extension import load_inline

BACKWARD = r"""
// Two tensors are read, so a thread loads kPairs packs of each at once. It does so kRounds times
// before its block's two sums are reduced: 32 KiB per tensor and block.
constexpr int kThreads = 256;
constexpr int kPairs = 2;
constexpr int kRounds = 4;

// What the backward kernel reads and writes. A null pointer: not asked for.
template <typename T>
struct Backward {
  const T *g, *x;
  T* gx;
  typename Accumulator<T>::type *sum_g, *sum_gx;  // partial sums of g and of g * (x - mean)
};

// A job is a chunk of a plane: kRounds * kPairs * blockDim.x packs. Its partial sums lie at
// [c * parts + n * chunks + chunk].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_planes(Backward<T> pass, State<T> state, int64_t planes, int64_t channels,
                    int64_t plane_size, int64_t chunks, bool vectors) {
  using A = typename Accumulator<T>::type;
  const int threads = blockDim.x;
  const bool sums = pass.sum_g != nullptr;
  const int64_t parts = planes / channels * chunks;
  for (int64_t job = blockIdx.x; job < planes * chunks; job += gridDim.x) {
    const int64_t plane = job / chunks, chunk = job - plane * chunks;
    const int64_t n = plane / channels, c = plane - n * channels;
    const T* g = pass.g + plane * plane_size;
    const T* x = pass.x + plane * plane_size;
    T* gx = pass.gx + plane * plane_size;
    const Cut<T> cut(g, plane_size, vectors);
    const uint4* vg = reinterpret_cast<const uint4*>(g + cut.head);
    const uint4* vx = reinterpret_cast<const uint4*>(x + cut.head);
    uint4* vgx = reinterpret_cast<uint4*>(gx + cut.head);
    const Affine<T> affine(state, c);
    A sum_g = 0, sum_gx = 0;

    const int64_t begin = chunk * threads * kPairs * kRounds + threadIdx.x;
    const int64_t end = std::min<int64_t>(cut.packs, begin + threads * kPairs * kRounds);
    for (int64_t first = begin; first < end; first += threads * kPairs) {
      Pack<T> pg[kPairs], px[kPairs];
#pragma unroll
      for (int u = 0; u < kPairs; ++u) {
        const int64_t i = first + u * threads;
        if (i < cut.packs) {
          pg[u].raw = vg[i];
          if (sums) px[u].raw = vx[i];
        }
      }
#pragma unroll
      for (int u = 0; u < kPairs; ++u) {
        const int64_t i = first + u * threads;
        if (i < cut.packs) {
#pragma unroll
          for (int e = 0; e < Pack<T>::kSize; ++e) {
            const A gi = static_cast<A>(pg[u].v[e]);
            if (sums) {
              sum_g += gi;
              sum_gx += gi * (static_cast<A>(px[u].v[e]) - affine.mean);
            }
            pg[u].v[e] = static_cast<T>(gi * affine.scale);
          }
          if (pass.gx != nullptr) vgx[i] = pg[u].raw;
        }
      }
    }
    for (int64_t i = chunk * threads + threadIdx.x; i < cut.edges; i += chunks * threads) {
      const int64_t at = cut.edge(i);
      const A gi = static_cast<A>(g[at]);
      if (sums) {
        sum_g += gi;
        sum_gx += gi * (static_cast<A>(x[at]) - affine.mean);
      }
      if (pass.gx != nullptr) gx[at] = static_cast<T>(gi * affine.scale);
    }
    if (sums) {
      block_sum(sum_g, sum_gx);
      if (threadIdx.x == 0) {
        pass.sum_g[c * parts + n * chunks + chunk] = sum_g;
        pass.sum_gx[c * parts + n * chunks + chunk] = sum_gx;
      }
    }
  }
}

// One block per channel adds up its partial sums, in double: there are few, and always in the
// same order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish(const typename Accumulator<T>::type* sum_g,
           const typename Accumulator<T>::type* sum_gx, State<T> state, void* gweight,
           void* gbias, int64_t channels, int64_t parts) {
  using A = typename Accumulator<T>::type;
  for (int64_t c = blockIdx.x; c < channels; c += gridDim.x) {
    double g = 0, gx = 0;
    for (int64_t p = threadIdx.x; p < parts; p += blockDim.x) {
      g += sum_g[c * parts + p];
      gx += sum_gx[c * parts + p];
    }
    block_sum(g, gx);
    if (threadIdx.x == 0) {
      const A invstd = A(1) / sqrt(state.var.get(c, A(1)) + state.eps);
      put<T>(gweight, state.weight.wide, c, gx * invstd);
      put<T>(gbias, state.weight.wide, c, g);
    }
  }
}

// The gradients of x, weight and bias, None for those not needed. g is the gradient of y.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& g_, const at::Tensor& x_, const at::Tensor& mean, const at::Tensor& var,
    const at::Tensor& weight, double eps, bool need_x, bool need_weight, bool need_bias) {
  TORCH_CHECK(g_.sizes() == x_.sizes() && g_.scalar_type() == x_.scalar_type() &&
                  g_.device() == x_.device(),
              "batchnorm2d_frozen_autograd: the output's gradient must be like x.");
  const c10::cuda::CUDAGuard guard(x_.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor x = x_.contiguous(), g = g_.contiguous();
  if (x.numel() == 0) return {at::zeros_like(x), at::zeros_like(weight), at::zeros_like(weight)};
  const bool sums = need_weight || need_bias;
  const at::Tensor gx = need_x ? at::empty_like(x) : at::Tensor();
  const at::Tensor gweight = need_weight ? at::empty_like(weight) : at::Tensor();
  const at::Tensor gbias = need_bias ? at::empty_like(weight) : at::Tensor();
  const int64_t samples = x.size(0), channels = x.size(1), plane_size = x.size(2) * x.size(3);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "backward", [&] {
    using A = typename Accumulator<scalar_t>::type;
    constexpr int kSize = Pack<scalar_t>::kSize;
    const State<scalar_t> state(mean, var, weight, weight, eps);
    Backward<scalar_t> pass{g.data_ptr<scalar_t>(), x.data_ptr<scalar_t>(),
                            need_x ? gx.data_ptr<scalar_t>() : nullptr, nullptr, nullptr};
    // Where all are aligned alike, the cut of a plane holds for each.
    const auto offset = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16; };
    const bool vectors = offset(pass.g) == offset(pass.x) &&
                         (!need_x || offset(pass.g) == offset(pass.gx));
    const int threads = threads_for(ceil_div(plane_size, kSize * kPairs), kThreads);
    const int64_t chunks =
        ceil_div(plane_size, static_cast<int64_t>(threads) * kPairs * kRounds * kSize);
    const int64_t parts = samples * chunks;
    at::Tensor partial;
    if (sums) {
      partial = at::empty({2, parts * channels},
                          x.options().dtype(c10::CppTypeToScalarType<A>::value));
      pass.sum_g = partial.data_ptr<A>();
      pass.sum_gx = pass.sum_g + parts * channels;
    }
    backward_planes<<<grid_for(parts * channels), threads, 0, stream>>>(
        pass, state, samples * channels, channels, plane_size, chunks, vectors);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    if (sums) {
      finish<scalar_t><<<grid_for(channels), threads_for(parts, kThreads), 0, stream>>>(
          pass.sum_g, pass.sum_gx, state, need_weight ? gweight.data_ptr() : nullptr,
          need_bias ? gbias.data_ptr() : nullptr, channels, parts);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {gx, gweight, gbias};
}
"""


class _FrozenBatchNorm(torch.autograd.Function):
    """Gradients of x, weight and bias; the statistics are constants."""

    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, eps):
        ctx.save_for_backward(x, mean, var, weight)
        ctx.eps = eps
        return extension.normalise(x, mean, var, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        need_x, _, _, need_weight, need_bias, _ = ctx.needs_input_grad
        gx, gweight, gbias = extension.backward(
            grad, *ctx.saved_tensors, ctx.eps, need_x, need_weight, need_bias
        )
        return gx, None, None, gweight, gbias, None


class ModelNew(nn.Module):
    """BatchNorm2d with frozen statistics, whatever ``.train()`` says; differentiable once.

    ``bn`` only holds the parameters, the buffers and the settings.
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
        if torch.is_grad_enabled():
            return _FrozenBatchNorm.apply(*args, bn.eps)
        return extension.normalise(*args, bn.eps)


FORWARD = r"""
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

at::Tensor normalise(const at::Tensor& x_, const at::Tensor& mean, const at::Tensor& var,
                     const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check(x_, {&mean, &var, &weight, &bias});
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous(), y = at::empty_like(x);
  if (y.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "forward", [&] {
    launch_planes(x, y, State<scalar_t>(mean, var, weight, bias, eps));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}
"""

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
  const char* const who = "batchnorm2d_frozen_autograd: ";
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

// The sums of two values over a block, in thread 0. Every thread must arrive.
template <typename A>
__device__ __forceinline__ void block_sum(A& p, A& q) {
  __shared__ A warp_p[32], warp_q[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    p += __shfl_down_sync(0xffffffffu, p, step);
    q += __shfl_down_sync(0xffffffffu, q, step);
  }
  if (lane == 0) {
    warp_p[warp] = p;
    warp_q[warp] = q;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < blockDim.x / 32; ++w) {
      p += warp_p[w];
      q += warp_q[w];
    }
  }
  __syncthreads();  // the arrays may be written again by the block's next job
}

// A null pointer: not asked for.
template <typename T>
__device__ __forceinline__ void put(void* to, bool wide, int64_t c, double value) {
  using A = typename Accumulator<T>::type;
  if (to == nullptr) return;
  if (wide) {
    static_cast<A*>(to)[c] = static_cast<A>(value);
  } else {
    static_cast<T*>(to)[c] = static_cast<T>(static_cast<A>(value));
  }
}
"""

DECLARATIONS = """
at::Tensor normalise(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
                     const at::Tensor& weight, const at::Tensor& bias, double eps);
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& g, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
    const at::Tensor& weight, double eps, bool need_x, bool need_weight, bool need_bias);
"""

extension = load_inline(
    name="batchnorm2d_frozen_autograd_solution",
    cpp_sources=[DECLARATIONS],
    cuda_sources=[HELPERS, FORWARD, BACKWARD],
    functions=["normalise", "backward"],
    extra_cuda_cflags=["-O3"],
)
