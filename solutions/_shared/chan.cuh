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
