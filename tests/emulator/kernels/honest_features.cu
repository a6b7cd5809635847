// Honest kernels: the rest of the language that public solutions use.
#include <torch/extension.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Atomic.cuh>
#include <c10/cuda/CUDAStream.h>
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

namespace cg = cooperative_groups;

// Two phases over the whole grid with a grid barrier between them.
__global__ void grid_sync_kernel(const float* x, float* partial, float* o, int n) {
    cg::grid_group grid = cg::this_grid();
    __shared__ float s;
    if (threadIdx.x == 0) s = 0;
    __syncthreads();
    for (int i = grid.thread_rank(); i < n; i += grid.size()) atomicAdd(&s, x[i]);
    __syncthreads();
    if (threadIdx.x == 0) partial[blockIdx.x] = s;
    grid.sync();
    float total = 0;
    for (int b = 0; b < gridDim.x; ++b) total += partial[b];
    for (int i = grid.thread_rank(); i < n; i += grid.size()) o[i] = x[i] / total;
    grid.sync();
    if (threadIdx.x == 0) partial[blockIdx.x] = s + 1.0f;
}
torch::Tensor grid_sync(torch::Tensor x) {
    auto o = torch::empty_like(x);
    int per_sm = 0, device = 0, cooperative = 0;
    C10_CUDA_CHECK(cudaGetDevice(&device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
    TORCH_CHECK(cooperative, "no cooperative launch");
    C10_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, grid_sync_kernel, 64, 0));
    const int blocks = std::min(6, per_sm * at::cuda::getCurrentDeviceProperties()->multiProcessorCount);
    auto partial = torch::empty({blocks}, x.options());
    const float* xp = x.data_ptr<float>();
    float *pp = partial.data_ptr<float>(), *op = o.data_ptr<float>();
    int n = x.numel();
    void* args[] = {(void*)&xp, &pp, &op, &n};
    C10_CUDA_CHECK(cudaLaunchCooperativeKernel((void*)grid_sync_kernel, dim3(blocks), dim3(64), args, 0,
                                               at::cuda::getCurrentCUDAStream()));
    return o;
}

__device__ int aggregated_increment(int* counter) {
    const unsigned active = __activemask();
    const int leader = __ffs(active) - 1, lane = threadIdx.x & 31;
    int base = 0;
    if (lane == leader) base = atomicAdd(counter, __popc(active));
    base = __shfl_sync(active, base, leader);
    return base + __popc(active & ((1u << lane) - 1));
}
__global__ void compact_kernel(const float* x, float* o, int* counter, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && x[i] > 0) o[aggregated_increment(counter)] = x[i];
}
torch::Tensor compact_sum(torch::Tensor x) {
    auto o = torch::zeros_like(x);
    auto counter = torch::zeros({1}, x.options().dtype(torch::kInt));
    compact_kernel<<<(x.numel() + 63) / 64, 64>>>(x.data_ptr<float>(), o.data_ptr<float>(), counter.data_ptr<int>(),
                                                  x.numel());
    return torch::stack({o.sum(), counter.to(torch::kFloat).sum()});
}
__global__ void coalesced_kernel(const int* x, int* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && x[i] % 3 == 0) {
        auto g = cg::coalesced_threads();
        int base = 0;
        if (g.thread_rank() == 0) base = atomicAdd(o, static_cast<int>(g.size()));
        base = g.shfl(base, 0);
        atomicMax(o + 1, base + static_cast<int>(g.thread_rank()));
    }
}
torch::Tensor coalesced(torch::Tensor x) {
    auto o = torch::zeros({2}, x.options());
    coalesced_kernel<<<(x.numel() + 63) / 64, 64>>>(x.data_ptr<int>(), o.data_ptr<int>(), x.numel());
    return o;
}

