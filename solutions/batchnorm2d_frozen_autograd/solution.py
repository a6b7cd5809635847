"""BatchNorm2d with frozen statistics, forward and backward in one extension.

    y      = (x - mean[c]) * r[c] * weight[c] + bias[c]        r = 1 / sqrt(var + eps)
    dx     = g * weight[c] * r[c]
    dweight[c] = sum over n, h, w of g * (x - mean[c]) * r[c]   sums, not means
    dbias[c]   = sum over n, h, w of g

Layout   NCHW: a plane is one (n, c), H * W elements in a row, all of one channel. channels_last:
         rows of C elements. Any other layout is first copied to NCHW.
Mapping  planes: a block owns a chunk of one plane; rows: a thread owns a pack of neighbouring
         channels. Either way the channel's coefficients stay in registers.
Bytes    forward 2, backward 3 accesses per element: one pass reads g and x, writes dx and keeps
         both sums. Every block leaves one partial sum per channel; `finish` adds them up in a
         fixed order, so gradients repeat bit for bit (atomics would not).
Bound    bandwidth: (16, 64, 512, 512) float32 moves 2 GiB forward and 3 GiB backward.
"""

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable
from torch.utils.cpp_extension import load_inline

CPP_SOURCE = r"""
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <cmath>
#include <tuple>
#include <vector>

void forward_cuda(const at::Tensor& x, const at::Tensor& y, const at::Tensor& mean,
                  const at::Tensor& var, const at::Tensor& weight, const at::Tensor& bias,
                  double eps, bool rows);
void backward_cuda(const at::Tensor& g, const at::Tensor& x, const at::Tensor& mean,
                   const at::Tensor& var, const at::Tensor& weight, const at::Tensor& gx,
                   const at::Tensor& gweight, const at::Tensor& gbias, double eps, bool rows);

namespace cpu {

template <typename T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };

// Per channel: what is subtracted, what is multiplied, what is added.
template <typename A>
struct Coefficients {
  std::vector<A> mean, scale, bias;
};

template <typename A>
Coefficients<A> coefficients(const at::Tensor& mean, const at::Tensor& var,
                             const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const int64_t channels = mean.numel();
  Coefficients<A> k{std::vector<A>(channels), std::vector<A>(channels, A(1)),
                    std::vector<A>(channels, A(0))};
  const auto fill = [&](const at::Tensor& from, std::vector<A>& to) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, from.scalar_type(), "state", [&] {
      const scalar_t* values = from.data_ptr<scalar_t>();
      for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<A>(values[c]);
    });
  };
  fill(mean, k.mean);
  if (weight.defined()) fill(weight, k.scale);
  if (bias.defined()) fill(bias, k.bias);
  std::vector<A> variance(channels);
  fill(var, variance);
  for (int64_t c = 0; c < channels; ++c) {
    k.scale[c] /= std::sqrt(variance[c] + static_cast<A>(eps));
  }
  return k;
}

template <typename T, typename A>
void planes(const T* x, T* y, const Coefficients<A>& k, int64_t planes, int64_t channels,
            int64_t plane_size) {
  constexpr int64_t kChunk = 16384;
  const int64_t chunks = (plane_size + kChunk - 1) / kChunk;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::min(plane_size, kChunk));
  at::parallel_for(0, planes * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t plane = job / chunks, start = job % chunks * kChunk;
      const int64_t c = plane % channels;
      const A mean = k.mean[c], scale = k.scale[c], bias = k.bias[c];
      const T* from = x + plane * plane_size + start;
      T* to = y + plane * plane_size + start;
      const int64_t count = std::min(kChunk, plane_size - start);
      for (int64_t i = 0; i < count; ++i) {
        to[i] = static_cast<T>((static_cast<A>(from[i]) - mean) * scale + bias);
      }
    }
  });
}

template <typename T, typename A>
void rows(const T* x, T* y, const Coefficients<A>& k, int64_t rows, int64_t channels) {
  const int64_t grain = std::max<int64_t>(1, 32768 / channels);
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const A* mean = k.mean.data();
    const A* scale = k.scale.data();
    const A* bias = k.bias.data();
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + row * channels;
      T* to = y + row * channels;
      for (int64_t c = 0; c < channels; ++c) {
        to[c] = static_cast<T>((static_cast<A>(from[c]) - mean[c]) * scale[c] + bias[c]);
      }
    }
  });
}

// One task per channel, NCHW. gx, gweight or gbias may be null: not asked for.
template <typename T, typename A>
void backward(const T* g, const T* x, T* gx, A* gweight, A* gbias, const Coefficients<A>& k,
              const std::vector<A>& invstd, int64_t samples, int64_t channels,
              int64_t plane_size) {
  constexpr int kLanes = 8;  // independent sums: the compiler turns them into vector registers
  at::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const A mean = k.mean[c], scale = k.scale[c];
      double sum_g[kLanes] = {}, sum_gx[kLanes] = {};
      for (int64_t n = 0; n < samples; ++n) {
        const int64_t at = (n * channels + c) * plane_size;
        if (gx != nullptr) {
          for (int64_t i = 0; i < plane_size; ++i) {
            gx[at + i] = static_cast<T>(static_cast<A>(g[at + i]) * scale);
          }
        }
        if (gweight == nullptr && gbias == nullptr) continue;
        int64_t i = 0;
        for (; i + kLanes <= plane_size; i += kLanes) {
          for (int l = 0; l < kLanes; ++l) {
            const A gi = static_cast<A>(g[at + i + l]);
            sum_g[l] += gi;
            sum_gx[l] += gi * (static_cast<A>(x[at + i + l]) - mean);
          }
        }
        for (; i < plane_size; ++i) {
          const A gi = static_cast<A>(g[at + i]);
          sum_g[0] += gi;
          sum_gx[0] += gi * (static_cast<A>(x[at + i]) - mean);
        }
      }
      double total_g = 0, total_gx = 0;
      for (int l = 0; l < kLanes; ++l) {
        total_g += sum_g[l];
        total_gx += sum_gx[l];
      }
      if (gweight != nullptr) gweight[c] = static_cast<A>(total_gx * invstd[c]);
      if (gbias != nullptr) gbias[c] = static_cast<A>(total_g);
    }
  });
}

}  // namespace cpu

namespace {

// x (N, C, H, W); mean, var, weight, bias (C,), of x's dtype or float32 beside 16-bit x.
void check(const at::Tensor& x, std::initializer_list<const at::Tensor*> state) {
  TORCH_CHECK_VALUE(x.dim() == 4, "expected 4D input (got ", x.dim(), "D input)");
  TORCH_CHECK(x.layout() == at::kStrided && !x.is_neg(),
              "batchnorm2d_frozen_autograd: only plain strided tensors are supported.");
  TORCH_CHECK(x.is_cuda() || x.device().is_cpu(),
              "batchnorm2d_frozen_autograd: no kernel for device ", x.device(), ".");
  const bool wide = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  for (const at::Tensor* t : state) {
    TORCH_CHECK(t->device() == x.device(), "batchnorm2d_frozen_autograd: x is on ", x.device(),
                " and the state on ", t->device(), ". Move one.");
    TORCH_CHECK(t->numel() == x.size(1) && t->is_contiguous(),
                "batchnorm2d_frozen_autograd: x has ", x.size(1),
                " channels, the state has shape ", t->sizes(), ".");
    TORCH_CHECK(t->scalar_type() == x.scalar_type() || (wide && t->scalar_type() == at::kFloat),
                "batchnorm2d_frozen_autograd: x is ", x.scalar_type(), " and the state ",
                t->scalar_type(), ". Convert one.");
  }
}

bool channels_last(const at::Tensor& x) {
  return !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

at::Tensor batch_norm_forward(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
                              const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check(x, {&mean, &var, &weight, &bias});
  const bool last = channels_last(x);
  const at::Tensor in = last ? x : x.contiguous();
  const at::Tensor out = at::empty_like(in);
  if (out.numel() == 0) return out;
  // With one element per plane the rows of C elements are contiguous too, and far longer.
  const bool rows = last || x.size(2) * x.size(3) == 1;
  if (x.is_cuda()) {
    forward_cuda(in, out, mean, var, weight, bias, eps, rows);
    return out;
  }
  const int64_t channels = x.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(),
                                  "batchnorm2d_frozen_autograd", [&] {
    using A = typename cpu::Accumulator<scalar_t>::type;
    const auto k = cpu::coefficients<A>(mean, var, weight, bias, eps);
    const scalar_t* from = in.data_ptr<scalar_t>();
    scalar_t* to = out.data_ptr<scalar_t>();
    if (rows) {
      cpu::rows(from, to, k, in.numel() / channels, channels);
    } else {
      cpu::planes(from, to, k, in.size(0) * channels, channels, in.size(2) * in.size(3));
    }
  });
  return out;
}

// The gradients of x, weight and bias, None for those not needed. g is the gradient of y.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_backward(
    const at::Tensor& g_, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
    const at::Tensor& weight, double eps, bool need_x, bool need_weight, bool need_bias) {
  check(x, {&mean, &var, &weight});
  TORCH_CHECK(g_.sizes() == x.sizes() && g_.scalar_type() == x.scalar_type() &&
                  g_.device() == x.device(),
              "batchnorm2d_frozen_autograd: the output's gradient must be like x.");
  const bool last = channels_last(x);
  // The CPU path sums along NCHW planes only.
  const bool native_last = last && x.is_cuda();
  const auto format =
      native_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const at::Tensor in = x.contiguous(format), g = g_.contiguous(format);
  at::Tensor gx, gweight, gbias;
  if (need_x) gx = at::empty_like(in);
  if (need_weight) gweight = at::empty_like(weight);
  if (need_bias) gbias = at::empty_like(weight);
  const int64_t channels = x.size(1);
  if (x.numel() == 0) {
    if (need_weight) gweight.zero_();
    if (need_bias) gbias.zero_();
    return {gx, gweight, gbias};
  }
  if (x.is_cuda()) {
    const bool rows = last || x.size(2) * x.size(3) == 1;
    backward_cuda(g, in, mean, var, weight, gx, gweight, gbias, eps, rows);
    return {gx, gweight, gbias};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(),
                                  "batchnorm2d_frozen_autograd", [&] {
    using A = typename cpu::Accumulator<scalar_t>::type;
    const auto k = cpu::coefficients<A>(mean, var, weight, at::Tensor(), eps);
    const auto ones = cpu::coefficients<A>(mean, var, at::Tensor(), at::Tensor(), eps);
    const auto options = weight.options().dtype(c10::CppTypeToScalarType<A>::value);
    const at::Tensor sums = at::empty({2, channels}, options);
    A* gw = sums.data_ptr<A>();
    cpu::backward(g.data_ptr<scalar_t>(), in.data_ptr<scalar_t>(),
                  need_x ? gx.data_ptr<scalar_t>() : nullptr, need_weight ? gw : nullptr,
                  need_bias ? gw + channels : nullptr, k, ones.scale, x.size(0), channels,
                  x.size(2) * x.size(3));
    if (need_weight) gweight.copy_(sums[0]);
    if (need_bias) gbias.copy_(sums[1]);
  });
  if (last && need_x) gx = gx.contiguous(at::MemoryFormat::ChannelsLast);
  return {gx, gweight, gbias};
}
"""

