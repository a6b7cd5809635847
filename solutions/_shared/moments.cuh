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
