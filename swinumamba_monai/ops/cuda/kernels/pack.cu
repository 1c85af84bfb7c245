// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The weights of an SS2D as its kernels take them, in one launch: the matrices in the maps' type, A, and the weights of
// the convolution with neighbouring channels side by side. For each
// direction the rows of x_proj that give B and C come first, then those of Δ's low rank, and rows of zeros. Δ is made
// of the last `width` columns that the product gives, which so are aligned for vector loads and for the matrix units;
// `zeros` of them, the first, are of B and C and count for nothing. On the way back `unpack` makes of the gradients of all
// that those of the parameters, in one launch too.

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

// A thread has VECTOR neighbours of what is written. Each part has a multiple of them, and so has each row of x_proj.
KERNEL pack(const GRID_CONSTANT PackParams p) {
    const int d = int(p.channels), model = int(p.model), rank = int(p.rank), width = int(p.width), BC = int(p.BC);
    const int zeros = int(p.zeros), rows = BC - zeros + width, in_size = int(p.in_rows) * model;
    const int e = VECTOR * (blockIdx.x * blockDim.x + threadIdx.x);
    int i = e;
    floats<VECTOR> values = {};
    if (i < in_size) {
        values = read<VECTOR>(p.in_proj + i);
    } else if ((i -= in_size) < d * model) {
        values = read<VECTOR>(p.out_proj + i);
    } else if ((i -= d * model) < 4 * rows * d) {
        const int k = i / (rows * d), row = i / d % rows, column = i % d;
        const int source = row < BC ? rank + row : row - BC;
        if (row < BC + rank) values = read<VECTOR>(p.x_proj + (k * (rank + BC) + source) * d + column);
    } else if ((i -= 4 * rows * d) < 4 * d * width) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const int column = (i + v) % width - zeros;
            if (column >= 0 && column < rank) values.v[v] = p.dt[(i + v) / width * rank + column];
        }
    } else {
        i -= 4 * d * width;
        const bool is_A = i < 2 * d * BC;
        if (!is_A && (i -= 2 * d * BC) >= 10 * d) return;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const int tap = (i + v) / d, channel = (i + v) % d;
            if (is_A) {
                p.A[i + v] = -1.442695041f * expf(p.A_logs[i + v]);
            } else {
                p.taps[i + v] = tap < 9 ? p.conv_weight[channel * 9 + tap] : p.conv_bias ? p.conv_bias[channel] : 0.f;
            }
        }
        return;
    }
    store(p.packed + e, values.v);
}

struct UnpackParams {
    const element *in_proj;   // (d, model): gradient of the rows that give the map
    const element *gate;      // (d, model): of those that give the gate, or null
    const element *x_proj;    // (4, BC - zeros + width, d)
    const element *dt;        // (4, parts, d, width), to be added up
    const element *out_proj;  // (model, d)
    const float *taps;        // (10, d)
    const float *scan;        // (4, (n + 2) d): of A, of the bias of Δ and of D
    const float *A_logs;      // (4 d, n)
    const float *norm;        // (2, d): of weight and bias
    float *unpacked;          // one after another, as the cases below
    long long in_rows, model, channels, rank, width, zeros, BC, parts;
};

KERNEL unpack(const GRID_CONSTANT UnpackParams p) {
    const int d = int(p.channels), model = int(p.model), rank = int(p.rank), width = int(p.width), BC = int(p.BC);
    const int rows = BC - int(p.zeros) + width, n = BC / 2, pairs = 4 * d * n, of_direction = (n + 2) * d;
    const int e = blockIdx.x * blockDim.x + threadIdx.x;
    int i = e;
    float value = 0.f;
    if (i < p.in_rows * model) {
        value = to_float(i < d * model ? p.in_proj[i] : p.gate[i - d * model]);
    } else if ((i -= int(p.in_rows) * model) < 9 * d) {  // the convolution's weight
        value = p.taps[i % 9 * d + i / 9];
    } else if ((i -= 9 * d) < d) {  // its bias
        value = p.taps[9 * d + i];
    } else if ((i -= d) < 4 * (rank + BC) * d) {  // x_proj, the low rank's rows first
        const int k = i / ((rank + BC) * d), row = i / d % (rank + BC), column = i % d;
        value = to_float(p.x_proj[(k * rows + (row < rank ? BC + row : row - rank)) * d + column]);
    } else if ((i -= 4 * (rank + BC) * d) < 4 * d * rank) {  // dt
        const int k = i / (d * rank), row = i / rank % d, column = i % rank + int(p.zeros);
        const element* from = p.dt + ((long long)k * p.parts * d + row) * width + column;
#pragma unroll 8
        for (int part = 0; part < p.parts; ++part) value += to_float(from[(long long)part * d * width]);
    } else if ((i -= 4 * d * rank) < 4 * d) {  // the bias of Δ
        value = p.scan[i / d * of_direction + n * d + i % d];
    } else if ((i -= 4 * d) < pairs) {  // A_logs: dA/dA_logs is what `pack` made of it
        value = p.scan[i / (n * d) * of_direction + i % (n * d)] * -1.442695041f * expf(p.A_logs[i]);
    } else if ((i -= pairs) < 4 * d) {  // D
        value = p.scan[i / d * of_direction + (n + 1) * d + i % d];
    } else if ((i -= 4 * d) < 2 * d) {  // the norm's weight and bias
        value = p.norm[i];
    } else if ((i -= 2 * d) < model * d) {
        value = to_float(p.out_proj[i]);
    } else {
        return;
    }
    p.unpacked[e] = value;
}
