#ifndef EMU_C10_CUDA_MATH_COMPAT_H
#define EMU_C10_CUDA_MATH_COMPAT_H
#include "../../cuda_runtime.h"
namespace c10::cuda::compat {
static inline float abs(float x) { return fabsf(x); }
static inline double abs(double x) { return fabs(x); }
static inline float exp(float x) { return expf(x); }
static inline double exp(double x) { return ::exp(x); }
static inline float log(float x) { return logf(x); }
static inline double log(double x) { return ::log(x); }
static inline float sqrt(float x) { return sqrtf(x); }
static inline double sqrt(double x) { return ::sqrt(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }
static inline double rsqrt(double x) { return ::rsqrt(x); }
static inline float pow(float x, float y) { return powf(x, y); }
static inline double pow(double x, double y) { return ::pow(x, y); }
static inline float tanh(float x) { return tanhf(x); }
static inline double tanh(double x) { return ::tanh(x); }
static inline float max(float x, float y) { return fmaxf(x, y); }
static inline double max(double x, double y) { return fmax(x, y); }
static inline float min(float x, float y) { return fminf(x, y); }
static inline double min(double x, double y) { return fmin(x, y); }
static inline float ceil(float x) { return ceilf(x); }
static inline float floor(float x) { return floorf(x); }
static inline float erf(float x) { return erff(x); }
static inline float normcdf(float x) { return normcdff(x); }
}  // namespace c10::cuda::compat
#endif
