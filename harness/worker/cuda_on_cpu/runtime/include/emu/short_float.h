// A 16-bit float and its pair: EMU_H, EMU_H2 over the conversions of EMU_C10. Included once for
// half and once for bfloat16, so it has no guard. Every operation rounds once, as on the hardware.

struct EMU_RAW {
    unsigned short x;
};

struct EMU_RAW2 {
    unsigned short x, y;
};

struct EMU_H {
    unsigned short bits;
    EMU_H() = default;
    EMU_H(const EMU_RAW& r) : bits(r.x) {}
    EMU_H(EMU_C10 v) : bits(v.x) {}
    static EMU_H of(float v) { return EMU_H(EMU_C10(v)); }
    // The number next to v: 0 nearest (ties to even), -1 downwards, 1 upwards, 2 towards zero.
    static EMU_H rounded(long double v, int direction) {
        EMU_H lower = of(static_cast<float>(v));
        if (v != v || lower.number() == v) return lower;
        EMU_H upper = lower;
        if (lower.number() < v) upper = lower.neighbour(true);
        else lower = upper.neighbour(false);
        if (direction == 2) direction = v < 0 ? 1 : -1;
        if (direction == -1) return lower;
        if (direction == 1) return upper;
        const long double below = v - lower.reach(), above = upper.reach() - v;
        return below < above || (below == above && lower.bits % 2 == 0) ? lower : upper;
    }
    EMU_H neighbour(bool up) const {
        const bool negative = bits & 0x8000u;
        if ((bits & 0x7fffu) == 0) return EMU_H(EMU_RAW{static_cast<unsigned short>(up ? 1u : 0x8001u)});
        return EMU_H(EMU_RAW{static_cast<unsigned short>(bits + (up == negative ? -1 : 1))});
    }
    // Infinity as the power of two after the largest number, which rounding to nearest takes it for.
    long double reach() const {
        const long double v = number();
        if (v - v == 0) return v;
        const long double last = EMU_H(EMU_RAW{static_cast<unsigned short>((bits & 0x7fffu) - 1)}).number();
        const long double before = EMU_H(EMU_RAW{static_cast<unsigned short>((bits & 0x7fffu) - 2)}).number();
        return v > 0 ? 2 * last - before : before - 2 * last;
    }
    float number() const { return static_cast<float>(EMU_C10(bits, EMU_C10::from_bits())); }
    operator EMU_C10() const { return EMU_C10(bits, EMU_C10::from_bits()); }
    operator EMU_RAW() const { return EMU_RAW{bits}; }
#if EMU_CONVERSIONS_ALLOWED  // torch builds extensions without them unless told otherwise
    EMU_H(float v) : EMU_H(EMU_C10(v)) {}
    EMU_H(double v) : EMU_H(EMU_C10(static_cast<float>(v))) {}
    EMU_H(int v) : EMU_H(static_cast<float>(v)) {}
    EMU_H(unsigned v) : EMU_H(static_cast<float>(v)) {}
    EMU_H(short v) : EMU_H(static_cast<float>(v)) {}
    EMU_H(unsigned short v) : EMU_H(static_cast<float>(v)) {}
    EMU_H(long v) : EMU_H(static_cast<float>(v)) {}
    EMU_H(unsigned long v) : EMU_H(static_cast<float>(v)) {}
    EMU_H(long long v) : EMU_H(static_cast<float>(v)) {}
    EMU_H(unsigned long long v) : EMU_H(static_cast<float>(v)) {}
    operator float() const { return number(); }
#endif
};
#if EMU_OPERATORS_ALLOWED
static inline EMU_H operator+(const EMU_H& a, const EMU_H& b) { return EMU_H::of(a.number() + b.number()); }
static inline EMU_H& operator+=(EMU_H& a, const EMU_H& b) { return a = EMU_H::of(a.number() + b.number()); }
static inline EMU_H operator-(const EMU_H& a, const EMU_H& b) { return EMU_H::of(a.number() - b.number()); }
static inline EMU_H& operator-=(EMU_H& a, const EMU_H& b) { return a = EMU_H::of(a.number() - b.number()); }
static inline EMU_H operator*(const EMU_H& a, const EMU_H& b) { return EMU_H::of(a.number() * b.number()); }
static inline EMU_H& operator*=(EMU_H& a, const EMU_H& b) { return a = EMU_H::of(a.number() * b.number()); }
static inline EMU_H operator/(const EMU_H& a, const EMU_H& b) { return EMU_H::of(a.number() / b.number()); }
static inline EMU_H& operator/=(EMU_H& a, const EMU_H& b) { return a = EMU_H::of(a.number() / b.number()); }
static inline EMU_H operator-(const EMU_H& a) { return EMU_H(EMU_RAW{static_cast<unsigned short>(a.bits ^ 0x8000u)}); }
static inline EMU_H operator+(const EMU_H& a) { return a; }
static inline EMU_H& operator++(EMU_H& a) { return a = EMU_H::of(a.number() + 1.0f); }
static inline EMU_H& operator--(EMU_H& a) { return a = EMU_H::of(a.number() - 1.0f); }
static inline EMU_H operator++(EMU_H& a, int) { const EMU_H before = a; ++a; return before; }
static inline EMU_H operator--(EMU_H& a, int) { const EMU_H before = a; --a; return before; }
static inline bool operator==(const EMU_H& a, const EMU_H& b) { return a.number() == b.number(); }
static inline bool operator!=(const EMU_H& a, const EMU_H& b) { return a.number() != b.number(); }
static inline bool operator<(const EMU_H& a, const EMU_H& b) { return a.number() < b.number(); }
static inline bool operator>(const EMU_H& a, const EMU_H& b) { return a.number() > b.number(); }
static inline bool operator<=(const EMU_H& a, const EMU_H& b) { return a.number() <= b.number(); }
static inline bool operator>=(const EMU_H& a, const EMU_H& b) { return a.number() >= b.number(); }
#endif

