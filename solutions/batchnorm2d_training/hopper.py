"""BatchNorm2d in training on Hopper: one launch that keeps most of a channel on the chip.

    mean, var  over n, h, w of one channel      var biased in y, unbiased in running_var
    y            = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]
    running      = (1 - m) * running + m * batch     m = momentum, or 1 / batches seen for None

Idea     What a thread has read for the statistics it keeps until it can write it, 16 packs of 16
         bytes in registers and 28 in shared memory that only it touches. Only the rest, the far
         units, is read twice. As soon as a pack is written out, the pack of the next channel is
         loaded in its place, so that reads and writes overlap, and its moments are taken in
         between. While the blocks exchange their moments they write the far units of the channel
         before, so that no time is lost. Threads meet once per channel.
Layout   NCHW: a channel is samples times H * W elements, cut into units of 512 packs, one pack for
         each thread of a block. Other layouts are copied to NCHW.
Mapping  One cooperative launch, one block per SM. All SMs, or teams of them where channels are
         small, work on the same channel and share out its units: 62 each at (64, 64, 512, 512).
Bytes    one read and one write per element, and a second read of 18 units in 62.
Bound    bandwidth: (64, 64, 512, 512) float32 moves 8 GiB, with the second reads 9.2.

It takes float32, float16 and bfloat16 on a GPU of compute capability 9.0; solution.py takes the
rest. What does not stream (planes or addresses that are not multiples of 16 bytes, channels below
360 KiB) goes to `batch_norm_plain`: one launch too, a block per channel, three reads, not fast.

No E[x^2] - E[x]^2: with a mean of 1e4 that loses every digit of the variance. A thread takes the
moments of 16 values in registers in two passes and merges them into its own by Chan's formula
(T. Chan, G. Golub, R. LeVeque 1979). The mean is kept as two floats.

Constants were measured on an H200, 2026-11-21; docs/kernels.md has the log.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

KERNEL = r"""
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    batch_norm_stream(const __grid_constant__ Problem<T> p) {
  extern __shared__ __align__(128) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int rank = blockIdx.x % p.team, team_index = blockIdx.x / p.team;
  const int teams = gridDim.x / p.team;
  const Places<T> places(p, rank);
  ulonglong2* const board = p.board + team_index * p.team;
  const int units = static_cast<int>((p.channel_packs + kThreads - 1) / kThreads);
  const int mine = (units - rank + p.team - 1) / p.team;  // more than kNear: see run

  if (blockIdx.x == 0) {
    for (int i = thread; i < 2 * gridDim.x; i += kThreads) p.board[i] = make_ulonglong2(0, 0);
  }
  const int64_t batches = *p.batches;  // all have read it before block 0 counts on
  cooperative_groups::this_grid().sync();

  uint4 held[kHeld];
  Moments m{0, 0, 0, 0};

  // Far units are read once for their moments ...
  const auto load_far = [&](unsigned c, int j, uint4 (&raw)[kFar]) {
#pragma unroll
    for (int k = 0; k < kFar; ++k) {
      const unsigned pack = places.pack(j + k, thread);
      if (j + k < mine && pack < places.packs) raw[k] = read(p.x + places.at(c, pack));
    }
  };
  const auto add_far = [&](int j, const uint4 (&raw)[kFar]) {
    if (j + kFar <= mine && places.pack(j + kFar - 1, thread) < places.packs) {
      add_packs<T, kFar>(m, raw);
      return;
    }
#pragma unroll
    for (int k = 0; k < kFar; ++k) {
      if (j + k < mine && places.pack(j + k, thread) < places.packs) add_packs<T, 1>(m, raw + k);
    }
  };
  // ... and once more to be written, by all warps but the first. f counts their packs.
  constexpr int kWriters = kThreads - 32;
  const int far = (mine - kNear) * kThreads;
  const auto load_again = [&](unsigned c, int f, uint4 (&raw)[kFar]) {
#pragma unroll
    for (int k = 0; k < kFar; ++k) {
      const int i = f + k * kWriters;
      const unsigned pack = places.pack(kNear + i / kThreads, i % kThreads);
      if (i < far && pack < places.packs) raw[k] = read(p.x + places.at(c, pack));
    }
  };
  const auto write_far = [&](unsigned c, int f, const uint4 (&raw)[kFar], const Affine<T>& affine) {
#pragma unroll
    for (int k = 0; k < kFar; ++k) {
      const int i = f + k * kWriters;
      const unsigned pack = places.pack(kNear + i / kThreads, i % kThreads);
      if (i < far && pack < places.packs) __stcs(p.y + places.at(c, pack), affine(raw[k]));
    }
  };
  const auto add_kept = [&](int i) {
    uint4 raw[kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) raw[k] = s.kept[i + k][thread];
    add_packs<T, kGroup>(m, raw);
  };
  // Every warp leaves its moments; then all are there.
  const auto leave = [&] {
    m = merge(m, shuffle(m, 16));
    m = merge(m, shuffle(m, 8));
    if (lane < 8) s.left[warp * 8 + lane] = make_float4(m.n, m.mean, m.low, m.m2);
    m = Moments{0, 0, 0, 0};
    __syncthreads();
  };
  // The first warp tells the team the block's moments and gathers the team's. Two entries per
  // member suffice: who publishes the next channel but one has seen this one published by all.
  const auto exchange = [&](int64_t c, int k) {
    Moments part[kLeft / 32];
#pragma unroll
    for (int i = 0; i < kLeft / 32; ++i) {
      const float4 left = s.left[lane + 32 * i];
      part[i] = {left.x, left.y, left.z, left.w};
    }
    const Total ours = combine(part);
    ulonglong2* const entries = board + k % 2 * gridDim.x;
    const unsigned tag = (k + 1) & 255;
    if (lane == 0) publish(entries + rank, ours, Pack<T>::kSize, tag);
    const Total all = gather(entries, p.team, Pack<T>::kSize, tag, lane);
    if (lane == 0) {
      const float mean = float(all.mean);
      s.statistics = make_float4(mean, float(all.mean - mean),
                                 float(1.0 / sqrt(all.m2 / all.n + p.eps)), 0.f);
      if (rank == k % p.team) update_running(p, c, all.mean, all.m2, batches);
    }
  };

  int64_t channel = team_index;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    held[i] = read(p.x + places.at(channel, places.pack(i, thread)));
  }
