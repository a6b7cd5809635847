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

// channels_last: a thread owns V neighbouring channels, so that their coefficients stay in
// registers while it walks down the rows. blockDim = (packs of channels, rows); a job is
// kUnroll * blockDim.y rows of one tile of channels. V is a full pack where C and the addresses
// allow it, else 1.
constexpr int kRowThreads = 256;
constexpr int kUnroll = 4;  // rows per thread, loaded before the first is used

template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads)
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
      if (row < rows) p[u] = *reinterpret_cast<const Elements<T, V>*>(x + row * channels + c);
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
        *reinterpret_cast<Elements<T, V>*>(y + row * channels + c) = p[u];
      }
    }
  }
}

at::Tensor normalise(const at::Tensor& x_, const at::Tensor& mean, const at::Tensor& var,
                     const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check(x_, {&mean, &var, &weight, &bias});
  const c10::cuda::CUDAGuard guard(x_.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor x = dense(x_), y = at::empty_like(x);
  if (y.numel() == 0) return y;
  const int64_t channels = x.size(1), plane_size = x.size(2) * x.size(3);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "PROBLEM", [&] {
    constexpr int kSize = Pack<scalar_t>::kSize;
    const auto state = state_of<scalar_t>(mean, var, weight, bias, eps);
    const scalar_t* from = x.data_ptr<scalar_t>();
    scalar_t* to = y.data_ptr<scalar_t>();
    if (in_rows(x)) {
      const bool vectors = channels % kSize == 0 && aligned(from) && aligned(to);
      const auto kernel =
          vectors ? normalise_rows<scalar_t, kSize> : normalise_rows<scalar_t, 1>;
      const int64_t rows = x.numel() / channels, wide = vectors ? channels / kSize : channels;
      const dim3 block = row_block(wide, kRowThreads);
      const int64_t tiles = ceil_div(wide, block.x);
      const int64_t jobs = tiles * ceil_div(rows, static_cast<int64_t>(block.y) * kUnroll);
      kernel<<<grid_for(jobs), block, 0, stream>>>(from, to, state, rows, channels, tiles, jobs);
    } else {
      // Where x and y are aligned alike, the cut of a plane holds for both.
      const bool vectors =
          reinterpret_cast<uintptr_t>(from) % 16 == reinterpret_cast<uintptr_t>(to) % 16;
      const int threads = threads_for(ceil_div(plane_size, kSize), kPlaneThreads);
      const int64_t planes = x.size(0) * channels;
      const dim3 grid(grid_for(ceil_div(plane_size, static_cast<int64_t>(threads) * kSize)),
                      static_cast<unsigned>(std::min<int64_t>(planes, 65535)));
      normalise_planes<<<grid, threads, 0, stream>>>(from, to, state, planes, channels,
                                                     plane_size, vectors);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}
