"""GroupNorm on Hopper: x is read once.

    y = (x - mean[n, g]) / sqrt(var[n, g] + eps) * weight[c] + bias[c]        g = c / (C / G)

Idea     A group is kept on the chip between its statistics and its output. One cooperative launch,
         one block per SM. All SMs (or teams of them, where groups are small) share the chunks of
         one group, up to 16 KiB of one channel each, and then go on to the next group. In a block
         the chunks stream through a ring of 14 slots in shared memory, and every warp has a role:

           1 loader      fills free slots by bulk copies, far ahead of the computation;
           8 moments     take count, mean and M2 of chunks as they arrive;
           1 publisher   tells the team the block's moments of a group;
           1 gatherer    merges the team's moments into the statistics of the group;
           8 output      normalise the chunks of a group whose statistics are known, free the slots.

         The roles wait for each other only at mbarriers in shared memory. So the exchange of the
         statistics (2 us and more) hides behind the chunks of the next group: 14 slots on 132 SMs
         are 29 MiB, three and a half groups of 8 MiB.
Bound    Bandwidth: one read and one write. (112, 64, 512, 512) float32 moves 14 GiB.
Digits   As in solution.py: moments, merged by Chan's formula, and a mean of two floats.

It takes float32, float16 and bfloat16 on compute capability 9.0; solution.py takes the rest. Planes
that are tiny or no multiple of 16 bytes, and groups that do not fit on the chip (20 MiB), go to
`group_norm_plain`: a block per group, three reads, not fast. The constants were measured on one
H200, 2026-11-21; docs/kernels.md has the log.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

KERNEL = r"""
constexpr int kWarps = 8, kThreads = 32 * kWarps;  // that take moments, and as many that write
constexpr int kBlock = 2 * kThreads + 96;          // and a loader, a publisher, a gatherer
constexpr int kPacks = 4, kChunkPacks = kThreads * kPacks;  // 16 bytes each; per thread, per chunk
constexpr int kSlots = 14;                                  // all that 227 KiB hold
constexpr int kMaxTeam = 160;
// Of a block's chunks of one group some must still leave slots for the next group's loads.
constexpr int kMaxShare = 10;
// A block that runs ahead of another is held back by its ring after at most 14 groups, and what it
// publishes then is seen by one that is 14 behind: 32 entries are never overwritten unread.
constexpr int kBoard = 32;
constexpr int kStatistics = 16;  // more than there can be groups in the ring
constexpr int kLeft = kWarps * 8;  // moments that the computing warps leave per group
static_assert(kBoard * kMaxTeam * 16 <= kBoardBytes);

template <typename T>
struct Problem {
  const uint4* x;
  uint4* y;
  PerChannel<T> weight, bias;
  double eps;
  int units;          // samples * groups
  int groups, width;  // of a sample; channels of a group
  int plane_packs, chunk_packs, plane_chunks;
  int chunks;  // of a group
  int team;    // blocks that work on the same group
  ulonglong2* board;
};

// The chunks of a block in order: of every group of its team those that fall to it. Dealing goes
// on from group to group, so that all blocks get the same number in the end.
struct Walk {
  int unit, step, chunk, start, chunks, team, units;

  template <typename T>
  DEVICE Walk(const Problem<T>& p, int team_index, int teams, int rank)
      : unit(team_index < teams ? team_index : p.units), step(teams), chunk(rank), start(rank),
        chunks(p.chunks), team(p.team), units(p.units) {}
  DEVICE bool done() const { return unit >= units; }
  DEVICE bool first() const { return chunk == start; }
  DEVICE bool last() const { return chunk + team >= chunks; }
  DEVICE void next() {
    chunk += team;
    if (chunk < chunks) return;
    unit += step;
    start -= chunks % team;
    if (start < 0) start += team;
    chunk = start;
  }
};

struct Slot {
  int at = 0;
  uint32_t parity = 0;

  DEVICE void next() {
    if (++at == kSlots) at = 0, parity ^= 1;
  }
};

struct Shared {
  uint4 ring[kSlots][kChunkPacks];
  float4 left[2][kLeft];
  float4 statistics[kStatistics];  // mean, low, 1 / sqrt(var + eps)
  uint64_t full[kSlots], empty[kSlots];
  uint64_t left_full[2], left_empty[2], statistics_full[kStatistics];
};
static_assert(sizeof(Shared) <= 232448);