#pragma unroll 1
  for (int i = 0; i < kKept; ++i) {
    copy_async(&s.kept[i][thread], p.x + places.at(channel, places.pack(kHeld + i, thread)));
  }
  close_group();
#pragma unroll 1
  for (int j = kNear; j < mine; j += kFar) {
    uint4 raw[kFar];
    load_far(channel, j, raw);
    add_far(j, raw);
  }
#pragma unroll
  for (int i = 0; i < kHeld; i += kGroup) add_packs<T, kGroup>(m, held + i);
  wait_but(0);
#pragma unroll 1
  for (int i = 0; i < kKept; i += kGroup) add_kept(i);
  leave();
  if (warp == 0) exchange(channel, 0);
  __syncthreads();

#pragma unroll 1
  for (int k = 1; channel < p.channels; ++k) {
    const Affine<T> affine(p, channel, s.statistics);
    const unsigned c = static_cast<unsigned>(channel);
    const bool more = channel + teams < p.channels;
    const unsigned next = more ? c + teams : c;
    const unsigned ahead = (next - c) * p.plane_packs;

    // What is kept goes out, and the next channel's comes in.
#pragma unroll 1
    for (int i = 0; i < kKept; i += kGroup) {
#pragma unroll
      for (int k4 = i; k4 < i + kGroup; ++k4) {
        const unsigned at = places.at(c, places.pack(kHeld + k4, thread));
        __stcs(p.y + at, affine(s.kept[k4][thread]));
        if (more) copy_async(&s.kept[k4][thread], p.x + at + ahead);
      }
      close_group();
    }

    // The same for what is held, with moments of what has arrived in between: the next channel's
    // far units two at a time, what is kept four at a time, what is held late.
    constexpr int kEvery = kHeld / 8;
    int j = kNear;
#pragma unroll 1
    for (; j + 8 * kFar < mine; j += kFar) {
      uint4 raw[kFar];
      load_far(next, j, raw);
      add_far(j, raw);
    }
    uint4 raw[kFar];
    load_far(next, j, raw);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const unsigned at = places.at(c, places.pack(i, thread));
      __stcs(p.y + at, affine(held[i]));
      if (more) held[i] = read(p.x + at + ahead);
      if (i % kEvery == kEvery - 1) {
        const int step = i / kEvery;
        add_far(j, raw);
        j += kFar;
        if (step < 7) load_far(next, j, raw);
        if (step > 0) {
          wait_but(7 - step);
          add_kept(kGroup * (step - 1));
        }
        if (step == 5) add_packs<T, kGroup>(m, held);
        if (step == 7) add_packs<T, kGroup>(m, held + kGroup);
      }
    }
    const int f = thread - 32;
    if (warp > 0) load_again(c, f, raw);
