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
