// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The weights of an SS2D as its kernels take them, in one launch: the matrices in the maps' type, A, and the weights of
// the convolution with neighbouring channels side by side. For each
// direction the rows of x_proj that give B and C come first, then those of Δ's low rank, and rows of zeros. Δ is made
// of the last `width` columns that the product gives, which so are aligned for vector loads and for the matrix units;
// `zeros` of them, the first, are of B and C and count for nothing.

struct PackParams {
    const float *in_proj;   // (in_rows, model)
    const float *out_proj;  // (model, d)
    const float *x_proj;    // (4, rank + BC, d)
    const float *dt;        // (4, d, rank)
    const float *A_logs;    // (4 d, n)
    const float *conv_weight;  // (d, 9)
    const float *conv_bias;    // (d), or null
    element *packed;        // in_proj, out_proj, x_proj (4, BC - zeros + width, d), dt (4, d, width)
    float *A;               // (4 d, n): -e^A_logs times log2(e)
    float *taps;            // (10, d): the nine weights and the bias of the convolution
    long long in_rows, model, channels, rank, width, zeros, BC;
};

KERNEL pack(const GRID_CONSTANT PackParams p) {
    const int d = int(p.channels), model = int(p.model), rank = int(p.rank), width = int(p.width), BC = int(p.BC);
    const int zeros = int(p.zeros), rows = BC - zeros + width, in_size = int(p.in_rows) * model;
    const int e = blockIdx.x * blockDim.x + threadIdx.x;
    int i = e;
    float value = 0.f;
    if (i < in_size) {
        value = p.in_proj[i];
    } else if ((i -= in_size) < d * model) {
        value = p.out_proj[i];
    } else if ((i -= d * model) < 4 * rows * d) {
        const int k = i / (rows * d), row = i / d % rows, column = i % d;
        const int source = row < BC ? rank + row : row - BC;
        if (row < BC + rank) value = p.x_proj[(k * (rank + BC) + source) * d + column];
    } else if ((i -= 4 * rows * d) < 4 * d * width) {
        const int column = i % width - zeros;
        if (column >= 0 && column < rank) value = p.dt[i / width * rank + column];
    } else {
        i -= 4 * d * width;
        if (i < 2 * d * BC) {
            p.A[i] = -1.442695041f * expf(p.A_logs[i]);
        } else if ((i -= 2 * d * BC) < 10 * d) {
            const int tap = i / d, channel = i % d;
            p.taps[i] = tap < 9 ? p.conv_weight[channel * 9 + tap] : p.conv_bias ? p.conv_bias[channel] : 0.f;
        }
        return;
    }
    p.packed[e] = from_float(value);
}
