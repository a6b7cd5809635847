// CUDA in a kernel: built-in variables, barriers, warp operations, atomics, cached loads.
#ifndef EMU_DEVICE_H
#define EMU_DEVICE_H

#include <type_traits>
#include <utility>

#include "../../abi.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// Functions that access memory for a kernel. They report the access themselves, with the caller's
// address. So the compiler neither instruments nor inlines them.
#define EMU_ACCESSOR __attribute__((noinline, no_sanitize("thread")))
#define EMU_HERE __builtin_return_address(0)

// const: the compiler neither instruments nor reloads them, and one thread's values never change.
extern const uint3 threadIdx __asm__("emu_thread_index");
extern const uint3 blockIdx __asm__("emu_block_index");
extern const uint3 blockDim __asm__("emu_block_dim");
extern const uint3 gridDim __asm__("emu_grid_dim");
constexpr int warpSize = 32;

namespace emu {
static inline unsigned linear_thread() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

template <class T>
T warp_exchange(int kind, int line, unsigned mask, T value, int lane, int width) {
    static_assert(sizeof(T) <= 16, "a shuffle moves at most 16 bytes here");
    T result;
    emu_warp(kind, line, mask, &value, &result, sizeof(T), lane, width);
    return result;
}
// The overloads that CUDA has: other argument types convert or fail as with nvcc.
template <class T>
constexpr bool is_shuffled = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, long> ||
                             std::is_same_v<T, unsigned long> || std::is_same_v<T, long long> ||
                             std::is_same_v<T, unsigned long long> || std::is_same_v<T, float> ||
                             std::is_same_v<T, double>;
template <class T>
struct Shuffled {  // half and bfloat16 add themselves; small integers convert to int
    using type = std::conditional_t<is_shuffled<T>, T, std::conditional_t<std::is_integral_v<T> || std::is_enum_v<T>, int, T>>;
};
template <class T>
auto shuffle(int kind, int line, unsigned mask, T value, int lane, int width = 32) {
    using S = typename Shuffled<std::remove_cv_t<T>>::type;
    return warp_exchange<S>(kind, line, mask, static_cast<S>(value), lane, width);
}
static inline unsigned ballot(int line, unsigned mask, int predicate) {
    const int p = predicate != 0;
    return emu_warp(EMU_BALLOT, line, mask, &p, nullptr, sizeof p, 0, 32);
}
static inline int any(int line, unsigned mask, int predicate) { return ballot(line, mask, predicate) != 0; }
static inline int all(int line, unsigned mask, int predicate) { return ballot(line, mask, !predicate) == 0; }
static inline unsigned converged(int line) {
    return emu_warp(EMU_CONVERGE, line, 0xffffffffu, nullptr, nullptr, 0, 0, 32);
}
template <class T>
unsigned match_any(int line, unsigned mask, T value) {
    return emu_warp(EMU_MATCH_ANY, line, mask, &value, nullptr, sizeof value, 0, 32);
}
template <class T>
unsigned match_all(int line, unsigned mask, T value, int* same) {
    const unsigned word = emu_warp(EMU_MATCH_ALL, line, mask, &value, nullptr, sizeof value, 0, 32);
    *same = word != 0;
    return word;
}
template <class T, class F>
T warp_reduce(int line, unsigned mask, T value, F combine) {
    const int me = static_cast<int>(linear_thread() % 32);
    const int first = __builtin_ctz(mask);
    T total = warp_exchange(EMU_SHUFFLE_INDEX, line, mask, value, first, 32);
    for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1)
        total = combine(total, warp_exchange(EMU_SHUFFLE_INDEX, line, mask, value, __builtin_ctz(rest), 32));
    (void)me;
    return total;
}
static inline void syncwarp(int line, unsigned mask = 0xffffffffu) {
    emu_warp(EMU_SYNCWARP, line, mask, nullptr, nullptr, 0, 0, 32);
}
}  // namespace emu

