// Device math: CUDA's names for functions of the host's C library, and functions that it lacks.
#ifndef EMU_DEVICE_MATH_H
#define EMU_DEVICE_MATH_H

#include <math.h>
#include <stdlib.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace emu {
template <class To, class From>
static inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "reinterpreting needs equal sizes");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
static inline float fast_exp(float x) { return expf(x); }
static inline float fast_exp10(float x) { return powf(10.0f, x); }
static inline float fast_log(float x) { return logf(x); }
static inline float fast_log2(float x) { return log2f(x); }
static inline float fast_log10(float x) { return log10f(x); }
static inline float fast_sin(float x) { return sinf(x); }
static inline float fast_cos(float x) { return cosf(x); }
static inline float fast_tan(float x) { return tanf(x); }
static inline float fast_tanh(float x) { return tanhf(x); }
static inline float fast_pow(float x, float y) { return powf(x, y); }
static inline void fast_sincos(float x, float* s, float* c) { *s = sinf(x); *c = cosf(x); }
}  // namespace emu

// glibc declares names such as __expf itself, so ours are macros.
#define __expf ::emu::fast_exp
#define __exp10f ::emu::fast_exp10
#define __logf ::emu::fast_log
#define __log2f ::emu::fast_log2
#define __log10f ::emu::fast_log10
#define __sinf ::emu::fast_sin
#define __cosf ::emu::fast_cos
#define __tanf ::emu::fast_tan
#define __tanhf ::emu::fast_tanh
#define __powf ::emu::fast_pow
#define __sincosf ::emu::fast_sincos

static inline float __fdividef(float a, float b) { return a / b; }
static inline float fdividef(float a, float b) { return a / b; }
static inline float __saturatef(float x) { return x > 1.0f ? 1.0f : x > 0.0f ? x : 0.0f; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
static inline double rcbrt(double x) { return 1.0 / cbrt(x); }
static inline float sinpif(float x) { return static_cast<float>(sin(3.14159265358979323846 * x)); }
static inline float cospif(float x) { return static_cast<float>(cos(3.14159265358979323846 * x)); }
static inline double sinpi(double x) { return sin(3.14159265358979323846 * x); }
static inline double cospi(double x) { return cos(3.14159265358979323846 * x); }
static inline void sincospif(float x, float* s, float* c) { *s = sinpif(x); *c = cospif(x); }
static inline double erfinv(double y) {  // Newton's method from Giles' approximation
    if (!(y > -1 && y < 1)) return y == 1 ? HUGE_VAL : y == -1 ? -HUGE_VAL : NAN;
    const double w = -log((1 - y) * (1 + y)), z = 2 / (3.14159265358979323846 * 0.147) - w / 2;
    double x = copysign(sqrt(sqrt(z * z + w / 0.147) - z), y);
    for (int i = 0; i < 4; ++i) x -= (erf(x) - y) / (1.1283791670955125739 * exp(-x * x));
    return x;
}
static inline double erfcinv(double y) { return erfinv(1 - y); }
static inline double normcdfinv(double y) { return 1.4142135623730950488 * erfinv(2 * y - 1); }
static inline float erfinvf(float y) { return static_cast<float>(erfinv(y)); }
static inline float erfcinvf(float y) { return static_cast<float>(erfcinv(y)); }
static inline float normcdfinvf(float y) { return static_cast<float>(normcdfinv(y)); }
static inline float rnorm4df(float a, float b, float c, float d) { return 1 / sqrtf(a * a + b * b + c * c + d * d); }
static inline float cyl_bessel_i0f(float x) { return static_cast<float>(std::cyl_bessel_i(0.0, fabs(static_cast<double>(x)))); }
static inline float normcdff(float x) { return static_cast<float>(0.5 * erfc(-x * 0.70710678118654752440)); }
static inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }
static inline float erfcxf(float x) { return static_cast<float>(exp(static_cast<double>(x) * x) * erfc(x)); }
static inline double erfcx(double x) { return exp(x * x) * erfc(x); }
static inline float rnorm3df(float a, float b, float c) { return 1.0f / sqrtf(a * a + b * b + c * c); }
static inline float norm3df(float a, float b, float c) { return sqrtf(a * a + b * b + c * c); }
static inline float norm4df(float a, float b, float c, float d) { return sqrtf(a * a + b * b + c * c + d * d); }
static inline float rhypotf(float a, float b) { return 1.0f / hypotf(a, b); }

