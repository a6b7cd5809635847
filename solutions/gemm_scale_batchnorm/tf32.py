"""Linear, times a learned scale, then BatchNorm1d, at TF32's precision, faster than TF32.

    z = (x @ W^T + bias) * scale                               x (M, K), W (N, K), z (M, N)
    y = (z - mean[n]) / sqrt(var[n] + eps) * weight[n] + shift[n]

It takes float32 on compute capability 9.0 (H100, H200); solution.py takes everything else. All
figures: one H200, 2026-11-21, at 16384 x 4096 x 4096.

Idea     A TF32 number is a float32 with 11 significant bits; so is a float16, and the tensor cores
         multiply float16 twice as fast. This is hopper.py, which explains each step, with one
         product instead of three. Elements are rounded to nearest, as cuBLAS rounds for TF32: both
         err alike, to three digits.
Range    Powers of two give float16 the range that it lacks, as in hopper.py. An element more than
         28 binades under its row's top loses digits, down to an absolute 2^-25. With one of
         hopper.py's certificates these digits are under 2^-20 of sum |x| |w|; TF32's own rounding
         is up to 2^-10.
Mapping  A tile is 128 rows of W by 256 rows of x, 128 accumulators a thread. The tensor cores' sums
         truncate, by up to 2^-23 a step: at this precision that is no loss.
Bound    5.5e11 flops at the 401 TFLOP/s of TF32: 1.37 ms. At float16's 802: 0.69, with `split`,
         which moves 503 MB, 0.81.
"""

import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

PRODUCTS = 1  # of float16 numbers per element: hopper.py is this file with three

# >>> shared: hopper.py
PRODUCT = r"""
// One block per SM walks over its tiles; two neighbours make a cluster. A producer thread fills the
// stages, two warpgroups multiply; `full` and `empty` are the barriers between them.
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gemm(const __grid_constant__ Problem p) {
  extern __shared__ uint8_t raw[];
  // The swizzle is a function of the address: tiles start at multiples of 1024.
  const uint32_t base = (address(raw) + 1023) & ~1023u;
  const uint32_t full = base + kStages * kStageBytes, empty = full + 8 * kStages;
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  const int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(full + 8 * s, 1);    // the producer, and the bytes it announced
      barrier_init(empty + 8 * s, 16);  // eight consumer warps of each block
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  const int items = static_cast<int>(p.tiles_m * (p.tiles_n / 2)), clusters = gridDim.x / 2;
  const int slices = static_cast<int>(p.slices);
  const bool mild = p.alarm[1] == 0 && p.n % 2 == 0;
  int stage = 0, phase = 0;

  if (group == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 256) {
      for (int item = blockIdx.x / 2; item < items; item += clusters) {
        const Work work(p, item);
        const uint8_t* from_w = p.ws + int64_t(work.pair_n * 2 + rank) * slices * kBytesW;
        const uint8_t* from_x =
            p.xs + int64_t(work.tile_m) * slices * kBytesX + rank * (kBytesX / 2);
        for (int s = 0; s < slices; ++s) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          const uint32_t at = base + stage * kStageBytes, to = at + kBytesW + rank * (kBytesX / 2);
          barrier_expect(full + 8 * stage, kStageBytes);
          copy(at, from_w, kBytesW, full + 8 * stage);
          copy_to_both(to, from_x, kBytesX / 2, full + 8 * stage);
          from_w += kBytesW, from_x += kBytesX;
          if (++stage == kStages) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int lane = threadIdx.x % 32;
    const uint32_t mine = base + group * 64 * kRowBytes;
    const auto release = [&](int s) {
      if (lane < 2) barrier_arrive(empty + 8 * s, lane);
    };
    for (int item = blockIdx.x / 2; item < items; item += clusters) {
      const Work work(p, item);
      float sum[kTileM / 2];
      UNROLL for (int i = 0; i < kTileM / 2; ++i) sum[i] = 0;
      for (int s = 0; s < slices; ++s) {
        barrier_wait(full + 8 * stage, phase);
        const uint64_t w = descriptor(mine + stage * kStageBytes);
        const uint64_t x = descriptor(base + stage * kStageBytes + kBytesW);
        fence_registers();
        if constexpr (kProducts == 3) {
          // A fresh accumulator for the slice. The small products come first, while the
          // accumulator, which truncates, is small itself.
          float part[kTileM / 2];
          const uint64_t tail_w = w + kBytesW / 2 / 16, tail_x = x + kBytesX / 2 / 16;
          UNROLL for (int k = 0; k < kDepth / 8; k += 2) multiply(part, w + k, tail_x + k, k > 0);
          UNROLL for (int k = 0; k < kDepth / 8; k += 2) multiply(part, tail_w + k, x + k, 1);
          UNROLL for (int k = 0; k < kDepth / 8; k += 2) multiply(part, w + k, x + k, 1);
          commit();
          wait_products<0>();
          release(stage);
          // Meanwhile the other warpgroup's products keep the tensor cores busy.
          UNROLL for (int i = 0; i < kTileM / 2; ++i) sum[i] += part[i];
        } else {
          UNROLL for (int k = 0; k < kDepth / 8; k += 2) multiply(sum, w + k, x + k, 1);
          commit();
          wait_products<1>();  // of the slice before this one: its place is free
          if (s > 0) release(stage == 0 ? kStages - 1 : stage - 1);
        }
        if (++stage == kStages) stage = 0, phase ^= 1;
      }
      if constexpr (kProducts == 1) {
        wait_products<0>();
        release(stage == 0 ? kStages - 1 : stage - 1);
      }
      const int64_t tile_n = work.pair_n * 2 + rank;
      if (mild && (work.tile_m + 1) * kTileM <= p.m && (tile_n + 1) * kTileN <= p.n)
        epilogue<true>(p, sum, work.tile_m, tile_n);
      else
        epilogue<false>(p, sum, work.tile_m, tile_n);
    }
  }
  cluster_sync();  // no block leaves while the other may still arrive at its barriers
}
"""