// __LINE__ tells barriers of the source apart: the compiler may duplicate the calls.
#define __syncthreads() emu_barrier(__LINE__)
#define __syncthreads_count(p) emu_barrier_reduce(__LINE__, (p), 0)
#define __syncthreads_and(p) emu_barrier_reduce(__LINE__, (p), 1)
#define __syncthreads_or(p) emu_barrier_reduce(__LINE__, (p), 2)
#define __barrier_sync(id) emu_barrier(__LINE__)
#define __syncwarp(...) ::emu::syncwarp(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(m, v, ...) ::emu::shuffle(EMU_SHUFFLE_INDEX, __LINE__, m, v, __VA_ARGS__)
#define __shfl_up_sync(m, v, ...) ::emu::shuffle(EMU_SHUFFLE_UP, __LINE__, m, v, __VA_ARGS__)
#define __shfl_down_sync(m, v, ...) ::emu::shuffle(EMU_SHUFFLE_DOWN, __LINE__, m, v, __VA_ARGS__)
#define __shfl_xor_sync(m, v, ...) ::emu::shuffle(EMU_SHUFFLE_XOR, __LINE__, m, v, __VA_ARGS__)
#define __ballot_sync(m, p) ::emu::ballot(__LINE__, m, p)
#define __any_sync(m, p) ::emu::any(__LINE__, m, p)
#define __all_sync(m, p) ::emu::all(__LINE__, m, p)
#define __activemask() ::emu::converged(__LINE__)
#define __match_any_sync(m, v) ::emu::match_any(__LINE__, m, v)
#define __match_all_sync(m, v, s) ::emu::match_all(__LINE__, m, v, s)
#define __reduce_add_sync(m, v) ::emu::warp_reduce(__LINE__, m, v, [](auto a, auto b) { return a + b; })
#define __reduce_min_sync(m, v) ::emu::warp_reduce(__LINE__, m, v, [](auto a, auto b) { return a < b ? a : b; })
#define __reduce_max_sync(m, v) ::emu::warp_reduce(__LINE__, m, v, [](auto a, auto b) { return a > b ? a : b; })
#define __reduce_and_sync(m, v) ::emu::warp_reduce(__LINE__, m, v, [](auto a, auto b) { return a & b; })
#define __reduce_or_sync(m, v) ::emu::warp_reduce(__LINE__, m, v, [](auto a, auto b) { return a | b; })
#define __reduce_xor_sync(m, v) ::emu::warp_reduce(__LINE__, m, v, [](auto a, auto b) { return a ^ b; })

static inline void __threadfence() { emu_fence(1); }
static inline void __threadfence_block() { emu_fence(0); }
static inline void __threadfence_system() { emu_fence(2); }
static inline void __nanosleep(unsigned) { emu_spin_hint(); }
static inline unsigned __lane_id() { return ::emu::linear_thread() % 32; }
static inline void __prof_trigger(int) {}
#define __trap() emu_trap(__LINE__, "trap", "__trap() was called")
#define __brkpt() emu_trap(__LINE__, "trap", "__brkpt() was called")
#define __assume(x) ((void)0)
#define __builtin_assume(x) ((void)0)

static inline long long clock64() { return static_cast<long long>(__builtin_ia32_rdtsc()); }
static inline unsigned long long globaltimer() { return static_cast<unsigned long long>(clock64()); }

// Address spaces: one space here, so a pointer is "shared" if the block's arena holds it.
static inline unsigned __isGlobal(const void* p) { return emu_pointer_is_device(p, nullptr); }
static inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }
static inline size_t __cvta_generic_to_global(const void* p) { return reinterpret_cast<size_t>(p); }

namespace emu {
// A static __shared__ variable: every thread of a block gets the same one.
template <class T, size_t Align = 1>
T& shared(EmuSharedSlot* slot, const char* name) {
    constexpr size_t natural = alignof(std::remove_all_extents_t<T>);
    constexpr size_t align = Align > natural ? Align : natural;
    return *static_cast<T*>(emu_shared(slot, name, sizeof(T), align > 16 ? align : 16));
}
// `extern __shared__ T name[]` at file scope: stands for the dynamic shared memory of the launch.
template <class T>
struct DynamicShared {
    operator T*() const { return static_cast<T*>(emu_dynamic_shared()); }
};
}  // namespace emu

// ---------------------------------------------------------------- cached loads and stores
#define EMU_LOAD(NAME)                                      \
    template <class T>                                      \
    EMU_ACCESSOR T NAME(const T* p) {                       \
        emu_read(p, sizeof(T), EMU_HERE, 0);                \
        return *p;                                          \
    }
#define EMU_STORE(NAME)                                     \
    template <class T>                                      \
    EMU_ACCESSOR void NAME(T* p, std::common_type_t<T> v) { \
        emu_write(p, sizeof(T), EMU_HERE, 0);               \
        *p = v;                                             \
    }
EMU_LOAD(__ldg)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldlu)
EMU_LOAD(__ldcv)
EMU_STORE(__stwb)
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwt)
#undef EMU_LOAD
#undef EMU_STORE

