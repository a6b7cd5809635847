// Cooperative groups: the block, tiles of it, coalesced lanes, the grid.
//
// Group operations take their source line as a default argument, which is the caller's line.
#ifndef EMU_COOPERATIVE_GROUPS_H
#define EMU_COOPERATIVE_GROUPS_H
#include "cuda_runtime.h"

#define EMU_LINE int line = __builtin_LINE()

namespace cooperative_groups {

namespace detail {
static inline unsigned lane() { return ::emu::linear_thread() % 32; }
// The warp operation's widths above 16 bytes travel in pieces.
template <class T>
T exchange(int kind, int line, unsigned mask, T value, int source, int width) {
    if constexpr (sizeof(T) <= 16) {
        return ::emu::warp_exchange(kind, line, mask, value, source, width);
    } else {
        T out;
        for (size_t at = 0; at < sizeof(T); at += 16) {
            struct Piece { unsigned char bytes[16]; } piece{};
            const size_t n = sizeof(T) - at < 16 ? sizeof(T) - at : 16;
            __builtin_memcpy(&piece, reinterpret_cast<const char*>(&value) + at, n);
            piece = ::emu::warp_exchange(kind, line, mask, piece, source, width);
            __builtin_memcpy(reinterpret_cast<char*>(&out) + at, &piece, n);
        }
        return out;
    }
}
}  // namespace detail

struct thread_group {
    unsigned mask = 0;  // lanes, for groups within a warp; 0 for the block
    unsigned count = 0, rank = 0;
    unsigned size() const { return count; }
    unsigned num_threads() const { return count; }
    unsigned thread_rank() const { return rank; }
    void sync(EMU_LINE) const {
        if (mask)
            ::emu::syncwarp(line, mask);
        else
            emu_barrier(line);
    }
};

struct thread_block {
    static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
    static unsigned num_threads() { return size(); }
    static unsigned thread_rank() { return ::emu::linear_thread(); }
    static dim3 group_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
    static dim3 thread_index() { return dim3(threadIdx.x, threadIdx.y, threadIdx.z); }
    static dim3 group_dim() { return dim3(blockDim.x, blockDim.y, blockDim.z); }
    static dim3 dim_threads() { return group_dim(); }
    static void sync(EMU_LINE) { emu_barrier(line); }
    struct arrival_token {};
    static arrival_token barrier_arrive() { return {}; }
    static void barrier_wait(arrival_token, EMU_LINE) { emu_barrier(line); }
    operator thread_group() const { return {0, size(), thread_rank()}; }
};
static inline thread_block this_thread_block() { return {}; }

struct grid_group {
    static bool is_valid() { return emu_grid_is_valid(); }
    static void sync(EMU_LINE) { emu_grid_barrier(line); }
    static unsigned long long size() { return num_blocks() * thread_block::size(); }
    static unsigned long long num_threads() { return size(); }
    static unsigned long long num_blocks() { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
    static unsigned long long block_rank() {
        return blockIdx.x + 1ull * gridDim.x * (blockIdx.y + 1ull * gridDim.y * blockIdx.z);
    }
    static unsigned long long thread_rank() { return block_rank() * thread_block::size() + thread_block::thread_rank(); }
    static dim3 group_dim() { return dim3(gridDim.x, gridDim.y, gridDim.z); }
    static dim3 dim_blocks() { return group_dim(); }
    static dim3 block_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
};
static inline grid_group this_grid() { return {}; }

struct coalesced_group {
    unsigned mask;
    unsigned size() const { return static_cast<unsigned>(__builtin_popcount(mask)); }
    unsigned num_threads() const { return size(); }
    unsigned thread_rank() const {
        return static_cast<unsigned>(__builtin_popcount(mask & ((1u << detail::lane()) - 1)));
    }
    void sync(EMU_LINE) const { ::emu::syncwarp(line, mask); }
    int lane_of(int rank) const {  // the rank-th lane of the mask
        unsigned m = mask;
        for (int i = 0; i < rank && m; ++i) m &= m - 1;
        return m ? __builtin_ctz(m) : 0;
    }
    template <class T>
    T shfl(T v, int rank, EMU_LINE) const {
        return detail::exchange(EMU_SHUFFLE_INDEX, line, mask, v, lane_of(rank), 32);
    }
    template <class T>
    T shfl_down(T v, int delta, EMU_LINE) const {
        const int r = static_cast<int>(thread_rank()) + delta;
        return shfl(v, r < static_cast<int>(size()) ? r : static_cast<int>(thread_rank()), line);
    }
    template <class T>
    T shfl_up(T v, int delta, EMU_LINE) const {
        const int r = static_cast<int>(thread_rank()) - delta;
        return shfl(v, r >= 0 ? r : static_cast<int>(thread_rank()), line);
    }
    int any(int p, EMU_LINE) const { return ::emu::any(line, mask, p); }
    int all(int p, EMU_LINE) const { return ::emu::all(line, mask, p); }
    unsigned ballot(int p, EMU_LINE) const {
        const unsigned word = ::emu::ballot(line, mask, p);
        unsigned out = 0, bit = 1;
        for (unsigned m = mask; m; m &= m - 1, bit <<= 1)
            if (word >> __builtin_ctz(m) & 1) out |= bit;
        return out;
    }
    unsigned meta_group_size() const { return 1; }
    unsigned meta_group_rank() const { return 0; }
    operator thread_group() const { return {mask, size(), thread_rank()}; }
};
static inline coalesced_group coalesced_threads(EMU_LINE) { return {::emu::converged(line)}; }

template <unsigned Size, class Parent = void>
struct thread_block_tile {
    static_assert((Size & (Size - 1)) == 0 && Size <= 1024, "a tile's size is a power of two up to 1024");
    static constexpr unsigned size() { return Size; }
    static constexpr unsigned num_threads() { return Size; }
    static unsigned thread_rank() { return ::emu::linear_thread() % Size; }
    static unsigned meta_group_size() { return (thread_block::size() + Size - 1) / Size; }
    static unsigned meta_group_rank() { return ::emu::linear_thread() / Size; }
    static unsigned lanes() {
        if constexpr (Size >= 32) return 0xffffffffu;
        return ((1u << Size) - 1) << (detail::lane() / Size * Size);
    }
    void sync(EMU_LINE) const {
        if constexpr (Size <= 32)
            ::emu::syncwarp(line, lanes());
        else
            emu_named_barrier(line, static_cast<int>(meta_group_rank()), Size);
    }
    template <class T>
    T shfl(T v, int rank, EMU_LINE) const { return detail::exchange(EMU_SHUFFLE_INDEX, line, lanes(), v, rank, Size); }
    template <class T>
    T shfl_down(T v, unsigned d, EMU_LINE) const {
        return detail::exchange(EMU_SHUFFLE_DOWN, line, lanes(), v, static_cast<int>(d), Size);
    }
    template <class T>
    T shfl_up(T v, unsigned d, EMU_LINE) const {
        return detail::exchange(EMU_SHUFFLE_UP, line, lanes(), v, static_cast<int>(d), Size);
    }
    template <class T>
    T shfl_xor(T v, unsigned m, EMU_LINE) const {
        return detail::exchange(EMU_SHUFFLE_XOR, line, lanes(), v, static_cast<int>(m), Size);
    }
    int any(int p, EMU_LINE) const { return ::emu::any(line, lanes(), p); }
    int all(int p, EMU_LINE) const { return ::emu::all(line, lanes(), p); }
    unsigned ballot(int p, EMU_LINE) const {
        return ::emu::ballot(line, lanes(), p) >> (detail::lane() / Size * Size % 32) & (Size >= 32 ? 0xffffffffu : (1u << Size % 32) - 1);
    }
    template <class T>
    unsigned match_any(T v, EMU_LINE) const {
        return ::emu::match_any(line, lanes(), v) >> (detail::lane() / Size * Size % 32);
    }
    operator thread_group() const { return {Size <= 32 ? lanes() : 0, Size, thread_rank()}; }
};

template <unsigned Size, class Parent>
thread_block_tile<Size, Parent> tiled_partition(const Parent&) {
    return {};
}
static inline thread_group tiled_partition(const thread_group& parent, unsigned size) {
    (void)parent;
    const unsigned l = detail::lane();
    return {(size >= 32 ? 0xffffffffu : ((1u << size) - 1)) << (l / size * size), size, l % size};
}
template <class Parent>
coalesced_group binary_partition(const Parent& parent, bool predicate, EMU_LINE) {
    const unsigned base = [&] {
        if constexpr (std::is_same_v<Parent, coalesced_group>) return parent.mask;
        else return parent.lanes();
    }();
    const unsigned yes = ::emu::ballot(line, base, predicate);
    return {predicate ? yes : base & ~yes};
}

template <class G>
void sync(const G& g, EMU_LINE) { g.sync(line); }

// ---------------------------------------------------------------- reduce and scan
template <class T = void> struct plus { template <class A> A operator()(A a, A b) const { return a + b; } };
template <class T = void> struct less { template <class A> A operator()(A a, A b) const { return a < b ? a : b; } };
template <class T = void> struct greater { template <class A> A operator()(A a, A b) const { return a > b ? a : b; } };
template <class T = void> struct bit_and { template <class A> A operator()(A a, A b) const { return a & b; } };
template <class T = void> struct bit_or { template <class A> A operator()(A a, A b) const { return a | b; } };
template <class T = void> struct bit_xor { template <class A> A operator()(A a, A b) const { return a ^ b; } };

template <class G, class T, class F>
T reduce(const G& g, T value, F&& combine, EMU_LINE) {
    T total = g.shfl(value, 0, line);
    for (unsigned i = 1; i < g.size(); ++i) total = combine(total, g.shfl(value, static_cast<int>(i), line));
    return total;
}
template <class G, class T, class F>
T inclusive_scan(const G& g, T value, F&& combine, EMU_LINE) {
    T total = g.shfl(value, 0, line);
    for (unsigned i = 1; i < g.size(); ++i) {
        const T next = g.shfl(value, static_cast<int>(i), line);
        if (i <= g.thread_rank()) total = combine(total, next);
    }
    return total;
}
template <class G, class T>
T inclusive_scan(const G& g, T value, EMU_LINE) { return inclusive_scan(g, value, plus<T>(), line); }
template <class G, class T, class F, class = decltype(std::declval<F>()(T(), T()))>
T exclusive_scan(const G& g, T value, F&& combine, EMU_LINE) {
    T total = T();
    for (unsigned i = 0; i + 1 < g.size(); ++i) {
        const T next = g.shfl(value, static_cast<int>(i), line);
        if (i < g.thread_rank()) total = i ? combine(total, next) : next;
    }
    return total;
}
template <class G>
auto thread_rank(const G& g) -> decltype(g.thread_rank()) { return g.thread_rank(); }
template <class G, class F>
void invoke_one(const G& g, F&& work) {
    if (g.thread_rank() == 0) work();
}
template <class G, class T>
T exclusive_scan(const G& g, T value, EMU_LINE) {
    const T all = inclusive_scan(g, value, plus<T>(), line);
    return all - value;
}

// ---------------------------------------------------------------- asynchronous copies
// Done at once by each thread for its share; wait orders the group.
template <class G, class T, class S>
void memcpy_async(const G& g, T* to, const S* from, size_t bytes) {
    for (size_t i = g.thread_rank() * 4; i < bytes; i += g.size() * 4)
        ::emu::checked_memcpy(reinterpret_cast<char*>(to) + i, reinterpret_cast<const char*>(from) + i,
                              bytes - i < 4 ? bytes - i : 4);
}
template <class G>
void wait(const G& g, EMU_LINE) { g.sync(line); }
template <unsigned N, class G>
void wait_prior(const G& g, EMU_LINE) { g.sync(line); }

}  // namespace cooperative_groups
#undef EMU_LINE
#endif