template <typename T>
__global__ void __launch_bounds__(kBlock, 1) group_norm_stream(Problem<T> p) {
  extern __shared__ __align__(128) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int teams = gridDim.x / p.team, rank = blockIdx.x % p.team;
  const int team_index = blockIdx.x / p.team;
  ulonglong2* const board = p.board + team_index * p.team;
  Walk walk(p, team_index, teams, rank);

  for (int i = blockIdx.x * kBlock + thread; i < kBoard * gridDim.x; i += gridDim.x * kBlock)
    p.board[i] = make_ulonglong2(0, 0);
  if (thread == 0) {
    for (int i = 0; i < kSlots; ++i) init(&s.full[i], 1), init(&s.empty[i], kWarps);
    for (int i = 0; i < kStatistics; ++i) init(&s.statistics_full[i], 1);
    for (int i = 0; i < 2; ++i) init(&s.left_full[i], kLeft), init(&s.left_empty[i], 32);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  cooperative_groups::this_grid().sync();  // the board is empty

  if (warp == 2 * kWarps) {  // loader
    if (lane != 0) return;
    const uint64_t policy = evict_first();
    Slot slot;
#pragma unroll 1
    for (bool again = false; !walk.done(); walk.next()) {
      const int plane = walk.chunk / p.plane_chunks, part = walk.chunk % p.plane_chunks;
      const int begin = part * p.chunk_packs, packs = min(p.chunk_packs, p.plane_packs - begin);
      const uint4* from =
          p.x + (static_cast<int64_t>(walk.unit) * p.width + plane) * p.plane_packs + begin;
      if (again) wait(&s.empty[slot.at], slot.parity ^ 1);
      load(s.ring[slot.at], from, packs * 16, &s.full[slot.at], policy);
      slot.next();
      again = again || slot.at == 0;
    }
  } else if (warp == 2 * kWarps + 1) {  // publisher
#pragma unroll 1
    for (int k = 0; !walk.done(); ++k, walk.unit += walk.step) {
      wait(&s.left_full[k % 2], k / 2 % 2);
      Moments part[kLeft / 32];
      UNROLL for (int i = 0; i < kLeft / 32; ++i) {
        const float4 m = s.left[k % 2][lane + 32 * i];
        part[i] = {m.x, m.y, m.z, m.w};
      }
      const Total t = combine(part);
      arrive(&s.left_empty[k % 2]);
      if (lane != 0) continue;
      publish(board + k % kBoard * gridDim.x + rank, t, Pack<T>::kSize, (k + 1) & 255);
    }
  } else if (warp == 2 * kWarps + 2) {  // gatherer
#pragma unroll 1
    for (int k = 0; !walk.done(); ++k, walk.unit += walk.step) {
      const Total t = gather<kMaxTeam / 32>(board + k % kBoard * gridDim.x, p.team, Pack<T>::kSize,
                                            (k + 1) & 255, lane);
      if (lane == 0) {
        const float mean = float(t.mean);
        s.statistics[k % kStatistics] = make_float4(
            mean, float(t.mean - mean), float(1.0 / sqrt(t.m2 / t.n + p.eps)), 0.f);
        arrive(&s.statistics_full[k % kStatistics]);
      }
      __syncwarp();
    }
  } else if (warp < kWarps) {  // moments
    Slot slot;
    Moments m{0, 0, 0, 0};
#pragma unroll 1
    for (int k = 0; !walk.done(); walk.next()) {
      const uint4* from = s.ring[slot.at];
      const int begin = walk.chunk % p.plane_chunks * p.chunk_packs;
      const int packs = min(p.chunk_packs, p.plane_packs - begin);
      wait(&s.full[slot.at], slot.parity);
      if (packs == kChunkPacks) {
        uint4 raw[kPacks];
        UNROLL for (int u = 0; u < kPacks; ++u) raw[u] = from[u * kThreads + thread];
        add_packs<T, kPacks>(m, raw);
      } else {
#pragma unroll 1
        for (int i = thread; i < packs; i += kThreads) add_packs<T, 1>(m, from + i);
      }
      slot.next();
      if (walk.last()) {
        if (k >= 2) wait(&s.left_empty[k % 2], (k / 2 - 1) % 2);
        leave(m, s.left[k % 2], thread);
        m = Moments{0, 0, 0, 0};
        if (lane < 8) arrive(&s.left_full[k % 2]);  // each for what it left
        ++k;
      }
    }
  } else {  // output
    const int at = thread - kThreads;
    Slot slot;
    float4 known = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int k = 0; !walk.done(); walk.next()) {
      const int plane = walk.chunk / p.plane_chunks, part = walk.chunk % p.plane_chunks;
      const int begin = part * p.chunk_packs, packs = min(p.chunk_packs, p.plane_packs - begin);
      const int c = walk.unit % p.groups * p.width + plane;
      const float weight = p.weight.get(c), offset = p.bias.get(c);
      const uint4* from = s.ring[slot.at];
      uint4* to = p.y + (static_cast<int64_t>(walk.unit) * p.width + plane) * p.plane_packs + begin;
      if (walk.first()) {
        wait(&s.statistics_full[k % kStatistics], k / kStatistics % 2);
        known = s.statistics[k++ % kStatistics];
      }
      const float scale = weight * known.z, bias = offset - known.y * scale;
      const auto affine = [&](uint4 raw) {
        Pack<T> pack(raw);
        UNROLL for (int e = 0; e < Pack<T>::kSize; ++e)
          pack.v[e] = narrow<T>((widen(pack.v[e]) - known.x) * scale + bias);
        return pack.raw;
      };
      wait(&s.full[slot.at], slot.parity);  // long since; but this thread has not seen it yet
      if (packs == kChunkPacks) {
        uint4 raw[kPacks];
        UNROLL for (int u = 0; u < kPacks; ++u) raw[u] = from[u * kThreads + at];
        UNROLL for (int u = 0; u < kPacks; ++u) __stcs(to + u * kThreads + at, affine(raw[u]));
      } else {
#pragma unroll 1
        for (int i = at; i < packs; i += kThreads) __stcs(to + i, affine(from[i]));
      }
      arrive_warp(&s.empty[slot.at]);
      slot.next();
    }
  }
}

