template <typename T>
struct State {
  using A = typename Accumulator<T>::type;
  PerChannel<T> mean, var, weight, bias;
  A eps;
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

template <typename T>
State<T> state_of(const at::Tensor& mean, const at::Tensor& var, const at::Tensor& weight,
                  const at::Tensor& bias, double eps) {
  return {per_channel<T>(mean), per_channel<T>(var), per_channel<T>(weight), per_channel<T>(bias),
          static_cast<typename Accumulator<T>::type>(eps)};
}

unsigned grid_for(int64_t jobs) {
  return static_cast<unsigned>(std::min<int64_t>(jobs, 2147483647));
}

// Threads side by side for `wide` packs of channels, and as many rows as the block has room for.
dim3 row_block(int64_t wide, int threads) {
  const int across = wide > 32 ? 64 : 32;
  return dim3(across, threads / across);
}
