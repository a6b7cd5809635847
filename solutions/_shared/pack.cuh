// What sums and products are computed in: float, for double input double.
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