CUDA_SOURCE = r"""
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace gpu {

constexpr int kMaxThreads = 256;
constexpr int kPlaneThreads = 128;
// Rows per thread in the channels_last form, loaded before the first is used.
constexpr int kUnroll = 4;
// The backward pass reads two tensors: this many packs of each at once, and so many rounds per block
// before its two sums are reduced, 32 KiB per tensor and block.
constexpr int kPairs = 2;
constexpr int kRounds = 4;
constexpr int kRowRounds = 16;

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

// V neighbouring elements: one 16-byte access, or a single element.
template <typename T, int V>
struct Elements {
  T v[V];

  __device__ __forceinline__ void load(const T* p) {
    if constexpr (V == 1) {
      v[0] = *p;
    } else {
      Pack<T> pack;
      pack.raw = *reinterpret_cast<const uint4*>(p);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = pack.v[e];
    }
  }
  __device__ __forceinline__ void store(T* p) const {
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
struct State {
  using A = typename Accumulator<T>::type;
  PerChannel<T> mean, var, weight, bias;
  A eps;
};

// (x - mean) * scale + bias for one channel.
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

// 64-bit division costs ten times as much as 32-bit.
__device__ __forceinline__ int64_t remainder(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<unsigned>(a) % static_cast<unsigned>(b);
  return a % b;
}

// Block (chunk, plane): a pack per thread. Blocks follow each other in memory, so those that run at
// the same time lie close together; with four packs per thread they lie four times as far apart,
// and DRAM is 4 % slower (docs/kernels.md). Little may happen before the load: no division.
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

// blockDim = (channel packs, rows). A job is kUnroll * blockDim.y rows of one tile of channels.
// V: channels per thread, a full pack where C and the addresses allow it, else 1.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads)
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
      if (row < rows) p[u].load(x + row * channels + c);
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
        p[u].store(y + row * channels + c);
      }
    }
  }
}

// The sums of two values over a block, in thread (0, 0). Every thread must arrive.
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

// What the backward kernels compute and where it goes; a null pointer: not asked for.
template <typename T>
struct Backward {
  using A = typename Accumulator<T>::type;
  const T* g;
  const T* x;
  T* gx;
  A* sum_g;   // one partial sum per block and channel of g
  A* sum_gx;  // and of g * (x - mean)
};

// Job = chunk of a plane: kRounds * kPairs * blockDim.x packs, as in normalise_planes.
// Partial sums: sum[c * parts + n * chunks + chunk].
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
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

// Job = kRowRounds * blockDim.y rows of one tile of channels, as in normalise_rows.
// Partial sums: sum[band * channels + c].
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads)
    backward_rows(Backward<T> pass, State<T> state, int64_t rows, int64_t channels,
                  int64_t tiles, int64_t jobs) {
  using A = typename Accumulator<T>::type;
  __shared__ A shared_g[kMaxThreads * V], shared_gx[kMaxThreads * V];
  const bool sums = pass.sum_g != nullptr;
  const int tile_width = blockDim.x * V;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t band = job / tiles, tile = job - band * tiles;
    const int64_t c = (tile * blockDim.x + threadIdx.x) * V;
    A sum_g[V] = {}, sum_gx[V] = {};
    if (c < channels) {
      Affine<T> affine[V];
#pragma unroll
      for (int e = 0; e < V; ++e) affine[e] = Affine<T>(state, c + e);
      const int64_t begin = band * blockDim.y * kRowRounds + threadIdx.y;
      const int64_t end = std::min<int64_t>(rows, (band + 1) * blockDim.y * kRowRounds);
#pragma unroll 2
      for (int64_t row = begin; row < end; row += blockDim.y) {
        const int64_t at = row * channels + c;
        Elements<T, V> pg, px;
        pg.load(pass.g + at);
        if (sums) px.load(pass.x + at);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A gi = static_cast<A>(pg.v[e]);
          if (sums) {
            sum_g[e] += gi;
            sum_gx[e] += gi * (static_cast<A>(px.v[e]) - affine[e].mean);
          }
          pg.v[e] = static_cast<T>(gi * affine[e].scale);
        }
        if (pass.gx != nullptr) pg.store(pass.gx + at);
      }
    }
    if (!sums) continue;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      shared_g[threadIdx.y * tile_width + threadIdx.x * V + e] = sum_g[e];
      shared_gx[threadIdx.y * tile_width + threadIdx.x * V + e] = sum_gx[e];
    }
    __syncthreads();
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int i = thread; i < tile_width; i += blockDim.x * blockDim.y) {
      A total_g = 0, total_gx = 0;
      for (int y = 0; y < blockDim.y; ++y) {
        total_g += shared_g[y * tile_width + i];
        total_gx += shared_gx[y * tile_width + i];
      }
      const int64_t channel = tile * tile_width + i;
      if (channel < channels) {
        pass.sum_g[band * channels + channel] = total_g;
        pass.sum_gx[band * channels + channel] = total_gx;
      }
    }
    __syncthreads();
  }
}

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

// One block per channel adds up its partial sums, in double: there are few, and always in the
// same order. Partial p of channel c is at c * channel_stride + p * part_stride.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    finish(const typename Accumulator<T>::type* sum_g,
           const typename Accumulator<T>::type* sum_gx, State<T> state, void* gweight,
           void* gbias, bool wide, int64_t channels, int64_t parts, int64_t channel_stride,
           int64_t part_stride) {
  using A = typename Accumulator<T>::type;
  for (int64_t c = blockIdx.x; c < channels; c += gridDim.x) {
    double g = 0, gx = 0;
    for (int64_t p = threadIdx.x; p < parts; p += blockDim.x) {
      g += sum_g[c * channel_stride + p * part_stride];
      gx += sum_gx[c * channel_stride + p * part_stride];
    }
    block_sum(g, gx);
    if (threadIdx.x == 0) {
      const A invstd = A(1) / sqrt(state.var.get(c, A(1)) + state.eps);
      put<T>(gweight, wide, c, gx * invstd);
      put<T>(gbias, wide, c, g);
    }
  }
}

template <typename T>
PerChannel<T> per_channel(const at::Tensor& t, at::ScalarType dtype) {
  return {t.defined() ? t.data_ptr() : nullptr, t.defined() && t.scalar_type() != dtype};
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

unsigned grid_for(int64_t jobs) {
  return static_cast<unsigned>(std::min<int64_t>(jobs, 2147483647));
}

// The smallest power of two of at least `wanted` threads, within one warp and a full block.
int threads_for(int64_t wanted, int most = kMaxThreads) {
  int threads = 32;
  while (threads < most && threads < wanted) threads *= 2;
  return threads;
}

}  // namespace gpu

void forward_cuda(const at::Tensor& x, const at::Tensor& y, const at::Tensor& mean,
                  const at::Tensor& var, const at::Tensor& weight, const at::Tensor& bias,
                  double eps, bool rows) {
  using namespace gpu;
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t channels = x.size(1);
  const int64_t plane_size = x.size(2) * x.size(3);
  const auto dtype = x.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "forward", [&] {
    using A = typename Accumulator<scalar_t>::type;
    constexpr int kSize = Pack<scalar_t>::kSize;
    const State<scalar_t> state{per_channel<scalar_t>(mean, dtype),
                                per_channel<scalar_t>(var, dtype),
                                per_channel<scalar_t>(weight, dtype),
                                per_channel<scalar_t>(bias, dtype), static_cast<A>(eps)};
    const scalar_t* from = x.data_ptr<scalar_t>();
    scalar_t* to = y.data_ptr<scalar_t>();
    if (rows) {
      const int64_t count = x.numel() / channels;
      const bool vectors = channels % kSize == 0 && aligned(from) && aligned(to);
      const int64_t wide = vectors ? channels / kSize : channels;
      const int across = threads_for(wide) > 32 ? 64 : 32;
      const dim3 block(across, kMaxThreads / across);
      const int64_t tiles = ceil_div(wide, block.x);
      const int64_t jobs = tiles * ceil_div(count, static_cast<int64_t>(block.y) * kUnroll);
      if (vectors) {
        normalise_rows<scalar_t, kSize>
            <<<grid_for(jobs), block, 0, stream>>>(from, to, state, count, channels, tiles, jobs);
      } else {
        normalise_rows<scalar_t, 1>
            <<<grid_for(jobs), block, 0, stream>>>(from, to, state, count, channels, tiles, jobs);
      }
    } else {
      const int64_t planes = x.size(0) * channels;
      // Equal alignment of x and y makes the cut of a plane hold for both.
      const bool vectors = reinterpret_cast<uintptr_t>(from) % 16 ==
                           reinterpret_cast<uintptr_t>(to) % 16;
      const int threads = threads_for(ceil_div(plane_size, kSize), kPlaneThreads);
      const dim3 grid(grid_for(ceil_div(plane_size, static_cast<int64_t>(threads) * kSize)),
                      static_cast<unsigned>(std::min<int64_t>(planes, 65535)));
      normalise_planes<scalar_t><<<grid, threads, 0, stream>>>(from, to, state, planes, channels,
                                                               plane_size, vectors);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void backward_cuda(const at::Tensor& g, const at::Tensor& x, const at::Tensor& mean,
                   const at::Tensor& var, const at::Tensor& weight, const at::Tensor& gx,
                   const at::Tensor& gweight, const at::Tensor& gbias, double eps, bool rows) {
  using namespace gpu;
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t channels = x.size(1);
  const int64_t plane_size = x.size(2) * x.size(3);
  const bool sums = gweight.defined() || gbias.defined();
  const auto dtype = x.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "backward", [&] {
    using A = typename Accumulator<scalar_t>::type;
    constexpr int kSize = Pack<scalar_t>::kSize;
    const State<scalar_t> state{per_channel<scalar_t>(mean, dtype),
                                per_channel<scalar_t>(var, dtype),
                                per_channel<scalar_t>(weight, dtype),
                                {nullptr, false}, static_cast<A>(eps)};
    Backward<scalar_t> pass{g.data_ptr<scalar_t>(), x.data_ptr<scalar_t>(),
                            gx.defined() ? gx.data_ptr<scalar_t>() : nullptr, nullptr, nullptr};
    at::Tensor partial;
    const auto allocate = [&](int64_t parts) {
      if (!sums) return;
      partial = at::empty({2, parts * channels},
                          x.options().dtype(c10::CppTypeToScalarType<A>::value));
      pass.sum_g = partial.data_ptr<A>();
      pass.sum_gx = pass.sum_g + parts * channels;
    };
    int64_t parts = 0;
    if (rows) {
      const int64_t count = x.numel() / channels;
      const bool vectors = channels % kSize == 0 && aligned(pass.g) && aligned(pass.x) &&
                           aligned(pass.gx);
      const int64_t wide = vectors ? channels / kSize : channels;
      const int across = threads_for(wide) > 32 ? 64 : 32;
      const dim3 block(across, kMaxThreads / across);
      const int64_t tiles = ceil_div(wide, block.x);
      parts = ceil_div(count, static_cast<int64_t>(block.y) * kRowRounds);
      allocate(parts);
      const int64_t jobs = tiles * parts;
      if (vectors) {
        backward_rows<scalar_t, kSize><<<grid_for(jobs), block, 0, stream>>>(
            pass, state, count, channels, tiles, jobs);
      } else {
        backward_rows<scalar_t, 1><<<grid_for(jobs), block, 0, stream>>>(
            pass, state, count, channels, tiles, jobs);
      }
    } else {
      const int64_t planes = x.size(0) * channels;
      const auto offset = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16; };
      const bool vectors = offset(pass.g) == offset(pass.x) &&
                           (pass.gx == nullptr || offset(pass.g) == offset(pass.gx));
      const int threads = threads_for(ceil_div(plane_size, kSize * kPairs));
      const int64_t chunks =
          ceil_div(plane_size, static_cast<int64_t>(threads) * kPairs * kRounds * kSize);
      parts = x.size(0) * chunks;
      allocate(parts);
      backward_planes<scalar_t><<<grid_for(planes * chunks), threads, 0, stream>>>(
          pass, state, planes, channels, plane_size, chunks, vectors);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    if (sums) {
      const bool wide = weight.scalar_type() != dtype;
      finish<scalar_t><<<grid_for(channels), threads_for(parts), 0, stream>>>(
          pass.sum_g, pass.sum_gx, state, gweight.defined() ? gweight.data_ptr() : nullptr,
          gbias.defined() ? gbias.data_ptr() : nullptr, wide, channels, parts,
          rows ? 1 : parts, rows ? channels : 1);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
}
"""

