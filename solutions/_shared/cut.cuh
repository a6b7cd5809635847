// A plane of n elements cut for 16-byte accesses: `head` elements up to the first aligned address,
// then `packs` packs, then a tail shorter than a pack. Without vectors (x and y aligned
// differently) everything is edge.
template <typename T>
struct Cut {
  int64_t head, packs, edges;

  __device__ __forceinline__ Cut(const T* p, int64_t n, bool vectors) {
    head = static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(p) % 16) % 16 / sizeof(T));
    packs = vectors && n > head ? (n - head) / Pack<T>::kSize : 0;
    if (packs == 0) head = 0;
    edges = n - packs * Pack<T>::kSize;
  }
  // The position in the plane of edge element i.
  __device__ __forceinline__ int64_t edge(int64_t i) const {
    return i < head ? i : i + packs * Pack<T>::kSize;
  }
};