constexpr int kPlainThreads = 1024;

DEVICE double block_sum(double v) {
  __shared__ double warps[kPlainThreads / 32];
  UNROLL for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
  for (int w = 0; w < kPlainThreads / 32; ++w) v += warps[w];
  __syncthreads();
  return v;
}

// What does not stream. A block per group: mean, squared deviations, output.
template <typename T>
__global__ void __launch_bounds__(kPlainThreads)
    group_norm_plain(const T* x, T* y, PerChannel<T> weight, PerChannel<T> bias, double eps,
                     int64_t units, int64_t groups, int64_t width, int64_t plane_size) {
  const int64_t size = width * plane_size;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const T* from = x + unit * size;
    T* to = y + unit * size;
    const double pivot = widen(from[0]);
    double sum = 0, square = 0;
    for (int64_t i = threadIdx.x; i < size; i += kPlainThreads) sum += widen(from[i]) - pivot;
    const double mean = pivot + block_sum(sum) / size;
    for (int64_t i = threadIdx.x; i < size; i += kPlainThreads) {
      const double d = widen(from[i]) - mean;
      square += d * d;
    }
    const double invstd = 1.0 / sqrt(block_sum(square) / size + eps);
    const float high = static_cast<float>(mean), low = static_cast<float>(mean - high);
    for (int64_t i = threadIdx.x; i < size; i += kPlainThreads) {
      const int64_t c = unit % groups * width + i / plane_size;
      const float scale = static_cast<float>(weight.get(c) * invstd);
      to[i] = narrow<T>(((widen(from[i]) - high) - low) * scale + bias.get(c));
    }
  }
}
"""

LAUNCH = r"""
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many blocks share a group: the least time, counted in chunks of the busiest block. The
// exchange of a group's statistics takes as long as about three chunks. 0: no team holds a group.
int team_for(int64_t chunks, int64_t units, int blocks) {
  int best = 0;
  double least = INFINITY;
  for (int team = 1; team <= std::min<int64_t>(blocks, chunks); ++team) {
    if (ceil_div(chunks, team) > kMaxShare) continue;
    const double share = static_cast<double>(chunks) / team;
    const double rounds = static_cast<double>(ceil_div(units, blocks / team));
    const double time = rounds * std::max(share, 3.0) * (1 + 0.01 * std::fabs(share - 4));
    if (time < least) least = time, best = team;
  }
  return best;
}

