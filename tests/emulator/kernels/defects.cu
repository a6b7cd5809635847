// Defective kernels. The line at fault carries "// BUG name"; cases.py has the finding it must give.
#include <torch/extension.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <cooperative_groups.h>

namespace cg = cooperative_groups;
#define F(x) (x).data_ptr<float>()

// ------------------------------------------------------------------------------------ bounds
__global__ void oob_write_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float v = x[min(i, n - 1)];
    o[i] = v;  // BUG oob_write
}
torch::Tensor oob_write(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_write_kernel<<<(x.numel() + 63) / 64, 64>>>(F(x), F(o), x.numel());
    return o;
}
__global__ void oob_read_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = x[i + 1];  // BUG oob_read
}
torch::Tensor oob_read(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_read_kernel<<<(x.numel() + 63) / 64, 64>>>(F(x), F(o), x.numel());
    return o;
}
__global__ void oob_negative_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = x[i] + x[i - 1];  // BUG oob_negative
}
torch::Tensor oob_negative(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_negative_kernel<<<(x.numel() + 63) / 64, 64>>>(F(x), F(o), x.numel());
    return o;
}
__global__ void oob_far_kernel(const float* x, float* o, int rows, int cols) {
    const int i = threadIdx.x;
    o[i] = x[(i + 1) * rows * cols];  // BUG oob_far
}
torch::Tensor oob_far(torch::Tensor x) {
    auto o = torch::empty({32}, x.options());
    oob_far_kernel<<<1, 32>>>(F(x), F(o), x.size(0), x.size(1));
    return o;
}
__global__ void oob_vector_kernel(const float* x, float* o, int n) {
    const int i = threadIdx.x;
    if (i * 4 < n) {
        const float4 v = reinterpret_cast<const float4*>(x)[i];  // BUG oob_vector
        for (int k = 0; k < 4 && i * 4 + k < n; ++k) o[i * 4 + k] = v.x + v.y + v.z + v.w;
    }
}
torch::Tensor oob_vector(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_vector_kernel<<<1, 32>>>(F(x), F(o), x.numel());
    return o;
}
__global__ void oob_dtype_kernel(const float* x, float* o, int n) {
    const int i = threadIdx.x;
    if (i < n) o[i] = x[i];  // BUG oob_dtype
}
torch::Tensor oob_dtype(torch::Tensor x) {
    auto o = torch::empty({x.numel()}, x.options().dtype(torch::kFloat));
    oob_dtype_kernel<<<1, 64>>>(reinterpret_cast<const float*>(x.data_ptr<at::Half>()), F(o), x.numel());
    return o;
}
__global__ void oob_atomic_kernel(const int* x, int* bins) {
    atomicAdd(&bins[x[threadIdx.x]], 1);  // BUG oob_atomic
}
torch::Tensor oob_atomic(torch::Tensor x) {
    auto o = torch::zeros({8}, x.options());
    oob_atomic_kernel<<<1, 32>>>(x.data_ptr<int>(), o.data_ptr<int>());
    return o;
}
__global__ void oob_ldg_kernel(const float* x, float* o, int n) {
    const int i = threadIdx.x;
    const float v = __ldg(x + n - i);  // BUG oob_ldg
    if (i < n) o[i] = v;
}
torch::Tensor oob_ldg(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_ldg_kernel<<<1, 32>>>(F(x), F(o), x.numel());
    return o;
}
__global__ void oob_shared_kernel(const float* x, float* o) {
    __shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];  // BUG oob_shared
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x];
}
torch::Tensor oob_shared(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_shared_kernel<<<1, 64>>>(F(x), F(o));
    return o;
}
__global__ void oob_shared_read_kernel(const float* x, float* o) {
    __shared__ float a[64];
    __shared__ float b[64];
    a[threadIdx.x] = x[threadIdx.x];
    b[threadIdx.x] = 0;
    __syncthreads();
    o[threadIdx.x] = a[threadIdx.x + 1] + b[threadIdx.x];  // BUG oob_shared_read
}
torch::Tensor oob_shared_read(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_shared_read_kernel<<<1, 64>>>(F(x), F(o));
    return o;
}
__global__ void oob_dynamic_kernel(const float* x, float* o) {
    extern __shared__ float s[];
    s[threadIdx.x] = x[threadIdx.x];  // BUG oob_dynamic
    __syncthreads();
    o[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
torch::Tensor oob_dynamic(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_dynamic_kernel<<<1, 64, 64>>>(F(x), F(o));
    return o;
}
__global__ void no_dynamic_kernel(const float* x, float* o) {
    extern __shared__ float s[];
    s[threadIdx.x] = x[threadIdx.x];  // BUG no_dynamic
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x];
}
torch::Tensor no_dynamic(torch::Tensor x) {
    auto o = torch::empty_like(x);
    no_dynamic_kernel<<<1, 64>>>(F(x), F(o));
    return o;
}
__global__ void null_kernel(const float* x, float* o) {
    o[threadIdx.x] = x ? x[threadIdx.x] : 0;  // BUG null_pointer
}
torch::Tensor null_pointer(torch::Tensor x) {
    null_kernel<<<1, 32>>>(F(x), nullptr);
    return x;
}
__global__ void copy_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] = x[i];  // BUG dangling
}
torch::Tensor dangling(torch::Tensor x) {
    float* gone = (x * 2).data_ptr<float>();
    auto o = torch::empty_like(x);
    copy_kernel<<<1, 64>>>(gone, F(o), x.numel());
    return o;
}
__global__ void freed_kernel(float* w) { w[threadIdx.x] = 1; }  // BUG use_after_free
torch::Tensor use_after_free(torch::Tensor x) {
    float* w;
    C10_CUDA_CHECK(cudaMalloc(&w, 128));
    C10_CUDA_CHECK(cudaFree(w));
    freed_kernel<<<1, 32>>>(w);
    return x;
}
torch::Tensor double_free(torch::Tensor x) {
    float* w;
    C10_CUDA_CHECK(cudaMalloc(&w, 128));
    C10_CUDA_CHECK(cudaFree(w));
    cudaFree(w);
    return x;
}
torch::Tensor copy_too_much(torch::Tensor x) {
    auto o = torch::empty_like(x);
    cudaMemcpy(F(o), F(x), (x.numel() + 1) * sizeof(float), cudaMemcpyDeviceToDevice);
    return o;
}
torch::Tensor host_overrun(torch::Tensor x) {
    auto o = torch::empty_like(x);
    float* p = F(o);
    for (int64_t i = 0; i <= x.numel(); ++i) p[i] = 1.0f;
    return x + 1;
}

