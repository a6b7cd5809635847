#ifndef EMU_CUDA_FP16_H
#define EMU_CUDA_FP16_H
#include <c10/util/Half.h>

#include "cuda_runtime.h"
#define EMU_H __half
#define EMU_H2 __half2
#define EMU_RAW __half_raw
#define EMU_RAW2 __half2_raw
#define EMU_C10 c10::Half
#ifdef __CUDA_NO_HALF_CONVERSIONS__
#define EMU_CONVERSIONS_ALLOWED 0
#else
#define EMU_CONVERSIONS_ALLOWED 1
#endif
#ifdef __CUDA_NO_HALF_OPERATORS__
#define EMU_OPERATORS_ALLOWED 0
#else
#define EMU_OPERATORS_ALLOWED 1
#endif
#ifdef __CUDA_NO_HALF2_OPERATORS__
#define EMU_PAIR_OPERATORS_ALLOWED 0
#else
#define EMU_PAIR_OPERATORS_ALLOWED 1
#endif
#include "emu/short_float.h"
#undef EMU_CONVERSIONS_ALLOWED
#undef EMU_OPERATORS_ALLOWED
#undef EMU_PAIR_OPERATORS_ALLOWED
typedef __half half;
typedef __half2 half2;

static inline __half __float2half(float x) { return __half::of(x); }
static inline __half __double2half(double x) { return __half::rounded(x, 0); }
static inline float __half2float(__half x) { return x.number(); }
static inline __half2 __float2half2_rn(float x) { return __half2(__half::of(x), __half::of(x)); }
static inline __half2 __floats2half2_rn(float x, float y) { return __half2(__half::of(x), __half::of(y)); }
static inline __half2 __float22half2_rn(float2 v) { return __half2(__half::of(v.x), __half::of(v.y)); }
static inline float2 __half22float2(__half2 v) { return make_float2(v.x.number(), v.y.number()); }
static inline __half2 __half2half2(__half x) { return __half2(x, x); }
static inline __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
static inline __half2 make_half2(__half x, __half y) { return __half2(x, y); }
static inline __half __low2half(__half2 v) { return v.x; }
static inline __half __high2half(__half2 v) { return v.y; }
static inline __half2 __low2half2(__half2 v) { return __half2(v.x, v.x); }
static inline __half2 __high2half2(__half2 v) { return __half2(v.y, v.y); }
static inline __half2 __lows2half2(__half2 a, __half2 b) { return __half2(a.x, b.x); }
static inline __half2 __highs2half2(__half2 a, __half2 b) { return __half2(a.y, b.y); }
static inline unsigned short __half_as_ushort(__half x) { return x.bits; }
static inline short __half_as_short(__half x) { return static_cast<short>(x.bits); }
static inline __half __ushort_as_half(unsigned short b) { return __half(__half_raw{b}); }
static inline __half __short_as_half(short b) { return __half(__half_raw{static_cast<unsigned short>(b)}); }
EMU_ROUNDINGS(int, __int2half, __half2int)
EMU_ROUNDINGS(unsigned, __uint2half, __half2uint)
EMU_ROUNDINGS(short, __short2half, __half2short)
EMU_ROUNDINGS(unsigned short, __ushort2half, __half2ushort)
EMU_ROUNDINGS(long long, __ll2half, __half2ll)
EMU_ROUNDINGS(unsigned long long, __ull2half, __half2ull)
#undef EMU_ROUNDINGS
#undef EMU_H
#undef EMU_H2
#undef EMU_RAW
#undef EMU_RAW2
#undef EMU_C10
static inline signed char __half2char_rz(__half v) { return ::emu::saturating<signed char>(truncf(v.number())); }
static inline unsigned char __half2uchar_rz(__half v) { return ::emu::saturating<unsigned char>(truncf(v.number())); }
static inline __half __float2half_rn(float v) { return __half::of(v); }
static inline __half __float2half_rd(float v) { return __half::rounded(v, -1); }
static inline __half __float2half_ru(float v) { return __half::rounded(v, 1); }
static inline __half __float2half_rz(float v) { return __half::rounded(v, 2); }
#define CUDART_INF_FP16 __ushort_as_half(0x7C00u)
#define CUDART_ZERO_FP16 __ushort_as_half(0x0000u)
#define CUDART_ONE_FP16 __ushort_as_half(0x3C00u)
#define CUDART_NAN_FP16 __ushort_as_half(0x7FFFu)
#endif