EPILOGUE = r"""
// Which tile of x and which pair of tiles of W; pairs run fastest, in groups, so that what the
// blocks at work share of x and W comes out of L2.
struct Work {
  int tile_m, pair_n;
  DEVICE Work(const Problem& p, int item) {
    const int per_group = kGroup * static_cast<int>(p.tiles_m), group = item / per_group;
    const int rest = item - group * per_group,
              width = min(kGroup, static_cast<int>(p.tiles_n / 2) - group * kGroup);
    tile_m = rest / width;
    pair_n = group * kGroup + rest % width;
  }
};

// The tile in registers -> y. kWhole: the tile is full, and factors of rows may be multiplied
// freely.
template <bool kWhole>
DEVICE void epilogue(const Problem& p, float (&sum)[kTileM / 2], int64_t tile_m, int64_t tile_n) {
  const int lane = threadIdx.x % 32;
  // Accumulator layout (PTX ISA, wgmma D fragment): register 4 j + 2 i + e of a lane is row
  // lane / 4 + 8 i, here column n0 + i of y as `split` dealt them, and column 8 j + lane % 4 * 2 +
  // e, here a row of y. A warp stores 64 bytes of each of four rows at a time.
  const int64_t n0 = tile_n * kTileN + threadIdx.x / 32 * 16 + lane / 4 * 2;
  const int64_t m0 = tile_m * kTileM + lane % 4 * 2;
  // All loads come before the first store, so that their latencies overlap: a lane takes every
  // 32nd row's exponent, and the lanes shuffle.
  int shifts[kTileM / 32];
  UNROLL for (int i = 0; i < kTileM / 32; ++i) shifts[i] = p.row_x[tile_m * kTileM + i * 32 + lane];
  const int2 shift_w = *reinterpret_cast<const int2*>(p.row_w + n0);
  const Column columns[2] = {column_of(p, n0), column_of(p, n0 + 1)};
  const float factors[2] = {power(-clamp_to(shift_w.x, 126)), power(-clamp_to(shift_w.y, 126))};
  const int rows = kWhole ? kTileM : static_cast<int>(p.m - m0 < kTileM ? p.m - m0 : kTileM);
  float* at = p.y + m0 * p.n + n0;
  UNROLL for (int j = 0; j < kTileM / 8; ++j) {
    UNROLL for (int e = 0; e < 2; ++e) {
      const int shift = __shfl_sync(0xffffffff, shifts[j / 4], j % 4 * 8 + lane % 4 * 2 + e);
      float &a = sum[j * 4 + e], &b = sum[j * 4 + 2 + e];
      if (kWhole) {
        const float factor = power(-shift);
        a = columns[0].after(fmaf(a * factor, factors[0], columns[0].bias));
        b = columns[1].after(fmaf(b * factor, factors[1], columns[1].bias));
        float2* to = reinterpret_cast<float2*>(at + e * p.n);
        if (p.training) *to = make_float2(a, b);  // read again soon
        else __stcs(to, make_float2(a, b));
      } else {
        a = columns[0].of(scaled(a, -shift_w.x - shift));
        b = columns[1].of(scaled(b, -shift_w.y - shift));
        if (j * 8 + e < rows && n0 < p.n) at[e * p.n] = a;
        if (j * 8 + e < rows && n0 + 1 < p.n) at[e * p.n + 1] = b;
      }
    }
    at += 8 * p.n;
  }
  if (!p.training) return;
  // Moments of the tile's columns: a lane's values in two passes about its first one, then the
  // four lanes that share a column.
  UNROLL for (int i = 0; i < 2; ++i) {
    const float pivot = sum[i * 2];
    float total = 0, m2 = 0;
    int count = 0;
    UNROLL for (int j = 0; j < kTileM / 8; ++j) {
      UNROLL for (int e = 0; e < 2; ++e) {
        const bool valid = kWhole || j * 8 + e < rows;
        total += valid ? sum[j * 4 + i * 2 + e] - pivot : 0.0f;
        count += valid ? 1 : 0;
      }
    }
    const float low = count > 0 ? total / static_cast<float>(count) : 0.0f, mean = pivot + low;
    UNROLL for (int j = 0; j < kTileM / 8; ++j) {
      UNROLL for (int e = 0; e < 2; ++e) {
        const float d = kWhole || j * 8 + e < rows ? (sum[j * 4 + i * 2 + e] - pivot) - low : 0.0f;
        m2 += d * d;
      }
    }
    Moments<float> m{static_cast<float>(count), mean, low - (mean - pivot), m2};
    m = merge(m, shuffled(m, 1)), m = merge(m, shuffled(m, 2));
    if (lane % 4 == 0 && n0 + i < p.n) put_partial(p, tile_m, n0 + i, m);
  }
}
"""

