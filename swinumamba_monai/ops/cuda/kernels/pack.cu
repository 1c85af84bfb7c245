// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The weights of an SS2D as its kernels take them, in one launch: the matrices in the maps' type, and A. For each
// direction the rows of x_proj that give B and C come first, then those of Δ's low rank, which is filled up with zeros
// to `padded_rank`: so whatever the product gives is aligned for vector loads and for the matrix units.

struct PackParams {
    const float *in_proj;   // (2d, model)
    const float *out_proj;  // (model, d)
    const float *x_proj;    // (4, rank + BC, d)
    const float *dt;        // (4, d, rank)
    const float *A_logs;    // (4 d, n)
    element *packed;        // in_proj, out_proj, x_proj (4, BC + padded_rank, d), dt (4, d, padded_rank)
    float *A;               // (4 d, n): -e^A_logs times log2(e)
    long long model, channels, rank, padded_rank, BC;
};

KERNEL pack(const GRID_CONSTANT PackParams p) {
    const int d = int(p.channels), model = int(p.model), rank = int(p.rank), padded = int(p.padded_rank), BC = int(p.BC);
    const int e = blockIdx.x * blockDim.x + threadIdx.x;
    int i = e;
    float value = 0.f;
    if (i < 2 * d * model) {
        value = p.in_proj[i];
    } else if ((i -= 2 * d * model) < d * model) {
        value = p.out_proj[i];
    } else if ((i -= d * model) < 4 * (BC + padded) * d) {
        const int k = i / ((BC + padded) * d), row = i / d % (BC + padded), column = i % d;
        const int source = row < BC ? rank + row : row - BC;
        if (row < BC + rank) value = p.x_proj[(k * (rank + BC) + source) * d + column];
    } else if ((i -= 4 * (BC + padded) * d) < 4 * d * padded) {
        if (i % padded < rank) value = p.dt[i / padded * rank + i % padded];
    } else {
        i -= 4 * d * padded;
        if (i < 2 * d * BC) p.A[i] = -1.442695041f * expf(p.A_logs[i]);
        return;
    }
    p.packed[e] = from_float(value);
}