#pragma unroll
    for (int i = 2 * kGroup; i < kHeld; i += kGroup) add_packs<T, kGroup>(m, held + i);
    leave();

    // The moments travel; the other warps write this channel's far units.
    if (warp == 0) {
      if (more) exchange(channel + teams, k);
    } else {
      write_far(c, f, raw, affine);
#pragma unroll 1
      for (int g = f + kFar * kWriters; g < far; g += kFar * kWriters) {
        load_again(c, g, raw);
        write_far(c, g, raw, affine);
      }
    }
    __syncthreads();
    channel += teams;
  }
  if (blockIdx.x == 0 && thread == 0) *p.batches = batches + 1;
}

// What does not stream. A block per channel: mean, squared deviations, output. The launch is
// cooperative for the counter's sake.
constexpr int kPlainThreads = 1024;

template <typename T>
__global__ void __launch_bounds__(kPlainThreads)
    batch_norm_plain(Problem<T> p, const T* x, T* y, int64_t plane_size) {
  const int64_t count = static_cast<int64_t>(p.count);
  const int64_t batches = *p.batches;
  cooperative_groups::this_grid().sync();
  for (int64_t c = blockIdx.x; c < p.channels; c += gridDim.x) {
    const auto at = [&](int64_t i) {
      return (i / plane_size * p.channels + c) * plane_size + i % plane_size;
    };
    const double pivot = widen(x[at(0)]);
    double sum = 0, square = 0;
    for (int64_t i = threadIdx.x; i < count; i += kPlainThreads) sum += widen(x[at(i)]) - pivot;
    const double mean = pivot + block_sum(sum) / count;
    for (int64_t i = threadIdx.x; i < count; i += kPlainThreads) {
      const double d = widen(x[at(i)]) - mean;
      square += d * d;
    }
    square = block_sum(square);
    if (threadIdx.x == 0) update_running(p, c, mean, square, batches);
    const float high = static_cast<float>(mean), low = static_cast<float>(mean - high);
    const float scale = static_cast<float>(p.weight.get(c) / sqrt(square / count + p.eps));
    const float bias = p.bias.get(c);
    for (int64_t i = threadIdx.x; i < count; i += kPlainThreads) {
      y[at(i)] = narrow<T>(((widen(x[at(i)]) - high) - low) * scale + bias);
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.batches = batches + 1;
}
"""

LAUNCH = r"""
// How many blocks share a channel: the least time, counted in units of the busiest block. Between
// two channels a team waits as long as some six units take. A second read costs half a unit.
// Every block needs a far unit, so that a channel's last, perhaps not full, is far. 0: too small.
int team_for(int64_t units, int64_t channels, int blocks) {
  int best = 0;
  double least = INFINITY;
  for (int team = 1; team <= blocks && units / team > kNear; ++team) {
    if (units / team >= (1 << 15) - 1) continue;  // its packs are counted in 24 bits
    const double share = static_cast<double>(units) / team;
    const double rounds = static_cast<double>(ceil_div(channels, blocks / team));
    const double time = rounds * (share + (team > 1 ? 6 : 3) + 0.5 * (share - kNear));
    if (time < least) {
      least = time;
      best = team;
    }
  }
  return best;
}

template <typename T>
void start(Problem<T> p, int64_t samples, int64_t plane_size, int device) {
  const auto stream = c10::cuda::getCurrentCUDAStream().stream();
  int blocks = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device));
  const auto misaligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 != 0; };
  const int64_t plane_bytes = plane_size * static_cast<int64_t>(sizeof(T));
  const int64_t packs = plane_bytes / 16;  // of a plane
  const int resident = std::min(blocks, kMaxTeam);
  // Packs of x are counted in 32 bits.
  const bool streams = !misaligned(p.x) && !misaligned(p.y) && plane_bytes % 16 == 0 && packs > 1 &&
                       samples * p.channels * packs < (int64_t{1} << 32) - (1 << 20);
  p.team = streams ? team_for(ceil_div(samples * packs, kThreads), p.channels, resident) : 0;
  if (p.team == 0) {
    auto x = reinterpret_cast<const T*>(p.x);
    auto y = reinterpret_cast<T*>(p.y);
    void* arguments[] = {&p, &x, &y, &plane_size};
    const auto grid = static_cast<unsigned>(std::min<int64_t>(blocks, p.channels));
    C10_CUDA_CHECK(cudaLaunchCooperativeKernel(batch_norm_plain<T>, dim3(grid),
                                               dim3(kPlainThreads), arguments, 0, stream));
    return;
  }
  p.plane_packs = static_cast<unsigned>(packs);
  p.channel_packs = static_cast<unsigned>(samples * packs);
  unsigned log = 0;  // of a plane's packs, rounded up
  while ((uint64_t{1} << log) < p.plane_packs) ++log;
  p.magic = static_cast<unsigned>(
      (((uint64_t{1} << log) - p.plane_packs) << 32) / p.plane_packs + 1);
  p.shift = log - 1;
  const auto teams = std::min<int64_t>(resident / p.team, p.channels);
  C10_CUDA_CHECK(cudaFuncSetAttribute(batch_norm_stream<T>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
  void* arguments[] = {&p};
  C10_CUDA_CHECK(cudaLaunchCooperativeKernel(batch_norm_stream<T>,
                                             dim3(static_cast<unsigned>(teams * p.team)),
                                             dim3(kThreads), arguments, sizeof(Shared), stream));
}

// momentum < 0 stands for None. Updates running_mean, running_var and batches.
at::Tensor batch_norm(const at::Tensor& x_, const at::Tensor& weight, const at::Tensor& bias,
                      const at::Tensor& running_mean, const at::Tensor& running_var,
                      const at::Tensor& batches, double eps, double momentum) {
  check(x_, {&weight, &bias, &running_mean, &running_var});
  const auto dtype = x_.scalar_type();
  const bool single = dtype == at::kFloat, half = dtype == at::kHalf;
  TORCH_CHECK(x_.is_cuda() && (single || half || dtype == at::kBFloat16),
              "batchnorm2d_training/hopper: takes float32, float16 and bfloat16 on a GPU, not ",
              dtype, " on ", x_.device(), ". Next: use solution.py beside this file.");
  TORCH_CHECK_VALUE(x_.size(1) > 0 && x_.numel() / x_.size(1) > 1,
                    "Expected more than 1 value per channel when training, got input size ",
                    x_.sizes());
  TORCH_CHECK(batches.device() == x_.device() && batches.scalar_type() == at::kLong &&
                  batches.numel() == 1,
              "batchnorm2d_training: num_batches_tracked must be one int64 beside x.");
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous(), y = at::empty_like(x);
  const at::Tensor board = at::empty({2 * kMaxTeam * 16}, x.options().dtype(at::kByte));
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto of = per_channel<T>;
    Problem<T> p{static_cast<const uint4*>(x.data_ptr()), static_cast<uint4*>(y.data_ptr()),
                 of(weight), of(bias), of(running_mean), of(running_var), running_mean.data_ptr(),
                 running_var.data_ptr(), batches.data_ptr<int64_t>(), eps, momentum,
                 static_cast<double>(x.numel() / x.size(1)), x.size(1)};
    p.board = static_cast<ulonglong2*>(board.data_ptr());
    start(p, x.size(0), x.size(2) * x.size(3), x.get_device());
  };
  if (single) {
    run(float{});
  } else if (half) {
    run(__half{});
  } else {
    run(__nv_bfloat16{});
  }
  // Written behind autograd's back: say so, as an in-place operator would.
  for (const at::Tensor* t : {&running_mean, &running_var, &batches}) {
    if (!t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
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
        if not self.training:
            return bn(x)  # PyTorch's own; batchnorm2d_inference has a kernel for it
        args = (x, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.num_batches_tracked)
        args += (bn.eps, -1.0 if bn.momentum is None else bn.momentum)
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
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <algorithm>
#include <cmath>

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kHeld = 16;  // packs per thread in registers; 20 spill
constexpr int kKept = 28;  // packs per thread in shared memory: all that 227 KiB hold
constexpr int kNear = kHeld + kKept;
constexpr int kFar = 2;  // packs of far units in flight per thread; 4 spill
constexpr int kGroup = 4;  // packs in shared memory that are waited for together
constexpr int kMaxTeam = 160;
constexpr int kLeft = kWarps * 8;  // moments that the warps leave per channel

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T> __device__ __forceinline__ T narrow(float v) { return v; }
template <> __device__ __forceinline__ __half narrow(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow(float v) {
  return __float2bfloat16_rn(v);
}

// Sixteen bytes seen as one access or as elements.
template <typename T>
union Pack {
  static constexpr int kSize = 16 / sizeof(T);
  uint4 raw;
  T v[kSize];
  __device__ explicit Pack(uint4 r) : raw(r) {}
};

// One value per channel: of x's dtype, or float beside 16-bit x (`wide`).
template <typename T>
struct PerChannel {
  const void* data;
  bool wide;

  __device__ __forceinline__ float get(int64_t c) const {
    return wide ? static_cast<const float*>(data)[c] : widen(static_cast<const T*>(data)[c]);
  }
};

template <typename T>
PerChannel<T> per_channel(const at::Tensor& t) {
  return {t.data_ptr(), static_cast<size_t>(t.element_size()) != sizeof(T)};
}

// -- moments --------------------------------------------------------------------------------------

// Count, mean and sum of squared deviations. The mean is mean + low, two numbers that do not
// overlap: with values around 1e5 a float's mean alone is off by 0.004, and so is every output.
struct Moments {
  float n, mean, low, m2;
};

// Chan's formula.
__device__ __forceinline__ Moments merge(const Moments& p, const Moments& q) {
  if (q.n == 0.f) return p;
  if (p.n == 0.f) return q;
  const float n = p.n + q.n, share = __fdividef(q.n, n);
  const float delta = (q.mean - p.mean) + (q.low - p.low), low = p.low + delta * share;
  const float mean = p.mean + low;
  return {n, mean, low - (mean - p.mean), p.m2 + q.m2 + delta * delta * p.n * share};
}

// Merge K values: their own moments in two passes first, relative to the first of them, which
// keeps all digits of close values. Four sums side by side: a chain of additions is latency.
template <int K>
__device__ __forceinline__ void add(Moments& m, const float* v) {
  constexpr int kSums = 4;
  float sum[kSums] = {}, square[kSums] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) sum[k % kSums] += v[k] - v[0];
  const float low = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * (1.f / K), mean = v[0] + low;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const float d = (v[k] - v[0]) - low;
    square[k % kSums] += d * d;
  }
  m = merge(m, Moments{float(K), mean, low - (mean - v[0]),
                       (square[0] + square[1]) + (square[2] + square[3])});
}

// Merge N packs, 16 values at a time.
template <typename T, int N>
__device__ __forceinline__ void add_packs(Moments& m, const uint4* raw) {
  constexpr int kSize = Pack<T>::kSize, kAtOnce = N * kSize <= 16 ? N : 16 / kSize;
#pragma unroll
  for (int first = 0; first < N; first += kAtOnce) {
    float v[kAtOnce * kSize];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const Pack<T> pack(raw[first + u]);
#pragma unroll
      for (int e = 0; e < kSize; ++e) v[u * kSize + e] = widen(pack.v[e]);
    }
    add<kAtOnce * kSize>(m, v);
  }
}

__device__ __forceinline__ Moments shuffle(const Moments& m, int step) {
  return {__shfl_xor_sync(0xffffffffu, m.n, step), __shfl_xor_sync(0xffffffffu, m.mean, step),
          __shfl_xor_sync(0xffffffffu, m.low, step), __shfl_xor_sync(0xffffffffu, m.m2, step)};
}

struct Total {
  double n, mean, m2;
};

// The moments of K entries per lane, to every lane, in one pass over deviations from one of the
// means: doubles have digits to spare for what cancels, and one pass is half the latency of two.
template <int K>
__device__ __forceinline__ Total combine(const Moments (&part)[K]) {
  const double pivot = __shfl_sync(0xffffffffu, part[0].mean, 0);
  double n = 0, sum = 0, square = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const double d = (double(part[k].mean) - pivot) + double(part[k].low), count = part[k].n;
    n += count;
    sum += count * d;
    square += double(part[k].m2) + count * d * d;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    n += __shfl_xor_sync(0xffffffffu, n, step);
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
    square += __shfl_xor_sync(0xffffffffu, square, step);
  }
  const double shift = sum / n;
  return {n, pivot + shift, square - sum * shift};
}