SPLIT = r"""
// A power of two for each column of W: its typical size, from kSampled rows at most. Any power
// would do, since x is multiplied by it and W divided. Also clears the alarm.
constexpr int kSampled = 512;
__global__ void __launch_bounds__(1024) column_factors(Problem p) {
  __shared__ int sums[32][33], counts[32][33];
  const int tx = threadIdx.x, ty = threadIdx.y;
  if (blockIdx.x == 0)
    for (int64_t i = ty * 32 + tx; i < 2 + p.tiles_m + p.tiles_n; i += 1024) p.alarm[i] = 0;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * 32 + tx;
  const int64_t step = (p.n + kSampled - 1) / kSampled;
  int sum = 0, count = 0;
  UNROLL for (int i = 0; i < kSampled / 32; ++i) {
    const int64_t r = (i * 32 + ty) * step;
    const float v = c < p.k && r < p.n ? p.w[r * p.k + c] : 0.0f;
    const int field = __float_as_uint(v) >> 23 & 255;
    const bool normal = field != 0 && field != 255;
    sum += normal ? field - 127 : 0, count += normal ? 1 : 0;
  }
  sums[ty][tx] = sum, counts[ty][tx] = count;
  __syncthreads();
  if (ty != 0) return;
  int total = 0, all = 0;
  for (int i = 0; i < 32; ++i) total += sums[i][tx], all += counts[i][tx];
  const int mean = all == 0 ? 0 : int(rintf(float(total) / float(all)));
  p.column[c] = power(max(-kMild, min(kMild, mean)));
}

DEVICE void load_eight(const float* from, int64_t k0, int64_t k, bool vectors, float (&v)[8]) {
  if (vectors && k0 + 8 <= k) {
    const float4 a = reinterpret_cast<const float4*>(from + k0)[0];
    const float4 b = reinterpret_cast<const float4*>(from + k0)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else {
    UNROLL for (int i = 0; i < 8; ++i) v[i] = k0 + i < k ? from[k0 + i] : 0.0f;
  }
}

// Scales the rows of W and x and writes them as float16, see the head of this file. A block per
// row, first those of W; a thread has eight neighbouring elements of every 1024. The row stays in
// registers up to kHeld * 1024 elements and is read again beyond that.
constexpr int kHeld = 4;
__global__ void __launch_bounds__(128) split(Problem p, bool vectors) {
  __shared__ uint32_t tops[4];
  __shared__ int counts[4][2];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t row = blockIdx.x;
  const bool is_w = row < p.tiles_n * kTileN;
  if (!is_w) row -= p.tiles_n * kTileN;
  const int tile_rows = is_w ? kTileN : kTileM;
  const int64_t tile = row / tile_rows, padded = p.slices * kDepth;
  const float* from = (is_w ? p.w : p.x) + row * p.k;
  const int64_t k = row < (is_w ? p.n : p.m) ? p.k : 0;  // rows that fill up a tile are zero

  // Multiplies by the columns' factors. Where the row's top is within 2^+-kMild this is exact down
  // to 2^-66 of the top, which is less than is kept.
  const auto load = [&](int64_t k0, float (&v)[8]) {
    load_eight(from, k0, k, vectors, v);
    const float4 a = reinterpret_cast<const float4*>(p.column + k0)[0];
    const float4 b = reinterpret_cast<const float4*>(p.column + k0)[1];
    const float c[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    UNROLL for (int i = 0; i < 8; ++i) v[i] *= is_w ? inverse(c[i]) : c[i];
  };
  float v[kHeld][8];
  uint32_t top = 0;  // as bits: ordered as magnitudes are, infinity and NaN on top
  UNROLL for (int i = 0; i < kHeld; ++i) {
    const int64_t k0 = i * 1024 + threadIdx.x * 8;
    if (k0 < padded) load(k0, v[i]);
  }
  UNROLL for (int i = 0; i < kHeld; ++i) {
    if (i * 1024 + threadIdx.x * 8 >= padded) continue;
    UNROLL for (int e = 0; e < 8; ++e) top = max(top, __float_as_uint(v[i][e]) & 0x7fffffff);
  }
  for (int64_t k0 = kHeld * 1024 + threadIdx.x * 8; k0 < padded; k0 += 1024) {
    float f[8];
    load(k0, f);
    UNROLL for (int e = 0; e < 8; ++e) top = max(top, __float_as_uint(f[e]) & 0x7fffffff);
  }
  const auto block_max = [&](uint32_t value) {
    value = __reduce_max_sync(0xffffffff, value);
    __syncthreads();
    if (lane == 0) tops[warp] = value;
    __syncthreads();
    return max(max(tops[0], tops[1]), max(tops[2], tops[3]));
  };
  top = block_max(top);
  const int exponent = static_cast<int>(top >> 23) - 127;
  const bool mild = exponent >= -kMild && exponent <= kMild;
  int shift = kTop - exponent;
  bool finite = true, zero = false;
  if (!mild) {
    // Rare: by the exponents of the elements themselves, which no factor can push out of range.
    int highest = kNone;
    for (int64_t i = threadIdx.x; i < k; i += 128) {
      uint32_t bits;
      const int e = exponent_of(from[i], bits), c = exponent_of(p.column[i], bits);
      finite = finite && e != 128;
      highest = max(highest, e + (is_w ? -c : c));
    }
    highest = static_cast<int>(block_max(static_cast<uint32_t>(highest - 2 * kNone))) + 2 * kNone;
    finite = __syncthreads_and(finite);
    zero = highest < kNone / 2;
    shift = zero ? 0 : kTop - highest;
  }

  uint8_t* to = (is_w ? p.ws + tile * p.slices * kBytesW : p.xs + tile * p.slices * kBytesX);
  int inside = static_cast<int>(row % tile_rows);
  // Rows of W are dealt so that a lane's two accumulator rows are neighbours in y.
  if (is_w) inside = (inside & ~15) + (inside % 16 / 2) + inside % 2 * 8;
  const float factor = power(shift);
  int large[2] = {0, 0};
  const auto put = [&](float (&f)[8], int64_t k0) {
    if (!mild) {
      UNROLL for (int i = 0; i < 8; ++i) {
        uint32_t bits;
        const int c = exponent_of(p.column[k0 + i], bits);
        f[i] = k0 + i < k ? scaled(from[k0 + i], (is_w ? -c : c) + shift) : 0.0f;
      }
    }
    uint32_t heads[4], tails[4];
    UNROLL for (int i = 0; i < 8; i += 2) {
      const float a = mild ? f[i] * factor : f[i], b = mild ? f[i + 1] * factor : f[i + 1];
      const __half2 head = __floats2half2_rn(a, b);
      heads[i / 2] = *reinterpret_cast<const uint32_t*>(&head);
      if constexpr (kProducts == 3) {
        const float2 kept = __half22float2(head);
        const __half2 tail = __floats2half2_rn(a - kept.x, b - kept.y);
        tails[i / 2] = *reinterpret_cast<const uint32_t*>(&tail);
      }
      UNROLL for (int q = 0; q < 2; ++q) {
        const float least = power(kTop - span(is_w, q));
        large[q] += (fabsf(a) >= least ? 1 : 0) + (fabsf(b) >= least ? 1 : 0);
      }
    }
    // The 128-byte swizzle (PTX ISA, wgmma shared memory layout): piece c of row r at c ^ (r % 8).
    const int64_t slice = k0 / kDepth;
    const int piece = static_cast<int>(k0 % kDepth) / 8;
    uint8_t* at =
        to + slice * (is_w ? kBytesW : kBytesX) + inside * kRowBytes + (piece ^ (inside & 7)) * 16;
    *reinterpret_cast<uint4*>(at) = make_uint4(heads[0], heads[1], heads[2], heads[3]);
    at += tile_rows * kRowBytes;
    if constexpr (kProducts == 3)
      *reinterpret_cast<uint4*>(at) = make_uint4(tails[0], tails[1], tails[2], tails[3]);
  };
  UNROLL for (int i = 0; i < kHeld; ++i) {
    const int64_t k0 = i * 1024 + threadIdx.x * 8;
    if (k0 < padded) put(v[i], k0);
  }
  for (int64_t k0 = kHeld * 1024 + threadIdx.x * 8; k0 < padded; k0 += 1024) {
    float f[8];
    load(k0, f);
    put(f, k0);
  }
  UNROLL for (int q = 0; q < 2; ++q) {
    large[q] = __reduce_add_sync(0xffffffff, large[q]);
    if (lane == 0) counts[warp][q] = large[q];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  (is_w ? p.row_w : p.row_x)[row] = shift;
  if (shift > kMild || shift < -kMild) p.alarm[1] = 1;
  int failed = 0;
  UNROLL for (int q = 0; q < 2; ++q) {
    const int64_t count = counts[0][q] + counts[1][q] + counts[2][q] + counts[3][q];
    const bool enough = zero || count * 32 >= p.k * share(is_w, q);
    if (!finite || !enough) failed |= 1 << q;
  }
  if (failed != 0) {
    atomicOr((is_w ? p.unsafe_w : p.unsafe_x) + tile, failed);
    atomicOr(p.alarm, failed);
  }
}
"""