struct alignas(4) EMU_H2 {
    EMU_H x, y;
    EMU_H2() = default;
    EMU_H2(const EMU_H& x, const EMU_H& y) : x(x), y(y) {}
    EMU_H2(const EMU_RAW2& r) : x(EMU_RAW{r.x}), y(EMU_RAW{r.y}) {}
    operator EMU_RAW2() const { return EMU_RAW2{x.bits, y.bits}; }
};

static inline EMU_H __hadd(EMU_H a, EMU_H b) { return EMU_H::of(a.number() + b.number()); }
static inline EMU_H __hadd_rn(EMU_H a, EMU_H b) { return __hadd(a, b); }
static inline EMU_H2 __hadd2(EMU_H2 a, EMU_H2 b) { return EMU_H2(__hadd(a.x, b.x), __hadd(a.y, b.y)); }
static inline EMU_H __hsub(EMU_H a, EMU_H b) { return EMU_H::of(a.number() - b.number()); }
static inline EMU_H __hsub_rn(EMU_H a, EMU_H b) { return __hsub(a, b); }
static inline EMU_H2 __hsub2(EMU_H2 a, EMU_H2 b) { return EMU_H2(__hsub(a.x, b.x), __hsub(a.y, b.y)); }
static inline EMU_H __hmul(EMU_H a, EMU_H b) { return EMU_H::of(a.number() * b.number()); }
static inline EMU_H __hmul_rn(EMU_H a, EMU_H b) { return __hmul(a, b); }
static inline EMU_H2 __hmul2(EMU_H2 a, EMU_H2 b) { return EMU_H2(__hmul(a.x, b.x), __hmul(a.y, b.y)); }
static inline EMU_H __hdiv(EMU_H a, EMU_H b) { return EMU_H::of(a.number() / b.number()); }
static inline EMU_H2 __h2div(EMU_H2 a, EMU_H2 b) { return EMU_H2(__hdiv(a.x, b.x), __hdiv(a.y, b.y)); }
static inline EMU_H __hneg(EMU_H a) { return EMU_H(EMU_RAW{static_cast<unsigned short>(a.bits ^ 0x8000u)}); }
static inline EMU_H __habs(EMU_H a) { return EMU_H(EMU_RAW{static_cast<unsigned short>(a.bits & 0x7fffu)}); }
// In double, so that only the last step rounds.
static inline EMU_H __hfma(EMU_H a, EMU_H b, EMU_H c) {
    return EMU_H::of(static_cast<float>(static_cast<double>(a.number()) * b.number() + c.number()));
}
static inline EMU_H __hfma_relu(EMU_H a, EMU_H b, EMU_H c) {
    const EMU_H v = __hfma(a, b, c);
    return v.number() < 0.0f ? EMU_H::of(0.0f) : v;
}
// With a NaN the plain comparisons are false and the unordered ones (u) true.
#define EMU_COMPARISON(NAME, TEST)                                                                           \
    static inline bool __h##NAME(EMU_H p, EMU_H q) {                                                         \
        const float a = p.number(), b = q.number();                                                          \
        return TEST;                                                                                         \
    }                                                                                                        \
    static inline EMU_H2 __h##NAME##2(EMU_H2 a, EMU_H2 b) {                                                  \
        return EMU_H2(EMU_H::of(__h##NAME(a.x, b.x)), EMU_H::of(__h##NAME(a.y, b.y)));                       \
    }                                                                                                        \
    static inline unsigned __h##NAME##2_mask(EMU_H2 a, EMU_H2 b) {                                           \
        return (__h##NAME(a.x, b.x) ? 0xffffu : 0u) | (__h##NAME(a.y, b.y) ? 0xffff0000u : 0u);              \
    }                                                                                                        \
    static inline bool __hb##NAME##2(EMU_H2 a, EMU_H2 b) { return __h##NAME(a.x, b.x) && __h##NAME(a.y, b.y); }
EMU_COMPARISON(eq, a == b)
EMU_COMPARISON(ne, a < b || a > b)
EMU_COMPARISON(lt, a < b)
EMU_COMPARISON(gt, a > b)
EMU_COMPARISON(le, a <= b)
EMU_COMPARISON(ge, a >= b)
EMU_COMPARISON(equ, !(a < b || a > b))
EMU_COMPARISON(neu, a != b)
EMU_COMPARISON(ltu, !(a >= b))
EMU_COMPARISON(gtu, !(a <= b))
EMU_COMPARISON(leu, !(a > b))
EMU_COMPARISON(geu, !(a < b))
#undef EMU_COMPARISON
static inline bool __hisnan(EMU_H a) { return a.number() != a.number(); }
static inline int __hisinf(EMU_H a) { return a.number() == INFINITY ? 1 : a.number() == -INFINITY ? -1 : 0; }
static inline EMU_H __hmax(EMU_H a, EMU_H b) { return EMU_H::of(fmaxf(a.number(), b.number())); }
static inline EMU_H __hmin(EMU_H a, EMU_H b) { return EMU_H::of(fminf(a.number(), b.number())); }
static inline EMU_H2 __hneg2(EMU_H2 a) { return EMU_H2(__hneg(a.x), __hneg(a.y)); }
static inline EMU_H2 __habs2(EMU_H2 a) { return EMU_H2(__habs(a.x), __habs(a.y)); }
static inline EMU_H2 __hfma2(EMU_H2 a, EMU_H2 b, EMU_H2 c) { return EMU_H2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }
static inline EMU_H __hmax_nan(EMU_H a, EMU_H b) { return a.number() != a.number() ? a : b.number() != b.number() ? b : __hmax(a, b); }
static inline EMU_H __hmin_nan(EMU_H a, EMU_H b) { return a.number() != a.number() ? a : b.number() != b.number() ? b : __hmin(a, b); }
static inline EMU_H __hadd_sat(EMU_H a, EMU_H b) { return EMU_H::of(fminf(fmaxf(a.number() + b.number(), 0.f), 1.f)); }
static inline EMU_H __hmul_sat(EMU_H a, EMU_H b) { return EMU_H::of(fminf(fmaxf(a.number() * b.number(), 0.f), 1.f)); }
static inline EMU_H __hsub_sat(EMU_H a, EMU_H b) { return EMU_H::of(fminf(fmaxf(a.number() - b.number(), 0.f), 1.f)); }
static inline EMU_H __hfma_sat(EMU_H a, EMU_H b, EMU_H c) {
    return EMU_H::of(fminf(fmaxf(__hfma(a, b, c).number(), 0.f), 1.f));
}
#define EMU_PAIRWISE(NAME, ONE)                                                                             \
    static inline EMU_H2 NAME(EMU_H2 a, EMU_H2 b) { return EMU_H2(ONE(a.x, b.x), ONE(a.y, b.y)); }
EMU_PAIRWISE(__hadd2_rn, __hadd)
EMU_PAIRWISE(__hsub2_rn, __hsub)
EMU_PAIRWISE(__hmul2_rn, __hmul)
EMU_PAIRWISE(__hadd2_sat, __hadd_sat)
EMU_PAIRWISE(__hsub2_sat, __hsub_sat)
EMU_PAIRWISE(__hmul2_sat, __hmul_sat)
EMU_PAIRWISE(__hmax2_nan, __hmax_nan)
EMU_PAIRWISE(__hmin2_nan, __hmin_nan)
#undef EMU_PAIRWISE
static inline EMU_H2 __hfma2_sat(EMU_H2 a, EMU_H2 b, EMU_H2 c) {
    return EMU_H2(__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y));
}
static inline EMU_H2 __hfma2_relu(EMU_H2 a, EMU_H2 b, EMU_H2 c) {
    return EMU_H2(__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y));
}
// a * b + c of complex numbers: x is the real part.
static inline EMU_H2 __hcmadd(EMU_H2 a, EMU_H2 b, EMU_H2 c) {
    const EMU_H real = __hfma(a.x, b.x, c.x), imaginary = __hfma(a.x, b.y, c.y);
    return EMU_H2(__hfma(__hneg(a.y), b.y, real), __hfma(a.y, b.x, imaginary));
}
static inline EMU_H2 __hisnan2(EMU_H2 a) { return EMU_H2(EMU_H::of(__hisnan(a.x)), EMU_H::of(__hisnan(a.y))); }
static inline EMU_H2 __lowhigh2highlow(EMU_H2 v) { return EMU_H2(v.y, v.x); }
static inline EMU_H2 __hmax2(EMU_H2 a, EMU_H2 b) { return EMU_H2(__hmax(a.x, b.x), __hmax(a.y, b.y)); }
static inline EMU_H2 __hmin2(EMU_H2 a, EMU_H2 b) { return EMU_H2(__hmin(a.x, b.x), __hmin(a.y, b.y)); }
static inline float __low2float(EMU_H2 v) { return v.x.number(); }
static inline float __high2float(EMU_H2 v) { return v.y.number(); }
#if EMU_PAIR_OPERATORS_ALLOWED
static inline EMU_H2 operator+(const EMU_H2& a, const EMU_H2& b) { return __hadd2(a, b); }
static inline EMU_H2 operator-(const EMU_H2& a, const EMU_H2& b) { return __hsub2(a, b); }
static inline EMU_H2 operator*(const EMU_H2& a, const EMU_H2& b) { return __hmul2(a, b); }
static inline EMU_H2 operator/(const EMU_H2& a, const EMU_H2& b) { return __h2div(a, b); }
static inline EMU_H2& operator+=(EMU_H2& a, const EMU_H2& b) { return a = __hadd2(a, b); }
static inline EMU_H2& operator-=(EMU_H2& a, const EMU_H2& b) { return a = __hsub2(a, b); }
static inline EMU_H2& operator*=(EMU_H2& a, const EMU_H2& b) { return a = __hmul2(a, b); }
static inline EMU_H2& operator/=(EMU_H2& a, const EMU_H2& b) { return a = __h2div(a, b); }
static inline EMU_H2 operator-(const EMU_H2& a) { return __hneg2(a); }
static inline EMU_H2 operator+(const EMU_H2& a) { return a; }
static inline EMU_H2& operator++(EMU_H2& a) { return a = __hadd2(a, EMU_H2(EMU_H::of(1), EMU_H::of(1))); }
static inline EMU_H2& operator--(EMU_H2& a) { return a = __hsub2(a, EMU_H2(EMU_H::of(1), EMU_H::of(1))); }
static inline EMU_H2 operator++(EMU_H2& a, int) { const EMU_H2 before = a; ++a; return before; }
static inline EMU_H2 operator--(EMU_H2& a, int) { const EMU_H2 before = a; --a; return before; }
static inline bool operator==(const EMU_H2& a, const EMU_H2& b) { return __hbeq2(a, b); }
static inline bool operator!=(const EMU_H2& a, const EMU_H2& b) { return __hbneu2(a, b); }
static inline bool operator<(const EMU_H2& a, const EMU_H2& b) { return __hblt2(a, b); }
static inline bool operator>(const EMU_H2& a, const EMU_H2& b) { return __hbgt2(a, b); }
static inline bool operator<=(const EMU_H2& a, const EMU_H2& b) { return __hble2(a, b); }
static inline bool operator>=(const EMU_H2& a, const EMU_H2& b) { return __hbge2(a, b); }
#endif
#define EMU_FUNCTION(NAME, F)                                                              \
    static inline EMU_H h##NAME(EMU_H x) { return EMU_H::of(F(x.number())); }       \
    static inline EMU_H2 h2##NAME(EMU_H2 v) { return EMU_H2(h##NAME(v.x), h##NAME(v.y)); }
