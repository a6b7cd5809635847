"""BatchNorm2d at inference: one read and one write, the speed of a copy.

    y = (x - running_mean[c]) / sqrt(running_var[c] + eps) * weight[c] + bias[c]

Layout   NCHW: a plane is one (n, c), H * W elements in a row, all of one channel. channels_last:
         rows of C elements. Any other layout is first copied to NCHW.
Mapping  `normalise_planes`: block (chunk, plane), so the channel is found once per thread and
         pack, and no element pays for a division. `normalise_rows`: a thread owns a pack of
         neighbouring channels and walks down the rows, so its coefficients stay in registers.
Bytes    2 * sizeof(T) per element; the state is 4 values per channel.
Bound    bandwidth: (64, 64, 512, 512) float32 is 4 GiB in, 4 GiB out.

The mean is subtracted before anything is multiplied: x * a + b with b = bias - mean * a is one
operation less and loses all digits when the mean is large. The coefficients are computed from the
state on every call, since state may change between calls.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

CPP_SOURCE = r"""
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <cmath>
#include <optional>
#include <vector>

void batch_norm_cuda(const at::Tensor& x, const at::Tensor& y, const at::Tensor& mean,
                     const at::Tensor& var, const at::Tensor& weight, const at::Tensor& bias,
                     double eps, bool rows);

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

}  // namespace cpu

// x (N, C, H, W); mean, var, weight, bias (C,), of x's dtype or float32 beside 16-bit x; an
// undefined weight counts as ones, an undefined bias as zeros.
at::Tensor batch_norm(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
                      const std::optional<at::Tensor>& weight_,
                      const std::optional<at::Tensor>& bias_, double eps) {
  const at::Tensor weight = weight_.has_value() ? *weight_ : at::Tensor();
  const at::Tensor bias = bias_.has_value() ? *bias_ : at::Tensor();
  TORCH_CHECK_VALUE(x.dim() == 4, "expected 4D input (got ", x.dim(), "D input)");
  TORCH_CHECK(x.layout() == at::kStrided && !x.is_neg(),
              "batchnorm2d_inference: only plain strided tensors are supported.");
  const int64_t channels = x.size(1);
  const bool wide = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  for (const at::Tensor* t : {&mean, &var, &weight, &bias}) {
    if (!t->defined()) continue;
    TORCH_CHECK(t->device() == x.device(), "batchnorm2d_inference: x is on ", x.device(),
                " and the state on ", t->device(), ". Move one.");
    TORCH_CHECK(t->numel() == channels && t->is_contiguous(), "batchnorm2d_inference: x has ",
                channels, " channels, the state has shape ", t->sizes(), ".");
    TORCH_CHECK(t->scalar_type() == x.scalar_type() || (wide && t->scalar_type() == at::kFloat),
                "batchnorm2d_inference: x is ", x.scalar_type(), " and the state ",
                t->scalar_type(), ". Convert one.");
  }

  const bool last = !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor in = last ? x : x.contiguous();
  const at::Tensor out = at::empty_like(in);
  if (out.numel() == 0) return out;
  // With one element per plane the rows of C elements are contiguous too, and far longer.
  const bool rows = last || x.size(2) * x.size(3) == 1;

  if (x.is_cuda()) {
    batch_norm_cuda(in, out, mean, var, weight, bias, eps, rows);
    return out;
  }
  TORCH_CHECK(x.device().is_cpu(), "batchnorm2d_inference: no kernel for device ", x.device(),
              ".");
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(),
                                  "batchnorm2d_inference", [&] {
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

void batch_norm_cuda(const at::Tensor& x, const at::Tensor& y, const at::Tensor& mean,
                     const at::Tensor& var, const at::Tensor& weight, const at::Tensor& bias,
                     double eps, bool rows) {
  using namespace gpu;
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t channels = x.size(1);
  const int64_t plane_size = x.size(2) * x.size(3);
  const auto dtype = x.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "batchnorm2d_inference", [&] {
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
"""

extension = load_inline(
    name="batchnorm2d_inference_solution",
    cpp_sources=[CPP_SOURCE],
    cuda_sources=[CUDA_SOURCE],
    functions=["batch_norm"],
    extra_cflags=["-O3", "-fopenmp"],
    extra_cuda_cflags=["-O3"],
)


class _ForwardOnly(torch.autograd.Function):
    """Keeps the output attached to the graph, so that a backward pass cannot go wrong silently."""

    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, eps):
        return extension.batch_norm(x, mean, var, weight, bias, eps)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(
            "batchnorm2d_inference is forward only: it has no backward kernel. "
            "batchnorm2d_frozen_autograd has one."
        )


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
        args = (x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)
        if torch.is_grad_enabled() and (
            x.requires_grad or bn.weight.requires_grad or bn.bias.requires_grad
        ):
            return _ForwardOnly.apply(*args)
        return extension.batch_norm(*args)
