// cuBLAS products of matrices and vectors through at::matmul, with the bounds of every operand
// checked. Anything else of cuBLAS is named as unsupported before it gets here (unsupported.py).
#ifndef EMU_CUBLAS_V2_H
#define EMU_CUBLAS_V2_H
#include <torch/types.h>

#include "cuda_runtime.h"

typedef struct cublasContext {
    cudaStream_t stream;
}* cublasHandle_t;
enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_OP_C = 2 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_TENSOR_OP_MATH = 1, CUBLAS_PEDANTIC_MATH = 2, CUBLAS_TF32_TENSOR_OP_MATH = 3 };

static inline cublasStatus_t cublasCreate(cublasHandle_t* handle) {
    *handle = new cublasContext{};
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
static inline const char* cublasGetStatusString(cublasStatus_t s) {
    return s == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "a cuBLAS call failed";
}

namespace emu {
// Returns whether `bytes` from `p` on lie in one tensor or allocation; if not, reports a finding.
static inline bool cublas_operand(const char* call, const char* name, const void* p, int64_t bytes) {
    size_t room = 0;
    if (bytes <= 0) return true;
    if (!emu_pointer_is_device(p, &room)) {
        emu_note_failure("out-of-bounds read", (std::string(call) + ": " + name + " is not device memory").c_str());
        return false;
    }
    if (static_cast<int64_t>(room) >= bytes) return true;
    const std::string text = std::string(call) + ": " + name + " needs " + std::to_string(bytes) +
                             " bytes, and the tensor has " + std::to_string(room);
    emu_note_failure("out-of-bounds read", text.c_str());
    return false;
}

template <typename T>
at::Tensor cublas_view(const T* p, int64_t batch, int64_t stride, int64_t rows, int64_t columns, int64_t leading) {
    return at::from_blob(const_cast<T*>(p), {batch, rows, columns}, {stride, 1, leading},
                         at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
}

// Column-major, as cuBLAS has it: C (m x n) = alpha op(A) op(B) + beta C, `batch` times.
template <typename T>
cublasStatus_t cublas_gemm(const char* call, cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int64_t m,
                           int64_t n, int64_t k, const T* alpha, const T* a, int64_t lda, int64_t sa, const T* b,
                           int64_t ldb, int64_t sb, const T* beta, T* c, int64_t ldc, int64_t sc, int64_t batch) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    const int64_t ra = ta ? k : m, ca = ta ? m : k, rb = tb ? n : k, cb = tb ? k : n;
    if (m < 0 || n < 0 || k < 0 || lda < std::max<int64_t>(1, ra) || ldb < std::max<int64_t>(1, rb) ||
        ldc < std::max<int64_t>(1, m))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!m || !n || !batch) return CUBLAS_STATUS_SUCCESS;
    const int64_t size = sizeof(T), before = batch - 1;
    if ((k && (!cublas_operand(call, "A", a, (before * sa + lda * (ca - 1) + ra) * size) ||
               !cublas_operand(call, "B", b, (before * sb + ldb * (cb - 1) + rb) * size))) ||
        !cublas_operand(call, "C", c, (before * sc + ldc * (n - 1) + m) * size)) {
        emu_set_error(cudaErrorIllegalAddress, call);
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    at::NoGradGuard no_grad;
    at::Tensor left = cublas_view(a, batch, sa, ra, ca, lda), right = cublas_view(b, batch, sb, rb, cb, ldb);
    at::Tensor out = cublas_view(c, batch, sc, m, n, ldc);
    if (ta) left = left.transpose(1, 2);
    if (tb) right = right.transpose(1, 2);
    at::Tensor product = at::matmul(left, right).mul(*alpha);
    if (*beta != T(0)) product = product.add(out, *beta);
    out.copy_(product);
    return CUBLAS_STATUS_SUCCESS;
}

// y = alpha op(A) x + beta y, with increments.
template <typename T>
cublasStatus_t cublas_gemv(const char* call, cublasHandle_t handle, cublasOperation_t ta, int64_t m, int64_t n,
                           const T* alpha, const T* a, int64_t lda, const T* x, int64_t incx, const T* beta, T* y,
                           int64_t incy) {
    if (incx < 1 || incy < 1) return CUBLAS_STATUS_NOT_SUPPORTED;
    // A vector with an increment is a row-by-row matrix: 1 x length, leading dimension `inc`.
    const int64_t length = ta ? m : n, result = ta ? n : m;
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!m || !n) return CUBLAS_STATUS_SUCCESS;
    return cublas_gemm(call, handle, CUBLAS_OP_N, ta ? CUBLAS_OP_N : CUBLAS_OP_T, 1, result, length, alpha, x, incx, 0, a,
                       lda, 0, beta, y, incy, 0, 1);
}
}  // namespace emu

#define EMU_CUBLAS(L, T)                                                                                                  \
    static inline cublasStatus_t cublas##L##gemm(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,      \
                                                 int n, int k, const T* alpha, const T* a, int lda, const T* b, int ldb,   \
                                                 const T* beta, T* c, int ldc) {                                          \
        return ::emu::cublas_gemm("cublas" #L "gemm", h, ta, tb, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1); \
    }                                                                                                                     \
    static inline cublasStatus_t cublas##L##gemmStridedBatched(                                                           \
        cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const T* alpha, const T* a,     \
        int lda, long long sa, const T* b, int ldb, long long sb, const T* beta, T* c, int ldc, long long sc, int batch) { \
        return ::emu::cublas_gemm("cublas" #L "gemmStridedBatched", h, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb,     \
                                  beta, c, ldc, sc, batch);                                                               \
    }                                                                                                                     \
    static inline cublasStatus_t cublas##L##gemv(cublasHandle_t h, cublasOperation_t ta, int m, int n, const T* alpha,     \
                                                 const T* a, int lda, const T* x, int incx, const T* beta, T* y,          \
                                                 int incy) {                                                              \
        return ::emu::cublas_gemv("cublas" #L "gemv", h, ta, m, n, alpha, a, lda, x, incx, beta, y, incy);                 \
    }                                                                                                                     \
    static inline cublasStatus_t cublas##L##ger(cublasHandle_t h, int m, int n, const T* alpha, const T* x, int incx,      \
                                                const T* y, int incy, T* a, int lda) {                                    \
        const T one = 1;                                                                                                  \
        if (incx < 1 || incy < 1) return CUBLAS_STATUS_NOT_SUPPORTED;                                                      \
        return ::emu::cublas_gemm("cublas" #L "ger", h, CUBLAS_OP_T, CUBLAS_OP_N, m, n, 1, alpha, x, incx, 0, y, incy, 0,  \
                                  &one, a, lda, 0, 1);                                                                    \
    }
EMU_CUBLAS(S, float)
EMU_CUBLAS(D, double)
#undef EMU_CUBLAS
#endif
