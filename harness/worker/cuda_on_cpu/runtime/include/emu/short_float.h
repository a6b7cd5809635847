// A 16-bit float and its pair: EMU_H, EMU_H2 over the conversions of EMU_C10. Included once for
// half and once for bfloat16, so it has no guard. Every operation rounds once, as on the hardware.

struct EMU_RAW {
    unsigned short x;
};

struct EMU_H {
    unsigned short bits;
    EMU_H() = default;
    EMU_H(const EMU_RAW& r) : bits(r.x) {}
    EMU_H(EMU_C10 v) : bits(v.x) {}
    static EMU_H of(float v) { return EMU_H(EMU_C10(v)); }
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
static inline EMU_H __hfma_relu(EMU_H a, EMU_H b, EMU_H c) { return EMU_H::of(fmaxf(__hfma(a, b, c).number(), 0.0f)); }
static inline bool __heq(EMU_H a, EMU_H b) { return a.number() == b.number(); }
static inline EMU_H2 __heq2(EMU_H2 a, EMU_H2 b) { return EMU_H2(EMU_H::of(__heq(a.x, b.x)), EMU_H::of(__heq(a.y, b.y))); }
static inline bool __hne(EMU_H a, EMU_H b) { return a.number() != b.number(); }
static inline EMU_H2 __hne2(EMU_H2 a, EMU_H2 b) { return EMU_H2(EMU_H::of(__hne(a.x, b.x)), EMU_H::of(__hne(a.y, b.y))); }
static inline bool __hlt(EMU_H a, EMU_H b) { return a.number() < b.number(); }
static inline EMU_H2 __hlt2(EMU_H2 a, EMU_H2 b) { return EMU_H2(EMU_H::of(__hlt(a.x, b.x)), EMU_H::of(__hlt(a.y, b.y))); }
static inline bool __hgt(EMU_H a, EMU_H b) { return a.number() > b.number(); }
static inline EMU_H2 __hgt2(EMU_H2 a, EMU_H2 b) { return EMU_H2(EMU_H::of(__hgt(a.x, b.x)), EMU_H::of(__hgt(a.y, b.y))); }
static inline bool __hle(EMU_H a, EMU_H b) { return a.number() <= b.number(); }
static inline EMU_H2 __hle2(EMU_H2 a, EMU_H2 b) { return EMU_H2(EMU_H::of(__hle(a.x, b.x)), EMU_H::of(__hle(a.y, b.y))); }
static inline bool __hge(EMU_H a, EMU_H b) { return a.number() >= b.number(); }
static inline EMU_H2 __hge2(EMU_H2 a, EMU_H2 b) { return EMU_H2(EMU_H::of(__hge(a.x, b.x)), EMU_H::of(__hge(a.y, b.y))); }
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
static inline EMU_H2 operator-(const EMU_H2& a) { return __hneg2(a); }
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