TRAINING = r"""
// blockDim = (8 columns, 32): a thread merges every 32nd tile of its column, in double.
__global__ void __launch_bounds__(256) finish_columns(Problem p) {
  __shared__ double counts[32][8], means[32][8], m2s[32][8];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * 8 + tx, all = p.tiles_m * p.n;
  Moments<double> m{0, 0, 0, 0};
  if (n < p.n) {
    for (int64_t tile = ty; tile < p.tiles_m; tile += 32) {
      const int64_t left = p.m - tile * kTileM, at = tile * p.n + n;
      const double rows = static_cast<double>(left < kTileM ? left : kTileM);
      m = merge(m, Moments<double>{rows, static_cast<double>(p.partial[at]) + p.partial[all + at],
                                   0, static_cast<double>(p.partial[2 * all + at])});
    }
  }
  for (int half = 16; half > 0; half /= 2) {
    counts[ty][tx] = m.n, means[ty][tx] = m.mean + m.low, m2s[ty][tx] = m.m2;
    __syncthreads();
    if (ty < half) {
      const int y = ty + half;
      m = merge(m, Moments<double>{counts[y][tx], means[y][tx], 0, m2s[y][tx]});
    }
    __syncthreads();
  }
  if (ty != 0 || n >= p.n) return;
  const double count = static_cast<double>(p.m), mean = m.mean + m.low;
  const float high = static_cast<float>(mean);
  p.statistics[n] = high;
  p.statistics[p.n + n] = static_cast<float>((m.mean - high) + m.low);
  p.statistics[2 * p.n + n] = static_cast<float>(1.0 / sqrt(m.m2 / count + p.eps));
  const double factor = p.momentum < 0 ? 1.0 / static_cast<double>(*p.batches + 1) : p.momentum;
  // As PyTorch does: not old + factor * (new - old), which would spread an infinite old value.
  p.mean[n] = static_cast<float>((1 - factor) * p.mean[n] + factor * mean);
  p.var[n] = static_cast<float>((1 - factor) * p.var[n] + factor * (m.m2 / (count - 1)));
}

// In place. A thread keeps the coefficients of kWide columns and walks down eight rows. The batch
// counter is written here because many blocks of finish_columns read it.
template <int kWide>
__global__ void __launch_bounds__(256) normalise(Problem p, int64_t strips) {
  if (blockIdx.x == 0 && threadIdx.x == 0) ++*p.batches;
  const int64_t n = (blockIdx.x % strips * 64 + threadIdx.x % 64) * kWide;
  const int64_t m0 = blockIdx.x / strips * 32 + threadIdx.x / 64;
  if (n >= p.n) return;
  float mean[kWide], low[kWide], factor[kWide], shift[kWide];
  UNROLL for (int i = 0; i < kWide; ++i) {
    mean[i] = p.statistics[n + i], low[i] = p.statistics[p.n + n + i];
    factor[i] = p.weight[n + i] * p.statistics[2 * p.n + n + i], shift[i] = p.shift[n + i];
  }
  struct alignas(4 * kWide) Wide { float v[kWide]; } v[8];
  UNROLL for (int r = 0; r < 8; ++r) {
    if (m0 + r * 4 < p.m) v[r] = *reinterpret_cast<const Wide*>(p.y + (m0 + r * 4) * p.n + n);
  }
  UNROLL for (int r = 0; r < 8; ++r) {
    if (m0 + r * 4 >= p.m) continue;
    UNROLL for (int i = 0; i < kWide; ++i)
      v[r].v[i] = ((v[r].v[i] - mean[i]) - low[i]) * factor[i] + shift[i];
    *reinterpret_cast<Wide*>(p.y + (m0 + r * 4) * p.n + n) = v[r];
  }
}
"""

