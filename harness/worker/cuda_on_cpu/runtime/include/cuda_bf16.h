#ifndef EMU_CUDA_BF16_H
#define EMU_CUDA_BF16_H
#include <c10/util/BFloat16.h>

#include "cuda_runtime.h"
#define EMU_H __nv_bfloat16
#define EMU_H2 __nv_bfloat162
#define EMU_RAW __nv_bfloat16_raw
#define EMU_RAW2 __nv_bfloat162_raw
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
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

static inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16::of(x); }
static inline __nv_bfloat16 __double2bfloat16(double x) { return __nv_bfloat16::rounded(x, 0); }
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
EMU_ROUNDINGS(int, __int2bfloat16, __bfloat162int)
EMU_ROUNDINGS(unsigned, __uint2bfloat16, __bfloat162uint)
EMU_ROUNDINGS(short, __short2bfloat16, __bfloat162short)
EMU_ROUNDINGS(unsigned short, __ushort2bfloat16, __bfloat162ushort)
EMU_ROUNDINGS(long long, __ll2bfloat16, __bfloat162ll)
EMU_ROUNDINGS(unsigned long long, __ull2bfloat16, __bfloat162ull)
#undef EMU_ROUNDINGS
#undef EMU_H
#undef EMU_H2
#undef EMU_RAW
#undef EMU_RAW2
#undef EMU_C10
static inline signed char __bfloat162char_rz(__nv_bfloat16 v) { return ::emu::saturating<signed char>(truncf(v.number())); }
static inline unsigned char __bfloat162uchar_rz(__nv_bfloat16 v) { return ::emu::saturating<unsigned char>(truncf(v.number())); }
static inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16::of(v); }
static inline __nv_bfloat16 __float2bfloat16_rd(float v) { return __nv_bfloat16::rounded(v, -1); }
static inline __nv_bfloat16 __float2bfloat16_ru(float v) { return __nv_bfloat16::rounded(v, 1); }
static inline __nv_bfloat16 __float2bfloat16_rz(float v) { return __nv_bfloat16::rounded(v, 2); }
static inline __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return __nv_bfloat162(a.x, b.x); }
static inline __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return __nv_bfloat162(a.y, b.y); }
static inline short __bfloat16_as_short(__nv_bfloat16 x) { return static_cast<short>(x.bits); }
static inline __nv_bfloat16 __short_as_bfloat16(short b) { return __ushort_as_bfloat16(static_cast<unsigned short>(b)); }
#define CUDART_INF_BF16 __ushort_as_bfloat16(0x7F80u)
#define CUDART_ZERO_BF16 __ushort_as_bfloat16(0x0000u)
#define CUDART_ONE_BF16 __ushort_as_bfloat16(0x3F80u)
#endif
