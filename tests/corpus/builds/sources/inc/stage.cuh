// A kernel with shared memory and its launch, in a header.
#pragma once
#include "deep/width.h"

__global__ void affine_kernel(const float* x, float* y, int n) {
    __shared__ float staged[WIDTH];
    const int i = blockIdx.x * WIDTH + threadIdx.x;
    if (i < n) staged[threadIdx.x] = x[i] + 1.0f;
    __syncthreads();
    if (i < n) y[i] = staged[threadIdx.x] * 3.0f - 2.0f;
}

inline void start(const float* x, float* y, int n, cudaStream_t stream) {
    affine_kernel<<<(n + WIDTH - 1) / WIDTH, WIDTH, 0, stream>>>(x, y, n);
}