EXACT = r"""
// What must not be split, in plain float32. A block of 16 x 16 threads makes kTileM rows by 64
// columns; a thread kTileM / 16 by 4.
__global__ void __launch_bounds__(256) exact(const __grid_constant__ Problem p, bool every_tile) {
  if (!every_tile && *p.alarm != 3) return;
  constexpr int kSlice = 16, kFours = kTileM / 64, kLoads = kTileM / 16;
  __shared__ __align__(16) float xs[kSlice][kTileM + 4], ws[kSlice][64 + 4];
  __shared__ float counts[16][64], means[16][64], lows[16][64], m2s[16][64];
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t strips = (p.n + 63) / 64;
  for (int64_t item = blockIdx.x; item < strips * p.tiles_m; item += gridDim.x) {
    const int64_t tile_m = item / strips, strip = item % strips;
    if (!every_tile && (p.unsafe_x[tile_m] | p.unsafe_w[strip / 2]) != 3) continue;
    const int64_t m0 = tile_m * kTileM, n0 = strip * 64;
    float sum[kFours * 4][4] = {};
    float next_x[kLoads], next_w[4];
    // Thread (ty, tx) loads column tx of rows ty, ty + 16, ... of the slice.
    const auto load = [&](int64_t k0) {
      UNROLL for (int i = 0; i < kLoads; ++i) {
        const int64_t r = m0 + i * 16 + ty;
        next_x[i] = r < p.m && k0 + tx < p.k ? p.x[r * p.k + k0 + tx] : 0.0f;
      }
      UNROLL for (int i = 0; i < 4; ++i) {
        const int64_t r = n0 + i * 16 + ty;
        next_w[i] = r < p.n && k0 + tx < p.k ? p.w[r * p.k + k0 + tx] : 0.0f;
      }
    };
    load(0);
    for (int64_t k0 = 0; k0 < p.k; k0 += kSlice) {
      __syncthreads();
      UNROLL for (int i = 0; i < kLoads; ++i) xs[tx][i * 16 + ty] = next_x[i];
      UNROLL for (int i = 0; i < 4; ++i) ws[tx][i * 16 + ty] = next_w[i];
      __syncthreads();
      if (k0 + kSlice < p.k) load(k0 + kSlice);
      UNROLL for (int k = 0; k < kSlice; ++k) {
        const float4 w = *reinterpret_cast<const float4*>(&ws[k][tx * 4]);
        UNROLL for (int q = 0; q < kFours; ++q) {
          const float4 x = *reinterpret_cast<const float4*>(&xs[k][q * 64 + ty * 4]);
          const float a[4] = {x.x, x.y, x.z, x.w}, b[4] = {w.x, w.y, w.z, w.w};
          UNROLL for (int i = 0; i < 4; ++i)
            UNROLL for (int j = 0; j < 4; ++j) sum[q * 4 + i][j] += a[i] * b[j];
        }
      }
    }
    __syncthreads();
    UNROLL for (int j = 0; j < 4; ++j) {
      const int64_t n = n0 + tx * 4 + j;
      const Column column = column_of(p, n);
      Moments<float> moments{0, 0, 0, 0};
      UNROLL for (int i = 0; i < kFours * 4; ++i) {
        const int64_t m = m0 + i / 4 * 64 + ty * 4 + i % 4;
        if (m >= p.m || n >= p.n) continue;
        const float v = column.of(sum[i][j]);
        p.y[m * p.n + n] = v;
        if (p.training) moments = merge(moments, Moments<float>{1, v, 0, 0});
      }
      const int c = tx * 4 + j;
      counts[ty][c] = moments.n, means[ty][c] = moments.mean;
      lows[ty][c] = moments.low, m2s[ty][c] = moments.m2;
    }
    __syncthreads();
    if (p.training && threadIdx.x < 64 && n0 + threadIdx.x < p.n) {
      const int c = threadIdx.x;
      Moments<float> moments{0, 0, 0, 0};
      for (int y = 0; y < 16; ++y)
        moments = merge(moments, Moments<float>{counts[y][c], means[y][c], lows[y][c], m2s[y][c]});
      put_partial(p, tile_m, n0 + c, moments);
    }
  }
}
"""