// What a block tells its team: two words of 8 bytes, each with a tag of 8 bits. A word is read or
// written as a whole, so data that carry the right tag are all there: no fence, no counter, no
// second look. The low part of the mean loses its last 8 bits; the count is in packs.
__device__ __forceinline__ void publish(ulonglong2* entry, const Total& t, int pack, unsigned tag) {
  const float mean = float(t.mean), low = float(t.mean - mean);
  const unsigned packs = static_cast<unsigned>(t.n / pack + 0.5);
  const unsigned long long first = static_cast<unsigned long long>(__float_as_uint(mean)) << 32 |
                                   (__float_as_uint(low) & ~255u) | tag;
  const unsigned long long second =
      static_cast<unsigned long long>(__float_as_uint(float(t.m2))) << 32 | packs << 8 | tag;
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(entry), "l"(first), "l"(second)
               : "memory");
}

// The moments of the team, once every member has published; for a whole warp.
__device__ __forceinline__ Total gather(const ulonglong2* entries, int team, int pack, unsigned tag,
                                        int lane) {
  constexpr int kEach = kMaxTeam / 32;
  unsigned long long first[kEach], second[kEach];
  bool ready;
  do {
    ready = true;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      first[k] = second[k] = tag;  // nothing, where there is no such member
      if (lane + 32 * k < team) {
        asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                     : "=l"(first[k]), "=l"(second[k])
                     : "l"(entries + lane + 32 * k)
                     : "memory");
      }
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      ready = ready && (first[k] & 255) == tag && (second[k] & 255) == tag;
    }
  } while (!__all_sync(0xffffffffu, ready));
  Moments part[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const bool there = lane + 32 * k < team;
    part[k] = {there ? float(unsigned(second[k]) >> 8) * pack : 0.f,
               __uint_as_float(unsigned(first[k] >> 32)),
               there ? __uint_as_float(unsigned(first[k]) & ~255u) : 0.f,
               __uint_as_float(unsigned(second[k] >> 32))};
  }
  return combine(part);
}