EMU_FUNCTION(exp, expf)
EMU_FUNCTION(exp2, exp2f)
EMU_FUNCTION(exp10, ::emu::fast_exp10)
EMU_FUNCTION(log, logf)
EMU_FUNCTION(log2, log2f)
EMU_FUNCTION(log10, log10f)
EMU_FUNCTION(sqrt, sqrtf)
EMU_FUNCTION(rsqrt, rsqrtf)
EMU_FUNCTION(rcp, 1.0f /)
EMU_FUNCTION(sin, sinf)
EMU_FUNCTION(cos, cosf)
EMU_FUNCTION(tanh, tanhf)
static inline EMU_H htanh_approx(EMU_H x) { return htanh(x); }
static inline EMU_H2 h2tanh_approx(EMU_H2 v) { return h2tanh(v); }
EMU_FUNCTION(ceil, ceilf)
EMU_FUNCTION(floor, floorf)
EMU_FUNCTION(trunc, truncf)
EMU_FUNCTION(rint, nearbyintf)
#undef EMU_FUNCTION
inline EMU_ACCESSOR EMU_H atomicAdd(EMU_H* p, EMU_H v) {
    emu_atomic(p, sizeof(EMU_H), EMU_HERE);
    const EMU_H old = *p;
    *p = __hadd(old, v);
    return old;
}
inline EMU_ACCESSOR EMU_H2 atomicAdd(EMU_H2* p, EMU_H2 v) {
    emu_atomic(p, sizeof(EMU_H2), EMU_HERE);
    const EMU_H2 old = *p;
    *p = __hadd2(old, v);
    return old;
}
// Conversions from and to an integer type that name their rounding.
#define EMU_ROUNDINGS(FROM, TO, KIND)                                                                       \
    static inline EMU_H TO##_rn(FROM v) { return EMU_H::rounded(v, 0); }                                    \
    static inline EMU_H TO##_rd(FROM v) { return EMU_H::rounded(v, -1); }                                   \
    static inline EMU_H TO##_ru(FROM v) { return EMU_H::rounded(v, 1); }                                    \
    static inline EMU_H TO##_rz(FROM v) { return EMU_H::rounded(v, 2); }                                    \
    static inline FROM KIND##_rn(EMU_H v) { return ::emu::saturating<FROM>(nearbyintf(v.number())); }       \
    static inline FROM KIND##_rz(EMU_H v) { return ::emu::saturating<FROM>(truncf(v.number())); }           \
    static inline FROM KIND##_rd(EMU_H v) { return ::emu::saturating<FROM>(floorf(v.number())); }           \
    static inline FROM KIND##_ru(EMU_H v) { return ::emu::saturating<FROM>(ceilf(v.number())); }