LAUNCH = r"""
int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
// Short sums go to the float32 units: the split's own rounding would show, and nothing is gained.
bool worth_splitting(const Problem& p) { return p.k >= 64; }

// Lays the workspace out and returns its size; the tiles come first, their copies want 16 bytes.
int64_t lay_out(Problem& p, void* workspace) {
  p.tiles_m = (p.m + kTileM - 1) / kTileM;
  p.tiles_n = up(p.n, 2 * kTileN) / kTileN;  // even: the two blocks of a cluster share a tile of x
  p.slices = up(p.k, 64) / kDepth;
  uint8_t *const start = static_cast<uint8_t*>(workspace), *at = start;
  const auto take = [&](auto*& pointer, int64_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
    at += up(bytes, 256);
  };
  if (worth_splitting(p)) {
    take(p.ws, p.tiles_n * p.slices * kBytesW);
    take(p.xs, p.tiles_m * p.slices * kBytesX);
    take(p.column, 4 * p.slices * kDepth);
    take(p.row_x, 4 * p.tiles_m * kTileM);
    take(p.row_w, 4 * p.tiles_n * kTileN);
    take(p.alarm, 4 * (2 + p.tiles_m + p.tiles_n));
    p.unsafe_x = p.alarm + 2, p.unsafe_w = p.unsafe_x + p.tiles_m;
  }
  if (p.training) take(p.partial, 12 * p.tiles_m * p.n), take(p.statistics, 12 * p.n);
  return at - start;
}

// Returns what CUDA says. Nothing synchronises.
cudaError_t launch(const Problem& p, cudaStream_t stream) {
  const bool fast = worth_splitting(p);
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess && fast)
    error = cudaFuncSetAttribute(gemm, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  if (fast) {
    const auto columns = static_cast<unsigned>((p.slices * kDepth + 31) / 32);
    column_factors<<<columns, dim3(32, 32), 0, stream>>>(p);
    const auto rows = static_cast<unsigned>(p.tiles_n * kTileN + p.tiles_m * kTileM);
    split<<<rows, 128, 0, stream>>>(p, p.k % 4 == 0 && aligned(p.x) && aligned(p.w));
    const int64_t tiles = p.tiles_m * p.tiles_n, most = processors / 2 * 2;
    gemm<<<static_cast<unsigned>(tiles < most ? tiles : most), 384, kSharedBytes, stream>>>(p);
  }
  exact<<<static_cast<unsigned>(processors * 2), 256, 0, stream>>>(p, !fast);
  if (p.training) {
    finish_columns<<<static_cast<unsigned>((p.n + 7) / 8), dim3(8, 32), 0, stream>>>(p);
    const bool wide = p.n % 4 == 0 && aligned(p.y);
    const int64_t strips = (p.n + (wide ? 256 : 64) - 1) / (wide ? 256 : 64);
    const auto blocks = static_cast<unsigned>(strips * ((p.m + 31) / 32));
    (wide ? normalise<4> : normalise<1>)<<<blocks, 256, 0, stream>>>(p, strips);
  }
  return cudaGetLastError();
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


# Both sources read this: the binding, with torch's headers, and the kernels, without them.
PROBLEM = r"""
#include <cuda_runtime_api.h>
#include <stdint.h>

struct Problem {
  const float *x, *w, *bias, *scale, *weight, *shift;
  float *mean, *var, *y;        // running statistics, updated in place when training
  long long* batches;
  uint8_t *xs, *ws;             // tiles of x and W as shared memory wants them
  float* column;                // x's columns are multiplied by these, W's divided
  int *row_x, *row_w;           // rows are multiplied by two to these powers
  int* alarm;                   // certificates that failed anywhere; whether any row is not mild
  int *unsafe_x, *unsafe_w;     // certificates that failed, per tile of x and of W
  float *partial, *statistics;  // training: [3][tiles_m][n] and [3][n]
  int64_t m, n, k;
  int64_t tiles_m, tiles_n, slices;
  int scale_step, training;     // step 0 where one scale serves all columns
  double eps, momentum;         // momentum < 0: cumulative average
};
int64_t lay_out(Problem& p, void* workspace);
cudaError_t launch(const Problem& p, cudaStream_t stream);
"""

# Compiled apart: nvcc takes 4 s without torch's headers, and five times as long with them.
BINDING = r"""
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#define WHO "gemm_scale_batchnorm: "

