// V neighbouring elements, loaded or stored by one instruction.
template <typename T, int V>
struct alignas(V * sizeof(T)) Elements {
  T v[V];
};
