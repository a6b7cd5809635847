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
