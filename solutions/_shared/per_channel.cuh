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
PerChannel<T> per_channel(const at::Tensor& t) {
  return {t.data_ptr(), t.scalar_type() != c10::CppTypeToScalarType<T>::value};
}