template <typename T>
cudaError_t launch(const Call& c) {
  const auto stream = static_cast<cudaStream_t>(c.stream);
  const PerChannel<T> weight{c.weight, c.wide}, bias{c.bias, c.wide};
  const int64_t units = c.samples * c.groups, width = c.channels / c.groups;
  const int64_t plane_bytes = c.plane_size * static_cast<int64_t>(sizeof(T));
  const int64_t plane_packs = plane_bytes / 16, plane_chunks = ceil_div(plane_packs, kChunkPacks);
  const int64_t chunks = width * plane_chunks;
  int blocks = 0;
  cudaError_t error = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, c.device);
  if (error != cudaSuccess) return error;
  blocks = std::min(blocks, kMaxTeam);

  const auto addresses = reinterpret_cast<uintptr_t>(c.x) | reinterpret_cast<uintptr_t>(c.y);
  // A chunk below 2 KiB is not worth its barriers.
  const bool streams = addresses % 16 == 0 && plane_bytes % 16 == 0 && plane_packs >= 128 &&
                       plane_packs < 1 << 30 && units < 1 << 30 && chunks < 1 << 20;
  const int team = streams ? team_for(chunks, units, blocks) : 0;
  if (team == 0) {
    const auto grid = static_cast<unsigned>(std::min<int64_t>(units, 2147483647));
    group_norm_plain<T><<<grid, kPlainThreads, 0, stream>>>(
        static_cast<const T*>(c.x), static_cast<T*>(c.y), weight, bias, c.eps, units, c.groups,
        width, c.plane_size);
    return cudaGetLastError();
  }
  Problem<T> p{static_cast<const uint4*>(c.x), static_cast<uint4*>(c.y), weight, bias, c.eps,
               int(units), int(c.groups), int(width), int(plane_packs),
               int(ceil_div(plane_packs, plane_chunks)), int(plane_chunks), int(chunks), team,
               static_cast<ulonglong2*>(c.board)};
  auto* kernel = group_norm_stream<T>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
  if (error != cudaSuccess) return error;
  const int64_t teams = std::min<int64_t>(blocks / team, units);
  void* arguments[] = {&p};
  return cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(teams * team)),
                                     dim3(kBlock), arguments, sizeof(Shared), stream);
}

cudaError_t group_norm_cuda(const Call& call) {
  if (call.half) return launch<__half>(call);
  return call.bfloat16 ? launch<__nv_bfloat16>(call) : launch<float>(call);
}
"""

# Compiled apart from the kernels: nvcc takes 2 s without torch's headers.
BINDING = r"""
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>