// x (M, K), w (N, K), bias (N,), scale of N elements or one and the BatchNorm state (N,), all
// float32 on one GPU. momentum < 0 stands for None. Updates mean, var and batches when training.
using Ref = const at::Tensor&;
at::Tensor gemm_scale_batchnorm(Ref x, Ref w, Ref bias, Ref scale, Ref weight, Ref shift, Ref mean,
                                Ref var, Ref batches, double eps, double momentum, bool training) {
  TORCH_CHECK(x.dim() == 2, WHO "expected x of 2 dimensions, got ", x.dim(), ".");
  const int64_t m = x.size(0), k = x.size(1), n = w.size(0);
  TORCH_CHECK(w.size(1) == k, WHO "x has ", k, " features, the weight takes ", w.size(1), ".");
  TORCH_CHECK_VALUE(!training || m > 1,
                    "Expected more than 1 value per channel when training, got input size ",
                    x.sizes());
  for (const at::Tensor* t : {&w, &bias, &scale, &weight, &shift, &mean, &var}) {
    TORCH_CHECK(t->device() == x.device(), WHO "x is on ", x.device(), " and the state on ",
                t->device(), ". Move one.");
    TORCH_CHECK(t->scalar_type() == x.scalar_type(), WHO "x is ", x.scalar_type(),
                " and the state ", t->scalar_type(), ". Convert one.");
    const bool fits = t == &w || t->numel() == n || (t == &scale && t->numel() == 1);
    TORCH_CHECK(fits && t->is_contiguous(), WHO "state of shape ", t->sizes(), " does not fit ", n,
                " columns.");
  }
  int major = 0, minor = 0;
  if (x.is_cuda()) {
    const auto ask = [&](int* answer, cudaDeviceAttr what) {
      C10_CUDA_CHECK(cudaDeviceGetAttribute(answer, what, x.get_device()));
    };
    ask(&major, cudaDevAttrComputeCapabilityMajor), ask(&minor, cudaDevAttrComputeCapabilityMinor);
  }
  TORCH_CHECK(major == 9 && minor == 0 && x.scalar_type() == at::kFloat && !x.is_neg(),
              WHO "takes float32 on a CUDA device of compute capability 9.0, got ", x.scalar_type(),
              " on ", x.device(), " (", major, ".", minor, "). Next: use solution.py.");
  TORCH_CHECK(batches.device() == x.device(), WHO "num_batches_tracked must lie beside x.");
  TORCH_CHECK(m + n < 2147483647 - 1024, WHO "too many rows: ", m, " of x and ", n, " of W.");
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor in = x.contiguous(), y = at::empty({m, n}, x.options());
  if (y.numel() == 0) return y;
  Problem p{};
  p.x = in.data_ptr<float>(), p.w = w.data_ptr<float>(), p.y = y.data_ptr<float>();
  p.bias = bias.data_ptr<float>(), p.scale = scale.data_ptr<float>();
  p.weight = weight.data_ptr<float>(), p.shift = shift.data_ptr<float>();
  p.mean = mean.data_ptr<float>(), p.var = var.data_ptr<float>();
  p.batches = reinterpret_cast<long long*>(batches.data_ptr<int64_t>());
  p.m = m, p.n = n, p.k = k, p.scale_step = scale.numel() == 1 ? 0 : 1;
  p.training = training ? 1 : 0, p.eps = eps, p.momentum = momentum;
  const at::Tensor workspace = at::empty({lay_out(p, nullptr)}, x.options().dtype(at::kByte));
  lay_out(p, workspace.data_ptr());
  C10_CUDA_CHECK(launch(p, c10::cuda::getCurrentCUDAStream()));
  if (!training) return y;
  // Written behind autograd's back: say so, as an in-place operator would.
  for (const at::Tensor* t : {&mean, &var, &batches})
    if (!t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
  return y;
}
"""

CONSTANTS = r"""
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <type_traits>
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")

constexpr int kProducts = PRODUCTS;
constexpr int kTileN = 2 * 64;     // rows of W in a tile: 64 for each of two warpgroups
constexpr int kNone = -(1 << 20);  // exponent of zero
constexpr int kTop = 14;           // a row's largest element is scaled to [2^14, 2^15)
constexpr int kMild = 60;          // exponents up to which factors are multiplied freely
// The two certificates: at least share / 32 of a row lie at most span binades under its top.
__host__ __device__ constexpr int span(bool w, int certificate) {
  return certificate == 0 ? (w ? 5 : 9) : (w ? 8 : 3);
}
__host__ __device__ constexpr int share(bool w, int certificate) {
  return certificate == 0 ? (w ? 24 : 12) : (w ? 31 : 2);
}

// Tuned on one H200, 2026-11-21, at full size; times of `gemm` alone, of three products and of one.
constexpr int kTileM = kProducts == 3 ? 192 : 256;  // rows of x in a tile: what registers hold
constexpr int kDepth = 64;  // of a slice along K: 2.44, 1.14 ms; 32 and more stages: 2.96, 1.66
constexpr int kStages = kProducts == 3 ? 2 : 4;  // slices in flight: what shared memory holds
constexpr int kGroup = 8;   // pairs of tiles of W: 2.40, 1.08 ms; 4: 2.42, 1.08; 16: 2.32, 1.09,
                            // but whole calls take 2.44 ms with 16 and 2.43 with 8
constexpr int kRowBytes = 2 * kDepth;
constexpr int kBytesW = (kProducts == 3 ? 2 : 1) * kTileN * kRowBytes;  // of a slice of a tile:
constexpr int kBytesX = (kProducts == 3 ? 2 : 1) * kTileM * kRowBytes;  // heads, then tails
constexpr int kStageBytes = kBytesW + kBytesX;
constexpr int kSharedBytes = kStages * (kStageBytes + 16) + 1024;
"""

HELPERS = r"""
DEVICE int clamp_to(int e, int limit) { return max(-limit, min(limit, e)); }

// 2^e as a float, for e of a normal float.
DEVICE float power(int e) { return __uint_as_float(static_cast<uint32_t>(e + 127) << 23); }

// 1 / c for a power of two.
DEVICE float inverse(float c) { return __uint_as_float((254u << 23) - __float_as_uint(c)); }

// v * 2^e by steps that neither overflow nor lose digits where the result does not.
DEVICE float scaled(float v, int e) {
  const int first = clamp_to(e, 120), second = clamp_to(e - first, 120),
            third = clamp_to(e - first - second, 120);
  return v * power(first) * power(second) * power(third);
}

// The exponent e of |v| = 1.f * 2^e, in bits that are normal afterwards; kNone for zero.
DEVICE int exponent_of(float v, uint32_t& bits) {
  bits = __float_as_uint(v);
  int field = bits >> 23 & 255;
  if (field == 0) {  // zero or denormal: 2^24 makes it normal, and is exact
    bits = __float_as_uint(v * 16777216.0f);
    field = static_cast<int>(bits >> 23 & 255) - 24;
    if ((bits & 0x7fffffff) == 0) return kNone;
  }
  return field - 127;
}

// What a column of the output is put through.
struct Column {
  float bias, scale, mean, factor, shift;
  DEVICE float of(float sum) const { return after(sum + bias); }
  DEVICE float after(float biased) const { return (biased * scale - mean) * factor + shift; }
};

// In training the output is z first: mean 0, factor 1 and shift 0 leave it as it is.
DEVICE Column column_of(const Problem& p, int64_t n) {
  if (n >= p.n) return {0, 0, 0, 0, 0};
  const float bias = p.bias[n], scale = p.scale[n * p.scale_step];
  if (p.training) return {bias, scale, 0, 1, 0};
  return {bias, scale, p.mean[n], p.weight[n] / sqrtf(p.var[n] + static_cast<float>(p.eps)),
          p.shift[n]};
}

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

DEVICE Moments<float> shuffled(const Moments<float>& m, int lanes) {
  return {__shfl_xor_sync(0xffffffff, m.n, lanes), __shfl_xor_sync(0xffffffff, m.mean, lanes),
          __shfl_xor_sync(0xffffffff, m.low, lanes), __shfl_xor_sync(0xffffffff, m.m2, lanes)};
}

DEVICE void put_partial(const Problem& p, int64_t tile, int64_t n, const Moments<float>& m) {
  const int64_t at = tile * p.n + n, all = p.tiles_m * p.n;
  p.partial[at] = m.mean, p.partial[all + at] = m.low, p.partial[2 * all + at] = m.m2;
}

// Barriers, copies and matrix instructions (PTX ISA 8.0, sm_90a), on 32-bit addresses in shared
// memory.
DEVICE uint32_t address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
DEVICE void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
DEVICE void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
DEVICE void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\nbra AGAIN;\nDONE:\n}\n" ::"r"(barrier), "r"(parity)
      : "memory");
}
// Arrives at the barrier of that name in block `rank` of the cluster.
DEVICE void barrier_arrive(uint32_t barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
#define BULK_COPY "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
DEVICE void copy(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile(BULK_COPY " [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
// The same into both blocks of the cluster; each block's barrier counts what it gets.
DEVICE void copy_to_both(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile(BULK_COPY ".multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from),
               "r"(bytes), "r"(barrier), "h"(static_cast<uint16_t>(3))
               : "memory");
}
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
DEVICE void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// d (64 x kTileM) = a * b^T, or += where `add`; a is 64 x 16, b kTileM x 16, both in shared memory.
// The last lines of this file write the registers out.
DEVICE void multiply(float (&d)[kTileM / 2], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, IN_ADD, 0;\n"
      "SHAPE {NAMES}, IN_A, IN_B, p, 1, 1, 0, 0;\n}\n"
      : REGISTERS : "l"(a), "l"(b), "r"(add));
}

// Matrix descriptor: address / 16; leading offset, unused when swizzled along K; the distance of
// groups of eight rows / 16; 1 for the 128-byte swizzle. 16 more of K are 32 bytes, two units, on.
DEVICE uint64_t descriptor(uint32_t at) {
  return 1ull << 62 | static_cast<uint64_t>(8 * kRowBytes / 16) << 32 | 1ull << 16 | at >> 4;
}
"""

# The instruction names its accumulators one by one, 96 or 128 of them.
_count = 96 if PRODUCTS == 3 else 128
for _name, _text in {
    "SHAPE": f"wgmma.mma_async.sync.aligned.m64n{2 * _count}k16.f32.f16.f16",
    "NAMES": ", ".join(f"%{i}" for i in range(_count)),
    "REGISTERS": ", ".join(f'"+f"(d[{i}])' for i in range(_count)),
    "IN_ADD": f"%{_count + 2}",
    "IN_A": f"%{_count}",
    "IN_B": f"%{_count + 1}",
}.items():
    HELPERS = HELPERS.replace(_name, _text)

extension = load_inline(
    name="gemm_scale_batchnorm_" + ("hopper" if PRODUCTS == 3 else "tf32"),
    cpp_sources=[PROBLEM, BINDING],
    cuda_sources=[PROBLEM, CONSTANTS, HELPERS, EPILOGUE, PRODUCT, SPLIT, TRAINING, EXACT, LAUNCH],
    functions=["gemm_scale_batchnorm"],
    extra_cflags=["-O2"],
    extra_cuda_cflags=[
        *["-O3", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a"],
        f"-DPRODUCTS={PRODUCTS}",
    ],
    no_implicit_headers=True,
)
# <<< shared: hopper.py
