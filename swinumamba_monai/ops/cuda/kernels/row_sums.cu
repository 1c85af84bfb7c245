// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The sum of a matrix over its rows, for what each block of another kernel found of the parameters' gradients.

struct SumParams {
    const float *parts;  // (rows, columns)
    float *sums;         // (columns)
    long long rows, columns;
};

// A block has 32 columns, a warp of it one row after another; at the end the warps' sums are added up in their order.
KERNEL LAUNCH_BOUNDS(1024, 1) sum_rows(const GRID_CONSTANT SumParams p) {
    SHARED_MEMORY(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const long long column = 32ll * blockIdx.x + lane;
    const bool inside = column < p.columns;
    float sum = 0.f;
    if (inside) {
#pragma unroll 8
        for (int row = warp; row < p.rows; row += warps) sum += p.parts[row * p.columns + column];
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && inside) {
        for (int w = 1; w < warps; ++w) sum += shared[32 * w + lane];
        p.sums[column] = sum;
    }
}
