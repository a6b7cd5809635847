// -fsanitize=thread also turns the __atomic builtins (reference counts in torch's headers) into
// calls. They are host code, so each calls the plain builtin.
#include <cstdint>

typedef uint8_t a8;
typedef uint16_t a16;
typedef uint32_t a32;
typedef uint64_t a64;

extern "C" {
#define EMU_FETCH(B, NAME)                                                        \
    a##B __tsan_atomic##B##_fetch_##NAME(volatile a##B* p, a##B v, int) {         \
        return __atomic_fetch_##NAME(p, v, __ATOMIC_SEQ_CST);                     \
    }
#define EMU_ATOMICS(B)                                                            \
    a##B __tsan_atomic##B##_load(const volatile a##B* p, int) {                   \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                              \
    }                                                                             \
    void __tsan_atomic##B##_store(volatile a##B* p, a##B v, int) {                \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                 \
    }                                                                             \
    a##B __tsan_atomic##B##_exchange(volatile a##B* p, a##B v, int) {             \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                       \
    }                                                                             \
    EMU_FETCH(B, add)                                                             \
    EMU_FETCH(B, sub)                                                             \
    EMU_FETCH(B, and)                                                             \
    EMU_FETCH(B, or)                                                              \
    EMU_FETCH(B, xor)                                                             \
    EMU_FETCH(B, nand)                                                            \
    int __tsan_atomic##B##_compare_exchange_strong(volatile a##B* p, a##B* e, a##B v, int, int) { \
        return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);   \
    }                                                                             \
    int __tsan_atomic##B##_compare_exchange_weak(volatile a##B* p, a##B* e, a##B v, int, int) {   \
        return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);   \
    }                                                                             \
    a##B __tsan_atomic##B##_compare_exchange_val(volatile a##B* p, a##B e, a##B v, int, int) {    \
        __atomic_compare_exchange_n(p, &e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);         \
        return e;                                                                 \
    }
EMU_ATOMICS(8)
EMU_ATOMICS(16)
EMU_ATOMICS(32)
EMU_ATOMICS(64)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
}