// ------------------------------------------------------------------------- never written memory
__global__ void accumulate_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(o, x[i]);  // BUG uninit_accumulator
}
torch::Tensor uninit_accumulator(torch::Tensor x) {
    auto o = torch::empty({1}, x.options());
    accumulate_kernel<<<1, 64>>>(F(x), F(o), x.numel());
    return o;
}
__global__ void plus_equals_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i] += x[i];  // BUG uninit_global
}
torch::Tensor uninit_global(torch::Tensor x) {
    auto o = torch::empty_like(x);
    plus_equals_kernel<<<1, 64>>>(F(x), F(o), x.numel());
    return o;
}
__global__ void uninit_malloc_kernel(const double* w, double* o) { o[threadIdx.x] = w[threadIdx.x]; }  // BUG uninit_malloc
torch::Tensor uninit_malloc(torch::Tensor x) {
    auto o = torch::empty({16}, x.options().dtype(torch::kDouble));
    double* w;
    C10_CUDA_CHECK(cudaMalloc(&w, 128));
    uninit_malloc_kernel<<<1, 16>>>(w, o.data_ptr<double>());
    C10_CUDA_CHECK(cudaFree(w));
    return o;
}
__global__ void uninit_shared_kernel(const float* x, float* o) {
    __shared__ float s[64];
    if (threadIdx.x < 32) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x];  // BUG uninit_shared
}
torch::Tensor uninit_shared(torch::Tensor x) {
    auto o = torch::empty_like(x);
    uninit_shared_kernel<<<2, 64>>>(F(x), F(o));
    return o;
}
__global__ void uninit_bins_kernel(const int* x, int* o) {
    __shared__ int bins[8];
    atomicAdd(&bins[x[threadIdx.x]], 1);  // BUG uninit_bins
    __syncthreads();
    if (threadIdx.x < 8) o[threadIdx.x] = bins[threadIdx.x];
}
torch::Tensor uninit_bins(torch::Tensor x) {
    auto o = torch::empty({8}, x.options());
    uninit_bins_kernel<<<1, 32>>>(x.data_ptr<int>(), o.data_ptr<int>());
    return o;
}
__global__ void halo_kernel(const float* x, float* o, int n) {
    extern __shared__ float s[];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    s[threadIdx.x + 1] = x[i];
    if (threadIdx.x == 0 && i > 0) s[0] = x[i - 1];
    __syncthreads();
    o[i] = s[threadIdx.x] + s[threadIdx.x + 1];  // BUG uninit_halo
}
torch::Tensor uninit_halo(torch::Tensor x) {
    auto o = torch::empty_like(x);
    halo_kernel<<<2, 32, 33 * sizeof(float)>>>(F(x), F(o), x.numel());
    return o;
}