extension = load_inline(
    name="batchnorm2d_frozen_autograd_solution",
    cpp_sources=[CPP_SOURCE],
    cuda_sources=[CUDA_SOURCE],
    functions=["batch_norm_forward", "batch_norm_backward"],
    extra_cflags=["-O3", "-fopenmp"],
    extra_cuda_cflags=["-O3"],
)


class _FrozenBatchNorm(torch.autograd.Function):
    """Gradients of x, weight and bias; the statistics are constants."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps):
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return extension.batch_norm_forward(x, mean, var, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, var = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        gradients = extension.batch_norm_backward(
            grad, x, mean, var, weight, ctx.eps, need_x, need_weight, need_bias
        )
        return (*gradients, None, None, None)


class ModelNew(nn.Module):
    """BatchNorm2d with frozen statistics, whatever ``.train()`` says; differentiable once.

    ``bn`` holds the parameters, the buffers and the settings; its own forward is never called.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (N, C, H, W), normalised per channel with the running statistics."""
        bn = self.bn
        mean, var, weight, bias = bn.running_mean, bn.running_var, bn.weight, bn.bias
        if torch.is_grad_enabled():
            return _FrozenBatchNorm.apply(x, weight, bias, mean, var, bn.eps)
        return extension.batch_norm_forward(x, mean, var, weight, bias, bn.eps)