#define EMU_ROUNDINGS(F, T, NAME, SIGNATURE, ARGUMENTS)                                   \
    static inline T NAME##_rn SIGNATURE { return F ARGUMENTS; }                           \
    static inline T NAME##_rz SIGNATURE { return F ARGUMENTS; }                           \
    static inline T NAME##_ru SIGNATURE { return F ARGUMENTS; }                           \
    static inline T NAME##_rd SIGNATURE { return F ARGUMENTS; }
// Directed roundings round to nearest here, which differs by one unit in the last place.
EMU_ROUNDINGS(, float, __fadd, (float a, float b), (a + b))
EMU_ROUNDINGS(, float, __fsub, (float a, float b), (a - b))
EMU_ROUNDINGS(, float, __fmul, (float a, float b), (a * b))
EMU_ROUNDINGS(, float, __fdiv, (float a, float b), (a / b))
EMU_ROUNDINGS(fmaf, float, __fmaf, (float a, float b, float c), (a, b, c))
EMU_ROUNDINGS(sqrtf, float, __fsqrt, (float a), (a))
EMU_ROUNDINGS(1.0f /, float, __frcp, (float a), (a))
EMU_ROUNDINGS(, double, __dadd, (double a, double b), (a + b))
EMU_ROUNDINGS(, double, __dsub, (double a, double b), (a - b))
EMU_ROUNDINGS(, double, __dmul, (double a, double b), (a * b))
EMU_ROUNDINGS(, double, __ddiv, (double a, double b), (a / b))
EMU_ROUNDINGS(fma, double, __fma, (double a, double b, double c), (a, b, c))
EMU_ROUNDINGS(sqrt, double, __dsqrt, (double a), (a))
EMU_ROUNDINGS(1.0 /, double, __drcp, (double a), (a))
#undef EMU_ROUNDINGS
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }

namespace emu {
// A GPU converts out-of-range floats to the nearest integer value and NaN to 0.
template <class To, class From>
static inline To saturating(From rounded) {
    if (rounded != rounded) return 0;
    if (rounded >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    if (rounded <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    return static_cast<To>(rounded);
}
}  // namespace emu
#define EMU_CONVERSIONS(FROM, TO, NAME)                                                       \
    static inline TO NAME##_rn(FROM x) { return ::emu::saturating<TO>(std::nearbyint(x)); }   \
    static inline TO NAME##_rz(FROM x) { return ::emu::saturating<TO>(std::trunc(x)); }       \
    static inline TO NAME##_rd(FROM x) { return ::emu::saturating<TO>(std::floor(x)); }       \
    static inline TO NAME##_ru(FROM x) { return ::emu::saturating<TO>(std::ceil(x)); }
EMU_CONVERSIONS(float, int, __float2int)
EMU_CONVERSIONS(float, unsigned, __float2uint)
EMU_CONVERSIONS(float, long long, __float2ll)
EMU_CONVERSIONS(float, unsigned long long, __float2ull)
EMU_CONVERSIONS(double, int, __double2int)
EMU_CONVERSIONS(double, unsigned, __double2uint)
EMU_CONVERSIONS(double, long long, __double2ll)
EMU_CONVERSIONS(double, unsigned long long, __double2ull)
#undef EMU_CONVERSIONS
#define EMU_FROM_INTEGER(FROM, TO, NAME)                                      \
    static inline TO NAME##_rn(FROM x) { return static_cast<TO>(x); }         \
    static inline TO NAME##_rz(FROM x) { return static_cast<TO>(x); }         \
    static inline TO NAME##_ru(FROM x) { return static_cast<TO>(x); }         \
    static inline TO NAME##_rd(FROM x) { return static_cast<TO>(x); }
EMU_FROM_INTEGER(int, float, __int2float)
EMU_FROM_INTEGER(unsigned, float, __uint2float)
EMU_FROM_INTEGER(long long, float, __ll2float)
EMU_FROM_INTEGER(unsigned long long, float, __ull2float)
EMU_FROM_INTEGER(int, double, __int2double)
EMU_FROM_INTEGER(unsigned, double, __uint2double)
EMU_FROM_INTEGER(long long, double, __ll2double)
EMU_FROM_INTEGER(double, float, __double2float)
#undef EMU_FROM_INTEGER

static inline int __float_as_int(float x) { return ::emu::bit_cast<int>(x); }
static inline unsigned __float_as_uint(float x) { return ::emu::bit_cast<unsigned>(x); }
static inline float __int_as_float(int x) { return ::emu::bit_cast<float>(x); }
static inline float __uint_as_float(unsigned x) { return ::emu::bit_cast<float>(x); }
static inline long long __double_as_longlong(double x) { return ::emu::bit_cast<long long>(x); }
static inline double __longlong_as_double(long long x) { return ::emu::bit_cast<double>(x); }
static inline int __double2hiint(double x) { return static_cast<int>(::emu::bit_cast<long long>(x) >> 32); }
static inline int __double2loint(double x) { return static_cast<int>(::emu::bit_cast<long long>(x)); }
static inline double __hiloint2double(int hi, int lo) {
    return ::emu::bit_cast<double>(static_cast<long long>(hi) << 32 | static_cast<unsigned>(lo));
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
    return r;
}
static inline unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
           __brev(static_cast<unsigned>(x >> 32));
}
static inline int __mul24(int a, int b) { return a * b; }
static inline unsigned __umul24(unsigned a, unsigned b) { return a * b; }
static inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
static inline long long __mul64hi(long long a, long long b) {
    return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    const unsigned long long both = static_cast<unsigned long long>(b) << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned select = s >> (4 * i) & 15u;
        unsigned byte = static_cast<unsigned>(both >> (8 * (select & 7u))) & 255u;
        if (select & 8u) byte = byte & 128u ? 255u : 0u;
        r |= byte << (8 * i);
    }
    return r;
}
static inline unsigned __funnelshift_lc(unsigned lo, unsigned hi, unsigned n) {
    return n >= 32 ? lo : static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) << n >> 32);
}
static inline unsigned __funnelshift_rc(unsigned lo, unsigned hi, unsigned n) {
    return n >= 32 ? hi : static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) >> n);
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return static_cast<unsigned>(((static_cast<unsigned long long>(hi) << 32 | lo) << (n & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return static_cast<unsigned>((static_cast<unsigned long long>(hi) << 32 | lo) >> (n & 31));
}
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i)
        c += static_cast<signed char>(a >> (8 * i)) * static_cast<signed char>(b >> (8 * i));
    return c;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; ++i) c += (a >> (8 * i) & 255u) * (b >> (8 * i) & 255u);
    return c;
}
static inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a > b ? a - b : b - a); }
static inline unsigned __sad(int a, int b, unsigned c) { return c + static_cast<unsigned>(a > b ? a - b : b - a); }
static inline int __rhadd(int a, int b) { return static_cast<int>((static_cast<long long>(a) + b + 1) >> 1); }
static inline int __hadd(int a, int b) { return static_cast<int>((static_cast<long long>(a) + b) >> 1); }

// CUDA's own list of overloads, so that the same calls are ambiguous.
#define EMU_MIN_MAX(T, A, B)                                                              \
    static inline T min(A a, B b) { return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); } \
    static inline T max(A a, B b) { return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); }
EMU_MIN_MAX(int, int, int)
EMU_MIN_MAX(unsigned, unsigned, unsigned)
EMU_MIN_MAX(unsigned, int, unsigned)
EMU_MIN_MAX(unsigned, unsigned, int)
EMU_MIN_MAX(long, long, long)
EMU_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMU_MIN_MAX(unsigned long, long, unsigned long)
EMU_MIN_MAX(unsigned long, unsigned long, long)
EMU_MIN_MAX(long long, long long, long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
EMU_MIN_MAX(unsigned long long, long long, unsigned long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef EMU_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(float a, double b) { return fmin(a, b); }
static inline double max(float a, double b) { return fmax(a, b); }
static inline double min(double a, float b) { return fmin(a, b); }
static inline double max(double a, float b) { return fmax(a, b); }
static inline unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned umax(unsigned a, unsigned b) { return a > b ? a : b; }

#endif