// -- the stream -----------------------------------------------------------------------------------

template <typename T>
struct Problem {
  const uint4* x;
  uint4* y;
  PerChannel<T> weight, bias, running_mean, running_var;
  void* new_mean;  // running_mean and running_var, to write
  void* new_var;
  int64_t* batches;
  double eps, momentum, count;  // elements of a channel
  int64_t channels;
  unsigned plane_packs, channel_packs;
  unsigned magic, shift;  // to divide by plane_packs: see sample_of
  int team;               // blocks that work on the same channel
  ulonglong2* board;
};

template <typename T>
__device__ __forceinline__ void store(void* to, bool wide, int64_t c, double value) {
  if (wide) {
    static_cast<float*>(to)[c] = static_cast<float>(value);
  } else {
    static_cast<T*>(to)[c] = narrow<T>(static_cast<float>(value));
  }
}

template <typename T>
__device__ __forceinline__ void update_running(const Problem<T>& p, int64_t c, double mean,
                                               double m2, int64_t batches) {
  const double factor = p.momentum < 0 ? 1.0 / static_cast<double>(batches + 1) : p.momentum;
  const double old_mean = p.running_mean.get(c), old_var = p.running_var.get(c);
  store<T>(p.new_mean, p.running_mean.wide, c, old_mean + factor * (mean - old_mean));
  store<T>(p.new_var, p.running_var.wide, c, old_var + factor * (m2 / (p.count - 1) - old_var));
}