__global__ void half2_kernel(const __half2* a, const __half2* b, __half2* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = __hfma2(a[i], b[i], __float2half2_rn(0.5f));
}
torch::Tensor half2_fma(torch::Tensor a, torch::Tensor b) {
    auto o = torch::empty_like(a);
    half2_kernel<<<1, 128>>>(reinterpret_cast<const __half2*>(a.data_ptr<at::Half>()),
                             reinterpret_cast<const __half2*>(b.data_ptr<at::Half>()),
                             reinterpret_cast<__half2*>(o.data_ptr<at::Half>()), a.numel() / 2);
    return o;
}
__global__ void bf16_kernel(const __nv_bfloat16* a, __nv_bfloat16* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        const float v = __bfloat162float(a[i]);
        o[i] = __float2bfloat16(v / (1.0f + __expf(-v)));
    }
}
torch::Tensor bf16_silu(torch::Tensor a) {
    auto o = torch::empty_like(a);
    bf16_kernel<<<2, 64>>>(reinterpret_cast<const __nv_bfloat16*>(a.data_ptr<at::BFloat16>()),
                           reinterpret_cast<__nv_bfloat16*>(o.data_ptr<at::BFloat16>()), a.numel());
    return o;
}

__constant__ float coefficients[4];
__global__ void polynomial_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float v = 0;
        for (int k = 3; k >= 0; --k) v = v * x[i] + coefficients[k];
        o[i] = v;
    }
}
torch::Tensor polynomial(torch::Tensor x) {
    const float host[4] = {1, 2, 3, 4};
    C10_CUDA_CHECK(cudaMemcpyToSymbol(coefficients, host, sizeof(host)));
    auto o = torch::empty_like(x);
    polynomial_kernel<<<2, 128>>>(x.data_ptr<float>(), o.data_ptr<float>(), x.numel());
    return o;
}

__device__ int visits;
__global__ void visit_kernel() { atomicAdd(&visits, 1); }
torch::Tensor device_variable(torch::Tensor x) {
    int zero = 0, seen = 0;
    C10_CUDA_CHECK(cudaMemcpyToSymbol(visits, &zero, sizeof(int)));
    visit_kernel<<<3, 50>>>();
    C10_CUDA_CHECK(cudaMemcpyFromSymbol(&seen, visits, sizeof(int)));
    return torch::full({1}, seen, x.options());
}