// x (N, C, *); weight and bias (C,), of x's dtype or float32 beside 16-bit x.
using Ref = const at::Tensor&;
at::Tensor group_norm(Ref x, int64_t groups, Ref weight, Ref bias, double eps) {
  const auto dtype = x.scalar_type(), state = weight.scalar_type();
  const bool half = dtype == at::kHalf, bfloat16 = dtype == at::kBFloat16;
  TORCH_CHECK(x.is_cuda() && (half || bfloat16 || dtype == at::kFloat),
              "groupnorm/hopper: takes float32, float16 and bfloat16 on a GPU, got ", dtype, " on ",
              x.device(), ". Next: use solution.py beside this file.");
  TORCH_CHECK(x.dim() >= 2 && x.layout() == at::kStrided && !x.is_neg(),
              "groupnorm: expected a plain x of at least 2 dimensions, (N, C, *), got ", x.sizes());
  const int64_t samples = x.size(0), channels = x.size(1);
  for (const at::Tensor* t : {&weight, &bias}) {
    TORCH_CHECK(t->device() == x.device(), "groupnorm: x is on ", x.device(), " and the state on ",
                t->device(), ". Move one.");
    TORCH_CHECK(t->numel() == channels && t->is_contiguous(), "groupnorm: x has ", channels,
                " channels, the state has shape ", t->sizes(), ".");
    TORCH_CHECK(t->scalar_type() == state && (state == dtype || state == at::kFloat),
                "groupnorm: x is ", dtype, ", the state ", t->scalar_type(), ". Convert one.");
  }
  TORCH_CHECK_VALUE(x.numel() == 0 || x.numel() / groups > 1,
                    "Expected more than 1 value per channel when training, got input size ",
                    x.sizes());
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor in = x.contiguous(), out = at::empty_like(in);
  if (out.numel() == 0) return out;
  const at::Tensor board = at::empty({kBoardBytes}, x.options().dtype(at::kByte));
  C10_CUDA_CHECK(group_norm_cuda({in.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr(),
                                  board.data_ptr(), half, bfloat16, state != dtype, samples,
                                  channels, groups, in.numel() / (samples * channels), eps,
                                  x.get_device(), c10::cuda::getCurrentCUDAStream().stream()}));
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


CALL = r"""
#include <cuda_runtime_api.h>
#include <cstdint>

struct Call {
  const void *x, *weight, *bias;
  void *y, *board;  // board: kBoardBytes of scratch
  bool half, bfloat16, wide;  // dtype of x, else float; wide: the state is float beside 16-bit x
  int64_t samples, channels, groups, plane_size;
  double eps;
  int device;
  void* stream;
};
constexpr int64_t kBoardBytes = 1 << 17;
cudaError_t group_norm_cuda(const Call& call);
"""

HELPERS = r"""
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <algorithm>
#include <cmath>
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
DEVICE float widen(float v) { return v; }
DEVICE float widen(__half v) { return __half2float(v); }
DEVICE float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T> DEVICE T narrow(float v) { return v; }
template <> DEVICE __half narrow(float v) { return __float2half_rn(v); }
template <> DEVICE __nv_bfloat16 narrow(float v) { return __float2bfloat16_rn(v); }

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

  DEVICE float get(int64_t c) const {
    return wide ? static_cast<const float*>(data)[c] : widen(static_cast<const T*>(data)[c]);
  }
};

// mbarriers in shared memory, and bulk copies (PTX ISA 8.0).
DEVICE uint32_t address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
DEVICE void init(uint64_t* at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(at)), "r"(arrivals)
               : "memory");
}
DEVICE void arrive(uint64_t* at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(at)) : "memory");
}
DEVICE void arrive_warp(uint64_t* at) {  // once for all lanes
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(at);
}
DEVICE void wait(uint64_t* at, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done) : "r"(address(at)), "r"(parity) : "memory");
  } while (done == 0);
}

// x is not wanted again: it need not displace anything from L2.
DEVICE uint64_t evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// One thread starts the copy; the barrier completes when the bytes are there.
DEVICE void load(void* to, const void* from, uint32_t bytes, uint64_t* barrier, uint64_t policy) {
  const uint32_t b = address(barrier);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(address(to)), "l"(from), "r"(bytes), "r"(b), "l"(policy)
      : "memory");
}

// Count, mean and sum of squared deviations. The mean is mean + low, two numbers that do not
// overlap: with values around 1e5 a float's mean alone is off by 0.004, and so is every output.
struct Moments {
  float n, mean, low, m2;
};

// Chan's formula.
DEVICE Moments merge(const Moments& p, const Moments& q) {
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
DEVICE void add(Moments& m, const float* v) {
  constexpr int kSums = 4;
  float sum[kSums] = {}, square[kSums] = {};
  UNROLL for (int k = 0; k < K; ++k) sum[k % kSums] += v[k] - v[0];
  const float low = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * (1.f / K), mean = v[0] + low;
  UNROLL for (int k = 0; k < K; ++k) {
    const float d = (v[k] - v[0]) - low;
    square[k % kSums] += d * d;
  }
  m = merge(m, Moments{float(K), mean, low - (mean - v[0]),
                       (square[0] + square[1]) + (square[2] + square[3])});
}

// Merge N packs, 16 values at a time.
template <typename T, int N>
DEVICE void add_packs(Moments& m, const uint4* raw) {
  constexpr int kSize = Pack<T>::kSize, kAtOnce = N * kSize <= 16 ? N : 16 / kSize;
  UNROLL for (int first = 0; first < N; first += kAtOnce) {
    float v[kAtOnce * kSize];
    UNROLL for (int u = 0; u < kAtOnce; ++u) {
      const Pack<T> pack(raw[first + u]);
      UNROLL for (int e = 0; e < kSize; ++e) v[u * kSize + e] = widen(pack.v[e]);
    }
    add<kAtOnce * kSize>(m, v);
  }
}

DEVICE Moments shuffle(const Moments& m, int step) {
  return {__shfl_xor_sync(0xffffffffu, m.n, step), __shfl_xor_sync(0xffffffffu, m.mean, step),
          __shfl_xor_sync(0xffffffffu, m.low, step), __shfl_xor_sync(0xffffffffu, m.m2, step)};
}

// A computing warp leaves a quarter of its lanes' moments for the publisher.
DEVICE void leave(Moments m, float4* left, int thread) {
  m = merge(m, shuffle(m, 16));
  m = merge(m, shuffle(m, 8));
  if (thread % 32 < 8) left[thread / 32 * 8 + thread % 32] = make_float4(m.n, m.mean, m.low, m.m2);
}

struct Total {
  double n, mean, m2;
};

// The moments of K entries per lane, to every lane, in one pass over deviations from one of the
// means: doubles have digits to spare for what cancels, and one pass is half the latency of two.
template <int K>
DEVICE Total combine(const Moments (&part)[K]) {
  const double pivot = __shfl_sync(0xffffffffu, part[0].mean, 0);
  double n = 0, sum = 0, square = 0;
  UNROLL for (int k = 0; k < K; ++k) {
    const double d = (double(part[k].mean) - pivot) + double(part[k].low), count = part[k].n;
    n += count, sum += count * d, square += double(part[k].m2) + count * d * d;
  }
  UNROLL for (int step = 16; step > 0; step /= 2) {
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
DEVICE void publish(ulonglong2* entry, const Total& t, int pack, unsigned tag) {
  const float mean = float(t.mean), low = float(t.mean - mean);
  const unsigned packs = static_cast<unsigned>(t.n / pack + 0.5);
  const unsigned long long first = static_cast<unsigned long long>(__float_as_uint(mean)) << 32 |
                                   (__float_as_uint(low) & ~255u) | tag;
  const unsigned long long second =
      static_cast<unsigned long long>(__float_as_uint(float(t.m2))) << 32 | packs << 8 | tag;
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(entry), "l"(first), "l"(second)
               : "memory");
}

// The moments of the team, of up to 32 * kEach blocks, once every one of them has published; for a
// whole warp.
template <int kEach>
DEVICE Total gather(const ulonglong2* entries, int team, int pack, unsigned tag, int lane) {
  unsigned long long first[kEach], second[kEach];
  bool ready;
  do {
    ready = true;
    UNROLL for (int k = 0; k < kEach; ++k) {
      first[k] = second[k] = tag;  // nothing, where there is no such member
      if (lane + 32 * k < team) {
        asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                     : "=l"(first[k]), "=l"(second[k])
                     : "l"(entries + lane + 32 * k)
                     : "memory");
      }
    }
    UNROLL for (int k = 0; k < kEach; ++k)
      ready = ready && (first[k] & 255) == tag && (second[k] & 255) == tag;
  } while (!__all_sync(0xffffffffu, ready));
  Moments part[kEach];
  UNROLL for (int k = 0; k < kEach; ++k) {
    const bool there = lane + 32 * k < team;
    part[k] = {there ? float(unsigned(second[k]) >> 8) * pack : 0.f,
               __uint_as_float(unsigned(first[k] >> 32)),
               there ? __uint_as_float(unsigned(first[k]) & ~255u) : 0.f,
               __uint_as_float(unsigned(second[k] >> 32))};
  }
  return combine(part);
}
"""

extension = load_inline(
    name="groupnorm_hopper",
    cpp_sources=[CALL + BINDING],
    cuda_sources=[CALL, HELPERS, KERNEL, LAUNCH],
    functions=["group_norm"],
    extra_cflags=["-O2"],
    extra_cuda_cflags=["-O3", "-gencode=arch=compute_90,code=sm_90"],
    no_implicit_headers=True,
)