struct Shared {
  uint4 kept[kKept][kThreads];
  float4 left[kLeft];
  float4 statistics;  // mean, low, 1 / sqrt(var + eps)
};
static_assert(sizeof(Shared) <= 232448);

// x is not wanted again soon, or not by this SM: L1 has nothing to keep.
__device__ __forceinline__ uint4 read(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__device__ __forceinline__ void copy_async(uint4* to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

__device__ __forceinline__ void close_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Wait for this thread's copies but for the last n groups of them.
__device__ __forceinline__ void wait_but(int n) {
  static_assert(kKept / kGroup == 7);
  switch (n) {
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
    case 4: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
    case 5: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 6;" ::: "memory"); break;
  }
}

// (x - mean - low) * invstd * weight + bias for one channel.
template <typename T>
struct Affine {
  float mean, scale, bias;

  __device__ __forceinline__ Affine(const Problem<T>& p, int64_t c, float4 statistics)
      : mean(statistics.x), scale(p.weight.get(c) * statistics.z) {
    bias = p.bias.get(c) - statistics.y * scale;
  }
  __device__ __forceinline__ uint4 operator()(uint4 raw) const {
    Pack<T> pack(raw);
#pragma unroll
    for (int e = 0; e < Pack<T>::kSize; ++e) {
      pack.v[e] = narrow<T>((widen(pack.v[e]) - mean) * scale + bias);
    }
    return pack.raw;
  }
};

// Where the packs of a block's units lie. The packs of a channel are numbered through all samples;
// unit j of a block is the packs from (rank + team * j) * kThreads.
template <typename T>
struct Places {
  unsigned plane_packs, skip, magic, shift, packs, first, stride;

  __device__ __forceinline__ Places(const Problem<T>& p, unsigned rank)
      : plane_packs(p.plane_packs),
        skip((static_cast<unsigned>(p.channels) - 1) * p.plane_packs),
        magic(p.magic),
        shift(p.shift),
        packs(p.channel_packs),
        first(rank * kThreads),
        stride(static_cast<unsigned>(p.team) * kThreads) {}
  // Pack `offset` of unit j, as a number within the channel.
  __device__ __forceinline__ unsigned pack(int j, unsigned offset) const {
    return first + j * stride + offset;
  }
  // Where that pack of channel c is, in packs from the start of x. The sample is pack / plane_packs
  // by multiplication, exact for 32 bits (T. Granlund, P. Montgomery 1994).
  __device__ __forceinline__ unsigned at(unsigned c, unsigned pack) const {
    const unsigned q = __umulhi(pack, magic), sample = (((pack - q) >> 1) + q) >> shift;
    return pack + c * plane_packs + sample * skip;
  }
};

__device__ __forceinline__ double block_sum(double v) {
  __shared__ double warps[32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
  for (int w = 0; w < blockDim.x / 32; ++w) v += warps[w];
  __syncthreads();
  return v;
}

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
"""

DECLARATION = """
at::Tensor batch_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      const at::Tensor& running_mean, const at::Tensor& running_var,
                      const at::Tensor& batches, double eps, double momentum);
"""

extension = load_inline(
    name="batchnorm2d_training_hopper",
    cpp_sources=[DECLARATION],
    cuda_sources=[HELPERS, KERNEL, LAUNCH],
    functions=["batch_norm"],
    extra_cuda_cflags=["-O3", "-gencode=arch=compute_90,code=sm_90"],
)