// Two arrays carved out of one dynamic allocation.
__global__ void carved_kernel(const float* x, float* o, int n) {
    extern __shared__ unsigned char raw[];
    float* values = reinterpret_cast<float*>(raw);
    int* order = reinterpret_cast<int*>(values + n);
    values[threadIdx.x] = x[threadIdx.x];
    order[threadIdx.x] = n - 1 - threadIdx.x;
    __syncthreads();
    o[threadIdx.x] = values[order[threadIdx.x]];
}
torch::Tensor carved(torch::Tensor x) {
    auto o = torch::empty_like(x);
    const int n = x.numel();
    carved_kernel<<<1, n, n * (sizeof(float) + sizeof(int))>>>(x.data_ptr<float>(), o.data_ptr<float>(), n);
    return o;
}
extern __shared__ double file_scope[];
__global__ void file_scope_kernel(const double* x, double* o) {
    file_scope[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    o[threadIdx.x] = file_scope[blockDim.x - 1 - threadIdx.x];
}
torch::Tensor file_scope_shared(torch::Tensor x) {
    auto o = torch::empty_like(x);
    file_scope_kernel<<<1, x.numel(), x.numel() * sizeof(double)>>>(x.data_ptr<double>(), o.data_ptr<double>());
    return o;
}

struct Pair {
    float mean, m2;
    int count;
};
template <typename T, int N>
struct Storage {
    T items[N];
};
// Welford's combination in a shared array of structs.
template <int Threads>
__global__ void __launch_bounds__(Threads) welford_kernel(const float* x, float* o, int cols) {
    __shared__ Storage<Pair, Threads> shared;
    Pair p{0, 0, 0};
    for (int c = threadIdx.x; c < cols; c += Threads) {
        const float v = x[blockIdx.x * cols + c], d = v - p.mean;
        p.count += 1;
        p.mean += d / p.count;
        p.m2 += d * (v - p.mean);
    }
    shared.items[threadIdx.x] = p;
    __syncthreads();
    for (int k = Threads / 2; k > 0; k >>= 1) {
        if (threadIdx.x < k) {
            const Pair a = shared.items[threadIdx.x], b = shared.items[threadIdx.x + k];
            const int count = a.count + b.count;
            if (count) {
                const float d = b.mean - a.mean;
                shared.items[threadIdx.x] = {a.mean + d * b.count / count,
                                             a.m2 + b.m2 + d * d * a.count * b.count / count, count};
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) o[blockIdx.x] = shared.items[0].m2 / cols;
}
torch::Tensor welford(torch::Tensor x) {
    auto o = torch::empty({x.size(0)}, x.options());
    welford_kernel<64><<<x.size(0), 64>>>(x.data_ptr<float>(), o.data_ptr<float>(), x.size(1));
    return o;
}

struct Gelu {
    float scale;
    __device__ float operator()(float v) const { return scale * 0.5f * v * (1.0f + erff(v * 0.70710678f)); }
};
namespace detail {
namespace inner {
template <typename F>
__global__ void map_kernel(const float* x, float* o, int n, F f) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = f(x[i]);
}
}  // namespace inner
}  // namespace detail
torch::Tensor functor(torch::Tensor x) {
    auto o = torch::empty_like(x);
    detail::inner::map_kernel<<<2, 128>>>(x.data_ptr<float>(), o.data_ptr<float>(), (int)x.numel(), Gelu{2.0f});
    return o;
}
torch::Tensor device_lambda(torch::Tensor x) {
    auto o = torch::empty_like(x);
    const float shift = 3.0f;
    detail::inner::map_kernel<<<2, 128>>>(x.data_ptr<float>(), o.data_ptr<float>(), (int)x.numel(),
                                          [shift] __device__(float v) { return v + shift; });
    return o;
}

__global__ void twice_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = 2 * x[i];
}
__global__ void thrice_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = 3 * x[i];
}
torch::Tensor function_pointer(torch::Tensor x) {
    auto o = torch::empty_like(x);
    void (*table[])(const float*, float*, int) = {twice_kernel, thrice_kernel};
    table[1]<<<1, x.numel()>>>(x.data_ptr<float>(), o.data_ptr<float>(), x.numel());
    return o;
}
#define LAUNCH(KERNEL, GRID, BLOCK, ...) \
    KERNEL<<<GRID, BLOCK, 0, at::cuda::getCurrentCUDAStream()>>>(__VA_ARGS__)
torch::Tensor launch_macro(torch::Tensor x) {
    auto o = torch::empty_like(x);
    LAUNCH(twice_kernel, dim3(1), dim3(x.numel()), x.data_ptr<float>(), o.data_ptr<float>(), x.numel());
    return o;
}

__global__ void tiles_kernel(const float* x, float* o) {
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<16>(block);
    const float sum = cg::reduce(tile, x[block.thread_rank()], cg::plus<float>());
    float top = x[block.thread_rank()];
    for (int d = tile.size() / 2; d > 0; d /= 2) top = fmaxf(top, tile.shfl_xor(top, d));
    if (tile.thread_rank() == 0) {
        o[tile.meta_group_rank() * 2] = sum;
        o[tile.meta_group_rank() * 2 + 1] = top;
    }
}
torch::Tensor tiles(torch::Tensor x) {
    auto o = torch::empty({x.numel() / 16, 2}, x.options());
    tiles_kernel<<<1, x.numel()>>>(x.data_ptr<float>(), o.data_ptr<float>());
    return o;
}