// -------------------------------------------------------------------------------------- races
__global__ void missing_barrier_kernel(const float* x, float* o) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    o[threadIdx.x] = s[63 - threadIdx.x];  // BUG missing_barrier
}
torch::Tensor missing_barrier(torch::Tensor x) {
    auto o = torch::empty_like(x);
    missing_barrier_kernel<<<1, 64>>>(F(x), F(o));
    return o;
}
__global__ void reduction_race_kernel(const float* x, float* o) {
    __shared__ float s[128];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    for (int k = 64; k > 0; k /= 2)
        if (threadIdx.x < k) s[threadIdx.x] += s[threadIdx.x + k];  // BUG reduction_race
    if (threadIdx.x == 0) *o = s[0];
}
torch::Tensor reduction_race(torch::Tensor x) {
    auto o = torch::empty({1}, x.options());
    reduction_race_kernel<<<1, 128>>>(F(x), F(o));
    return o;
}
__global__ void overwrite_race_kernel(const float* x, float* o, int steps) {
    __shared__ float s[64];
    float sum = 0;
    for (int k = 0; k < steps; ++k) {
        s[threadIdx.x] = x[k * 64 + threadIdx.x];  // BUG overwrite_race
        __syncthreads();
        sum += s[63 - threadIdx.x];
    }
    o[threadIdx.x] = sum;
}
torch::Tensor overwrite_race(torch::Tensor x) {
    auto o = torch::empty({64}, x.options());
    overwrite_race_kernel<<<1, 64>>>(F(x), F(o), x.size(0));
    return o;
}
__global__ void broadcast_race_kernel(const float* x, float* o) {
    __shared__ float mean;
    if (threadIdx.x == 32) mean = x[blockIdx.x * 64];
    o[blockIdx.x * 64 + threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x] - mean;  // BUG broadcast_race
}
torch::Tensor broadcast_race(torch::Tensor x) {
    auto o = torch::empty_like(x);
    broadcast_race_kernel<<<2, 64>>>(F(x), F(o));
    return o;
}
__global__ void warp_race_kernel(const float* x, float* o) {
    __shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];
    o[threadIdx.x] = s[31 - threadIdx.x];  // BUG warp_race
}
torch::Tensor warp_race(torch::Tensor x) {
    auto o = torch::empty_like(x);
    warp_race_kernel<<<1, 32>>>(F(x), F(o));
    return o;
}
__global__ void volatile_warp_kernel(const float* x, float* o) {
    __shared__ volatile float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32) {
        s[threadIdx.x] = s[threadIdx.x] + s[threadIdx.x + 32];
        s[threadIdx.x] = s[threadIdx.x] + s[(threadIdx.x + 16) % 32];  // BUG volatile_warp
    }
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x];
}
torch::Tensor volatile_warp(torch::Tensor x) {
    auto o = torch::empty_like(x);
    volatile_warp_kernel<<<1, 64>>>(F(x), F(o));
    return o;
}
__global__ void histogram_race_kernel(const int* x, int* o) {
    __shared__ int bins[8];
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&bins[x[threadIdx.x]], 1);
    if (threadIdx.x < 8) o[threadIdx.x] = bins[threadIdx.x];  // BUG histogram_race
}
torch::Tensor histogram_race(torch::Tensor x) {
    auto o = torch::empty({8}, x.options());
    histogram_race_kernel<<<1, 64>>>(x.data_ptr<int>(), o.data_ptr<int>());
    return o;
}
__global__ void lost_update_kernel(const float* x, float* o, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) *o += x[i];  // BUG lost_update
}
torch::Tensor lost_update(torch::Tensor x) {
    auto o = torch::zeros({1}, x.options());
    lost_update_kernel<<<2, 64>>>(F(x), F(o), x.numel());
    return o;
}
__global__ void block_race_kernel(const float* x, float* o) {
    if (threadIdx.x == 0) o[blockIdx.x % 2] = x[blockIdx.x];  // BUG block_race
}
torch::Tensor block_race(torch::Tensor x) {
    auto o = torch::zeros({2}, x.options());
    block_race_kernel<<<8, 32>>>(F(x), F(o));
    return o;
}
__global__ void stencil_kernel(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i > 0 && i < n - 1) x[i] = (x[i - 1] + x[i] + x[i + 1]) / 3;  // BUG stencil_in_place
}
torch::Tensor stencil_in_place(torch::Tensor x) {
    auto y = x.clone();
    stencil_kernel<<<4, 32>>>(F(y), y.numel());
    return y;
}
__global__ void missing_fence_kernel(const float* x, float* partial, float* o, int* ticket) {
    __shared__ int last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = x[blockIdx.x];
        last = atomicAdd(ticket, 1) == gridDim.x - 1;
        if (last) {
            float s = 0;
            for (int b = 0; b < gridDim.x; ++b) s += partial[b];  // BUG missing_fence
            *o = s;
        }
    }
}
torch::Tensor missing_fence(torch::Tensor x) {
    auto o = torch::empty({1}, x.options()), partial = torch::empty_like(x);
    auto ticket = torch::zeros({1}, x.options().dtype(torch::kInt));
    missing_fence_kernel<<<x.numel(), 32>>>(F(x), F(partial), F(o), ticket.data_ptr<int>());
    return o;
}
__global__ void no_grid_sync_kernel(const float* x, float* partial, float* o) {
    if (threadIdx.x == 0) partial[blockIdx.x] = x[blockIdx.x];
    __syncthreads();
    float s = 0;
    for (int b = 0; b < gridDim.x; ++b) s += b <= blockIdx.x || true ? x[b] : 0;
    if (threadIdx.x == 0) o[blockIdx.x] = s + partial[(blockIdx.x + 1) % gridDim.x];  // BUG no_grid_sync
}
torch::Tensor no_grid_sync(torch::Tensor x) {
    auto o = torch::empty_like(x), partial = torch::zeros_like(x);
    no_grid_sync_kernel<<<x.numel(), 32>>>(F(x), F(partial), F(o));
    return o;
}