// ---------------------------------------------------------------- atomics
// One OS thread emulates, so an atomic is a plain update. The checks treat it as atomic.
#define EMU_ATOMIC(NAME, T, UPDATE)                                     \
    inline EMU_ACCESSOR T NAME(T* p, T v) {                             \
        emu_atomic(p, sizeof(T), EMU_HERE);                             \
        const T old = *p;                                               \
        *p = UPDATE;                                                    \
        return old;                                                     \
    }
#define EMU_ATOMIC_SCOPES(NAME, T, UPDATE)      \
    EMU_ATOMIC(NAME, T, UPDATE)                 \
    EMU_ATOMIC(NAME##_block, T, UPDATE)         \
    EMU_ATOMIC(NAME##_system, T, UPDATE)
typedef unsigned long long emu_u64;
EMU_ATOMIC_SCOPES(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(v)))
EMU_ATOMIC_SCOPES(atomicAdd, unsigned, old + v)
EMU_ATOMIC_SCOPES(atomicAdd, emu_u64, old + v)
EMU_ATOMIC_SCOPES(atomicAdd, float, old + v)
EMU_ATOMIC_SCOPES(atomicAdd, double, old + v)
EMU_ATOMIC_SCOPES(atomicSub, int, old - v)
EMU_ATOMIC_SCOPES(atomicSub, unsigned, old - v)
EMU_ATOMIC_SCOPES(atomicExch, int, v)
EMU_ATOMIC_SCOPES(atomicExch, unsigned, v)
EMU_ATOMIC_SCOPES(atomicExch, emu_u64, v)
EMU_ATOMIC_SCOPES(atomicExch, float, v)
#define EMU_ATOMIC_INTEGERS(T)                              \
    EMU_ATOMIC_SCOPES(atomicAnd, T, old & v)                \
    EMU_ATOMIC_SCOPES(atomicOr, T, old | v)                 \
    EMU_ATOMIC_SCOPES(atomicXor, T, old ^ v)
EMU_ATOMIC_INTEGERS(int)
EMU_ATOMIC_INTEGERS(unsigned)
EMU_ATOMIC_INTEGERS(emu_u64)
#define EMU_ATOMIC_ORDER(T)                                 \
    EMU_ATOMIC_SCOPES(atomicMin, T, old < v ? old : v)      \
    EMU_ATOMIC_SCOPES(atomicMax, T, old > v ? old : v)
EMU_ATOMIC_ORDER(int)
EMU_ATOMIC_ORDER(unsigned)
EMU_ATOMIC_ORDER(emu_u64)
EMU_ATOMIC_ORDER(long long)
EMU_ATOMIC_SCOPES(atomicInc, unsigned, old >= v ? 0 : old + 1)
EMU_ATOMIC_SCOPES(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
#undef EMU_ATOMIC_ORDER
#undef EMU_ATOMIC_INTEGERS
#define EMU_CAS(NAME, T)                                                \
    inline EMU_ACCESSOR T NAME(T* p, T compare, T v) {                  \
        emu_atomic(p, sizeof(T), EMU_HERE);                             \
        const T old = *p;                                               \
        if (old == compare) *p = v;                                     \
        else emu_spin_hint();                                           \
        return old;                                                     \
    }
#define EMU_CAS_SCOPES(T) EMU_CAS(atomicCAS, T) EMU_CAS(atomicCAS_block, T) EMU_CAS(atomicCAS_system, T)
EMU_CAS_SCOPES(int)
EMU_CAS_SCOPES(unsigned)
EMU_CAS_SCOPES(emu_u64)
EMU_CAS_SCOPES(unsigned short)
#undef EMU_CAS_SCOPES
#undef EMU_CAS

namespace emu {
// memcpy and memset in kernels: the checks see a range of accesses. They would not see the builtins.
template <class D, class S>
inline EMU_ACCESSOR void* checked_memcpy(D* to, const S* from, size_t n) {
    if (n && emu_in_kernel()) {
        emu_read(from, n, EMU_HERE, 0);
        emu_write(to, n, EMU_HERE, 0);
    }
    return __builtin_memcpy(to, from, n);
}
inline EMU_ACCESSOR void* checked_memset(void* to, int value, size_t n) {
    if (n && emu_in_kernel()) emu_write(to, n, EMU_HERE, 0);
    return __builtin_memset(to, value, n);
}
}  // namespace emu

#endif