__global__ void accessor_kernel(torch::PackedTensorAccessor32<float, 3, torch::RestrictPtrTraits> x,
                                torch::PackedTensorAccessor32<float, 2, torch::RestrictPtrTraits> o) {
    const int i = threadIdx.x;
    if (i < x.size(0)) {
        float s = 0;
        for (int j = 0; j < x.size(1); ++j)
            for (int k = 0; k < x.size(2); ++k) s += x[i][j][k];
        o[i][0] = s;
    }
}
torch::Tensor accessor(torch::Tensor x) {
    auto o = torch::empty({x.size(0), 1}, x.options());
    accessor_kernel<<<1, 32>>>(x.packed_accessor32<float, 3, torch::RestrictPtrTraits>(),
                               o.packed_accessor32<float, 2, torch::RestrictPtrTraits>());
    return o;
}

__global__ void pun_kernel(const float* x, int* o, int n) {
    const int i = threadIdx.x;
    if (i < n) {
        int bits;
        memcpy(&bits, x + i, sizeof(bits));
        o[i] = bits ^ __float_as_int(x[i]);
    }
}
torch::Tensor pun(torch::Tensor x) {
    auto o = torch::empty({x.numel()}, x.options().dtype(torch::kInt));
    pun_kernel<<<1, 64>>>(x.data_ptr<float>(), o.data_ptr<int>(), x.numel());
    return o;
}

__global__ void votes_kernel(const int* x, int* o) {
    const int v = x[threadIdx.x];
    const unsigned even = __ballot_sync(0xffffffff, v % 2 == 0), same = __match_any_sync(0xffffffff, v);
    const int any = __any_sync(0xffffffff, v > 6), all = __all_sync(0xffffffff, v >= 0);
    const unsigned sum = __reduce_add_sync(0xffffffff, static_cast<unsigned>(v));
    o[threadIdx.x] = __popc(even) + 100 * __popc(same) + 10000 * any + 20000 * all + 100000 * static_cast<int>(sum);
}
torch::Tensor votes(torch::Tensor x) {
    auto o = torch::empty_like(x);
    votes_kernel<<<1, 32>>>(x.data_ptr<int>(), o.data_ptr<int>());
    return o;
}

__global__ void scatter_kernel(const int64_t* index, const double* x, double* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&o[index[i]], x[i]);
}
torch::Tensor scatter(torch::Tensor index, torch::Tensor x) {
    auto o = torch::zeros({8}, x.options());
    scatter_kernel<<<2, 64>>>(index.data_ptr<int64_t>(), x.data_ptr<double>(), o.data_ptr<double>(), x.numel());
    return o;
}

__global__ void stage_kernel(const float* x, float* w, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) __stcs(w + i, __ldcs(x + i) + 1.0f);
}
// A workspace of the runtime API, a stream and events of its own.
torch::Tensor workspace(torch::Tensor x) {
    const int n = x.numel();
    auto o = torch::empty_like(x);
    float* w = nullptr;
    cudaStream_t stream;
    cudaEvent_t from, to;
    float ms = -1;
    C10_CUDA_CHECK(cudaStreamCreate(&stream));
    C10_CUDA_CHECK(cudaEventCreate(&from));
    C10_CUDA_CHECK(cudaEventCreate(&to));
    C10_CUDA_CHECK(cudaMalloc(&w, n * sizeof(float)));
    C10_CUDA_CHECK(cudaMemsetAsync(w, 0, n * sizeof(float), stream));
    C10_CUDA_CHECK(cudaEventRecord(from, stream));
    stage_kernel<<<(n + 31) / 32, 32, 0, stream>>>(x.data_ptr<float>(), w, n);
    C10_CUDA_CHECK(cudaEventRecord(to, stream));
    C10_CUDA_CHECK(cudaStreamSynchronize(stream));
    C10_CUDA_CHECK(cudaEventElapsedTime(&ms, from, to));
    C10_CUDA_CHECK(cudaMemcpy(o.data_ptr<float>(), w, n * sizeof(float), cudaMemcpyDeviceToDevice));
    C10_CUDA_CHECK(cudaFree(w));
    C10_CUDA_CHECK(cudaEventDestroy(from));
    C10_CUDA_CHECK(cudaEventDestroy(to));
    C10_CUDA_CHECK(cudaStreamDestroy(stream));
    TORCH_CHECK(ms >= 0);
    return o;
}

