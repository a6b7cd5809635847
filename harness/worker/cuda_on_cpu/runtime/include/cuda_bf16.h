#ifndef EMU_CUDA_BF16_H
#define EMU_CUDA_BF16_H
#include <c10/util/BFloat16.h>

#include "cuda_runtime.h"
#define EMU_H __nv_bfloat16
#define EMU_H2 __nv_bfloat162
#define EMU_RAW __nv_bfloat16_raw
#define EMU_C10 c10::BFloat16
#ifdef __CUDA_NO_BFLOAT16_CONVERSIONS__
#define EMU_CONVERSIONS_ALLOWED 0
#else
#define EMU_CONVERSIONS_ALLOWED 1
#endif
#ifdef __CUDA_NO_BFLOAT16_OPERATORS__
#define EMU_OPERATORS_ALLOWED 0
#else
#define EMU_OPERATORS_ALLOWED 1
#endif
#ifdef __CUDA_NO_BFLOAT162_OPERATORS__
#define EMU_PAIR_OPERATORS_ALLOWED 0
#else
#define EMU_PAIR_OPERATORS_ALLOWED 1
#endif
#include "emu/short_float.h"
#undef EMU_CONVERSIONS_ALLOWED
#undef EMU_OPERATORS_ALLOWED
#undef EMU_PAIR_OPERATORS_ALLOWED
#undef EMU_H
#undef EMU_H2
#undef EMU_RAW
#undef EMU_C10
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

static inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16::of(x); }
static inline __nv_bfloat16 __double2bfloat16(double x) { return __nv_bfloat16::of(x); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16::of(x); }
static inline __nv_bfloat16 __float2bfloat16_rz(float x) {
    return __nv_bfloat16(__nv_bfloat16_raw{static_cast<unsigned short>(__float_as_uint(x) >> 16)});
}
static inline float __bfloat162float(__nv_bfloat16 x) { return x.number(); }
static inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __nv_bfloat162(__nv_bfloat16::of(x), __nv_bfloat16::of(x)); }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return __nv_bfloat162(__nv_bfloat16::of(x), __nv_bfloat16::of(y));
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return make_float2(v.x.number(), v.y.number()); }
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return __nv_bfloat162(x, x); }
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162(x, y); }
static inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162(x, y); }
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
static inline __nv_bfloat162 __low2bfloat162(__nv_bfloat162 v) { return __nv_bfloat162(v.x, v.x); }
static inline __nv_bfloat162 __high2bfloat162(__nv_bfloat162 v) { return __nv_bfloat162(v.y, v.y); }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short b) { return __nv_bfloat16(__nv_bfloat16_raw{b}); }
static inline __nv_bfloat16 __int2bfloat16_rn(int x) { return __nv_bfloat16::of(static_cast<float>(x)); }
static inline int __bfloat162int_rn(__nv_bfloat16 x) { return __float2int_rn(x.number()); }
static inline int __bfloat162int_rz(__nv_bfloat16 x) { return __float2int_rz(x.number()); }
#define CUDART_INF_BF16 __ushort_as_bfloat16(0x7F80u)
#define CUDART_ZERO_BF16 __ushort_as_bfloat16(0x0000u)
#define CUDART_ONE_BF16 __ushort_as_bfloat16(0x3F80u)
#endif