// ------------------------------------------------------------------------------ barriers, warps
__global__ void divergent_kernel(const float* x, float* o) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();  // BUG divergent_barrier
    }
    o[threadIdx.x] = s[63 - threadIdx.x];
}
torch::Tensor divergent_barrier(torch::Tensor x) {
    auto o = torch::empty_like(x);
    divergent_kernel<<<1, 64>>>(F(x), F(o));
    return o;
}
__global__ void half_warp_kernel(const float* x, float* o) {
    float v = x[threadIdx.x];
    if (threadIdx.x < 16)
        v += __shfl_xor_sync(0xffffffff, v, 1);
    else
        __syncthreads();
    o[threadIdx.x] = v;
}
torch::Tensor deadlock(torch::Tensor x) {
    auto o = torch::empty_like(x);
    half_warp_kernel<<<1, 32>>>(F(x), F(o));
    return o;
}
__global__ void absent_lane_kernel(const float* x, float* o) {
    float v = x[threadIdx.x];
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);  // BUG absent_lane
    if (threadIdx.x == 0) *o = v;
}
torch::Tensor absent_lane(torch::Tensor x) {
    auto o = torch::empty({1}, x.options());
    absent_lane_kernel<<<1, 16>>>(F(x), F(o));
    return o;
}
__global__ void absent_down_kernel(const float* x, float* o, int n) {
    if (threadIdx.x >= n) return;
    float v = x[threadIdx.x];
    for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(0xffffffff, v, d);  // BUG absent_down
    if (threadIdx.x == 0) *o = v;
}
torch::Tensor absent_down(torch::Tensor x) {
    auto o = torch::empty({1}, x.options());
    absent_down_kernel<<<1, 32>>>(F(x), F(o), 10);
    return o;
}
__global__ void wrong_mask_kernel(const float* x, float* o) {
    o[threadIdx.x] = __shfl_sync(0x0000ffff, x[threadIdx.x], 0);  // BUG wrong_mask
}
torch::Tensor wrong_mask(torch::Tensor x) {
    auto o = torch::empty_like(x);
    wrong_mask_kernel<<<1, 32>>>(F(x), F(o));
    return o;
}
__global__ void grid_barrier_kernel(float* o) {
    o[blockIdx.x] = 1;
    cg::this_grid().sync();  // BUG plain_grid_sync
}
torch::Tensor plain_grid_sync(torch::Tensor x) {
    auto o = torch::empty({4}, x.options());
    grid_barrier_kernel<<<4, 1>>>(F(o));
    return o;
}