// A volatile flag in global memory after a fence: the consumer is the last block by its ticket.
__global__ void flags_kernel(const float* x, float* data, volatile int* flags, float* o, int* ticket) {
    __shared__ int mine;
    if (threadIdx.x == 0) mine = atomicAdd(ticket, 1);
    __syncthreads();
    const int b = mine;
    data[b * blockDim.x + threadIdx.x] = x[b * blockDim.x + threadIdx.x];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) flags[b] = 1;
    float sum = 0;
    if (b > 0) {
        while (flags[b - 1] == 0) {
        }
        __threadfence();
        sum = data[(b - 1) * blockDim.x + threadIdx.x];
    }
    o[b * blockDim.x + threadIdx.x] = sum + x[b * blockDim.x + threadIdx.x];
}
torch::Tensor flags(torch::Tensor x) {
    auto data = torch::empty_like(x), o = torch::empty_like(x);
    auto flag = torch::zeros({x.size(0)}, x.options().dtype(torch::kInt)), ticket = torch::zeros_like(flag);
    flags_kernel<<<x.size(0), x.size(1)>>>(x.data_ptr<float>(), data.data_ptr<float>(), flag.data_ptr<int>(),
                                           o.data_ptr<float>(), ticket.data_ptr<int>());
    return o;
}

// A spin lock around a critical section, taken by one thread per block.
__global__ void lock_kernel(const float* x, float* o, int* lock) {
    if (threadIdx.x == 0) {
        while (atomicCAS(lock, 0, 1) != 0) {
        }
        __threadfence();
        *o = *o + x[blockIdx.x];
        __threadfence();
        atomicExch(lock, 0);
    }
}
torch::Tensor spin_lock(torch::Tensor x) {
    auto o = torch::zeros({1}, x.options());
    auto lock = torch::zeros({1}, x.options().dtype(torch::kInt));
    lock_kernel<<<x.numel(), 32>>>(x.data_ptr<float>(), o.data_ptr<float>(), lock.data_ptr<int>());
    return o;
}

__global__ void math_kernel(const float* x, float* o, int n) {
    const int i = threadIdx.x;
    if (i >= n) return;
    const float v = x[i];
    float s, c;
    sincosf(v, &s, &c);
    o[i] = rsqrtf(v * v + 1.0f) + __fdividef(s, 2.0f) + __fmaf_rn(c, 2.0f, 1.0f) + __powf(fabsf(v) + 1.0f, 0.5f) +
           fminf(v, CUDART_INF_F) + static_cast<float>(max(i, 3)) + __logf(2.0f) + exp2f(1.0f) + __float2int_rn(1.5f) +
           __saturatef(v) + __clz(i + 1) + min(1.0f, v) + normcdff(0.0f);
    assert(o[i] == o[i]);
}
torch::Tensor math(torch::Tensor x) {
    auto o = torch::empty_like(x);
    math_kernel<<<1, 64>>>(x.data_ptr<float>(), o.data_ptr<float>(), x.numel());
    return o;
}

__global__ void half_atomic_kernel(const at::Half* x, at::Half* o, int n) {
    const int i = threadIdx.x;
    if (i < n) gpuAtomicAdd(o, x[i]);
}
torch::Tensor half_atomic(torch::Tensor x) {
    auto o = torch::zeros({1}, x.options());
    half_atomic_kernel<<<1, 32>>>(x.data_ptr<at::Half>(), o.data_ptr<at::Half>(), x.numel());
    return o;
}

