// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// LayerNorm over the last axis, alone or times SiLU of a gate, and its backward. A warp has a row; a lane every 32nd
// vector of it, ITEMS of them. ITEMS is defined by the compiling side, besides what common.cuh names.

struct NormParams {
    const element *x, *gate;     // (rows, d)
    const element *dy;           // (rows, d)
    const float *weight, *bias;  // (d)
    element *y;                  // (rows, d); the backward writes it again, unless it is null
    float *statistics;           // (rows, 2): mean, and the reciprocal of the standard deviation
    element *dx, *dgate;         // (rows, d)
    float *dparameters;          // (blocks, 2, d): of weight and bias
    long long rows, channels;
    double eps;
};

template <typename Use>
DEVICE void for_each_item(const NormParams& p, const Use& use) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int channel = (32 * i + threadIdx.x % 32) * VECTOR;
        if (channel < p.channels) use(i, channel);
    }
}

template <bool GATED>
DEVICE void norm_row(const NormParams& p) {
    const long long row = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= p.rows) return;
    float x[ITEMS][VECTOR], sum = 0.f, squares = 0.f;
    for_each_item(p, [&](int i, int channel) {
        const elements loaded = load(p.x + row * p.channels + channel);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) sum += x[i][c] = to_float(loaded.v[c]);
    });
    const float mean = sum_over_warp(sum) / p.channels;
    for_each_item(p, [&](int i, int) {
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) squares += (x[i][c] - mean) * (x[i][c] - mean);
    });
    const float scale = rsqrtf(sum_over_warp(squares) / p.channels + float(p.eps));
    for_each_item(p, [&](int i, int channel) {
        elements gate;
        if (GATED) gate = load(p.gate + row * p.channels + channel);
        float y[VECTOR];
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            y[c] = fmaf((x[i][c] - mean) * scale, p.weight[channel + c], p.bias[channel + c]);
            if (GATED) y[c] *= silu(to_float(gate.v[c]));
        }
        store(p.y + row * p.channels + channel, y);
    });
    if (threadIdx.x % 32 == 0) {
        p.statistics[2 * row] = mean;
        p.statistics[2 * row + 1] = scale;
    }
}

// A warp takes one row after another; at the end the warps of a block add up the gradients of weight and bias.
template <bool GATED>
DEVICE void norm_rows_backward(const NormParams& p) {
    SHARED_MEMORY(shared);
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
    float dweight[ITEMS][VECTOR] = {}, dbias[ITEMS][VECTOR] = {};
    for (long long row = (long long)blockIdx.x * warps + warp; row < p.rows; row += (long long)gridDim.x * warps) {
        const float mean = p.statistics[2 * row], scale = p.statistics[2 * row + 1];
        float normed[ITEMS][VECTOR], dnormed[ITEMS][VECTOR], sum = 0.f, projection = 0.f;
        for_each_item(p, [&](int i, int channel) {
            const elements x = load(p.x + row * p.channels + channel), dy = load(p.dy + row * p.channels + channel);
            elements gate;
            if (GATED) gate = load(p.gate + row * p.channels + channel);
            float dgate[VECTOR], y[VECTOR];
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                const float weight = p.weight[channel + c];
                float d = to_float(dy.v[c]);
                normed[i][c] = (to_float(x.v[c]) - mean) * scale;
                const float affine = fmaf(normed[i][c], weight, p.bias[channel + c]);
                y[c] = affine;
                if (GATED) {
                    const float z = to_float(gate.v[c]), sigmoid = reciprocal_fast(1.f + exp_(-z));
                    y[c] = affine * z * sigmoid;
                    dgate[c] = d * affine * sigmoid * fmaf(z, 1.f - sigmoid, 1.f);
                    d *= z * sigmoid;
                }
                dweight[i][c] = fmaf(d, normed[i][c], dweight[i][c]);
                dbias[i][c] += d;
                dnormed[i][c] = d * weight;
                sum += dnormed[i][c];
                projection = fmaf(dnormed[i][c], normed[i][c], projection);
            }
            if (GATED) store(p.dgate + row * p.channels + channel, dgate);
            if (p.y) store(p.y + row * p.channels + channel, y);
        });
        sum = sum_over_warp(sum) / p.channels;
        projection = sum_over_warp(projection) / p.channels;
        for_each_item(p, [&](int i, int channel) {
            float dx[VECTOR];
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) dx[c] = scale * (dnormed[i][c] - sum - normed[i][c] * projection);
            store(p.dx + row * p.channels + channel, dx);
        });
    }
    for (int part = 0; part < 2; ++part) {
        __syncthreads();
        for_each_item(p, [&](int i, int channel) {
#pragma unroll
            for (int c = 0; c < VECTOR; ++c)
                shared[warp * p.channels + channel + c] = part == 0 ? dweight[i][c] : dbias[i][c];
        });
        __syncthreads();
        for (int channel = threadIdx.x; channel < p.channels; channel += blockDim.x) {
            float sum = 0.f;
            for (int w = 0; w < warps; ++w) sum += shared[w * p.channels + channel];
            p.dparameters[((long long)blockIdx.x * 2 + part) * p.channels + channel] = sum;
        }
    }
}

KERNEL layer_norm(const GRID_CONSTANT NormParams p) { norm_row<false>(p); }
KERNEL layer_norm_gate(const GRID_CONSTANT NormParams p) { norm_row<true>(p); }
KERNEL LAUNCH_BOUNDS(256, 1) layer_norm_backward(const GRID_CONSTANT NormParams p) { norm_rows_backward<false>(p); }
KERNEL LAUNCH_BOUNDS(256, 1) layer_norm_gate_backward(const GRID_CONSTANT NormParams p) { norm_rows_backward<true>(p); }