// ------------------------------------------------------------------------------------ launches
torch::Tensor too_many_threads(torch::Tensor x) {
    auto o = torch::empty_like(x);
    copy_kernel<<<1, 2048>>>(F(x), F(o), x.numel());  // BUG too_many_threads
    return o;
}
torch::Tensor empty_grid(torch::Tensor x) {
    auto o = torch::empty_like(x);
    copy_kernel<<<x.numel() / 1024, 32>>>(F(x), F(o), x.numel());  // BUG empty_grid
    return o;
}
torch::Tensor deep_block(torch::Tensor x) {
    auto o = torch::empty_like(x);
    copy_kernel<<<1, dim3(1, 1, 128)>>>(F(x), F(o), x.numel());  // BUG deep_block
    return o;
}
torch::Tensor no_opt_in(torch::Tensor x) {
    auto o = torch::empty_like(x);
    oob_dynamic_kernel<<<1, 64, 64 * 1024>>>(F(x), F(o));  // BUG no_opt_in
    return o;
}
torch::Tensor unchecked_then_checked(torch::Tensor x) {
    auto o = torch::empty_like(x);
    copy_kernel<<<dim3(1, 70000), 32>>>(F(x), F(o), x.numel());  // BUG unchecked_then_checked
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return o;
}
__global__ void misaligned_kernel(const float* x, float* o) {
    const float4 v = reinterpret_cast<const float4*>(x + 1)[threadIdx.x];  // BUG misaligned
    o[threadIdx.x] = v.x + v.w;
}
torch::Tensor misaligned(torch::Tensor x) {
    auto o = torch::empty({8}, x.options());
    misaligned_kernel<<<1, 8>>>(F(x), F(o));
    return o;
}
__global__ void misaligned_store_kernel(float* o) {
    reinterpret_cast<float2*>(o + 1)[threadIdx.x] = make_float2(1, 2);  // BUG misaligned_store
}
torch::Tensor misaligned_store(torch::Tensor x) {
    auto o = torch::empty({32}, x.options());
    misaligned_store_kernel<<<1, 8>>>(F(o));
    return o;
}
__global__ void assert_kernel(const float* x) {
    assert(x[threadIdx.x] > 1e6f);  // BUG device_assert
}
torch::Tensor device_assert(torch::Tensor x) {
    assert_kernel<<<1, 8>>>(F(x));
    return x;
}
__global__ void divide_kernel(const int* x, int* o) {
    o[threadIdx.x] = 10 / x[threadIdx.x];  // BUG divide_by_zero
}
torch::Tensor divide_by_zero(torch::Tensor x) {
    auto o = torch::empty_like(x);
    divide_kernel<<<1, 8>>>(x.data_ptr<int>(), o.data_ptr<int>());
    return o;
}
// Only the odd ones of neighbouring 16-bit values race.
__global__ void half_race_kernel(at::Half* x, int n) {
    const int i = 2 * threadIdx.x + 1;
    const at::Half v = x[i];
    if (i + 2 < n) x[i + 2] = v;  // BUG half_race
}
torch::Tensor half_race(torch::Tensor x) {
    auto o = x.clone();
    half_race_kernel<<<1, 64>>>(o.data_ptr<at::Half>(), o.numel());
    return o;
}
__global__ void byte_race_kernel(const unsigned char* x, unsigned char* o) {
    __shared__ unsigned char s[64];
    const int t = threadIdx.x;
    s[t] = x[t];
    __syncthreads();
    if (t % 4 == 3 && t + 4 < 64) s[t] = s[t + 4] + 1;
    __syncthreads();
    o[t] = s[t];
}
torch::Tensor byte_race(torch::Tensor x) {
    auto o = torch::empty_like(x);
    byte_race_kernel<<<1, 64>>>(x.data_ptr<unsigned char>(), o.data_ptr<unsigned char>());
    return o;
}
torch::Tensor blas_too_large(torch::Tensor x) {  // the caller's leading dimension is off by one row
    auto o = torch::empty({8, 8}, x.options());
    const float one = 1, zero = 0;
    cublasSgemm(at::cuda::getCurrentCUDABlasHandle(), CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, &one,
                F(x), 8, F(x), 9, &zero, F(o), 8);
    return o;
}