// Neighbouring small values belong to different threads: each reads and then writes its own.
__global__ void half_in_place_kernel(at::Half* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = static_cast<at::Half>(static_cast<float>(x[i]) * 2);
}
torch::Tensor half_in_place(torch::Tensor x) {
    auto o = x.clone();
    half_in_place_kernel<<<3, 64>>>(o.data_ptr<at::Half>(), o.numel());
    return o;
}
__global__ void half_tree_kernel(const at::Half* x, at::Half* o) {
    __shared__ at::Half s[64];
    const int t = threadIdx.x;
    s[t] = x[t];
    __syncthreads();
    for (int k = 32; k > 0; k /= 2) {
        if (t < k) s[t] = s[t] + s[t + k];
        __syncthreads();
    }
    if (t == 0) *o = s[0];
}
torch::Tensor half_tree(torch::Tensor x) {
    auto o = torch::empty({1}, x.options());
    half_tree_kernel<<<1, 64>>>(x.data_ptr<at::Half>(), o.data_ptr<at::Half>());
    return o;
}
__global__ void bytes_in_place_kernel(unsigned char* x) {
    __shared__ unsigned char s[96];
    const int t = threadIdx.x;
    s[t] = x[t];
    s[t] += 3;
    __syncthreads();
    if (t < 24) {  // whole words after single bytes
        const uchar4 four = reinterpret_cast<uchar4*>(s)[t];
        reinterpret_cast<uchar4*>(x)[t] = make_uchar4(four.w, four.z, four.y, four.x);
    }
    __syncthreads();
    x[t] = x[t] + 1;
}
torch::Tensor bytes_in_place(torch::Tensor x) {
    auto o = x.clone();
    bytes_in_place_kernel<<<1, 96>>>(o.data_ptr<unsigned char>());
    return o;
}

// cuBLAS beside a kernel of one's own: row-major a (m, k) times b (n, k) transposed.
__global__ void add_one_kernel(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += 1;
}
torch::Tensor blas(torch::Tensor a, torch::Tensor b) {
    const int m = a.size(0), k = a.size(1), n = b.size(0);
    auto o = torch::empty({m, n}, a.options());
    const float alpha = 2, beta = 0;
    cublasHandle_t handle = at::cuda::getCurrentCUDABlasHandle();
    cublasSgemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &alpha, b.data_ptr<float>(), k,
                a.data_ptr<float>(), k, &beta, o.data_ptr<float>(), n);
    add_one_kernel<<<(m * n + 63) / 64, 64>>>(o.data_ptr<float>(), m * n);
    return o;
}
torch::Tensor blas_vectors(torch::Tensor a, torch::Tensor x, torch::Tensor y) {
    const int m = a.size(0), n = a.size(1);  // row-major m x n is column-major n x m
    auto o = a.clone();
    auto v = y.clone();
    const float alpha = 3, beta = 0.5f;
    cublasHandle_t handle;
    cublasCreate(&handle);
    cublasSger(handle, n, m, &alpha, x.data_ptr<float>(), 1, y.data_ptr<float>(), 1,
               o.data_ptr<float>(), n);
    cublasSgemv(handle, CUBLAS_OP_T, n, m, &alpha, a.data_ptr<float>(), n, x.data_ptr<float>(), 1,
                &beta, v.data_ptr<float>(), 1);
    cublasDestroy(handle);
    auto r = torch::cat({o, v.unsqueeze(1)}, 1);
    add_one_kernel<<<(m * (n + 1) + 63) / 64, 64>>>(r.data_ptr<float>(), m * (n + 1));
    return r;
}

// Functions that few solutions use.
__global__ void rare_kernel(const float* x, float* o) {
    const int t = threadIdx.x;
    auto tile = cg::tiled_partition<32>(cg::this_thread_block());
    const float inverse = erff(erfinvf(x[t])) + normcdff(normcdfinvf((x[t] + 1) / 2));
    const int before = cg::exclusive_scan(tile, t % 7, cg::greater<int>());
    const float shifts = __funnelshift_lc(1u, 2u, 40u) + __funnelshift_rc(1u, 2u, 1u);
    o[t] = inverse + before + shifts + __half2float(__hadd_sat(__float2half(x[t]), __float2half(2.f)));
}
torch::Tensor rare(torch::Tensor x) {
    auto o = torch::empty_like(x);
    rare_kernel<<<1, 32>>>(x.data_ptr<float>(), o.data_ptr<float>());
    return o;
}
