// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// LayerNorm over the last axis, alone or times SiLU of a gate, and its backward. A team of LANES threads has a row; a lane
// every LANES-th vector of it, ITEMS of them. LANES and ITEMS are defined by the compiling side, besides what common.cuh
// names.

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

// The threads of a warp that have one row. All teams of a warp go on until its last row, because they sum up together;
// those beyond the end read the last row and write nothing.
struct RowTeam {
    static constexpr int COUNT = 32 / LANES;  // of a warp

    int lane, number;  // in the team; of the team in its block
    long long step;    // rows that the grid has at a time

    DEVICE_MEMBER RowTeam()
        : lane(threadIdx.x % LANES),
          number(threadIdx.x / LANES),
          step((long long)gridDim.x * (blockDim.x / LANES)) {}

    DEVICE_MEMBER long long first_row() const { return (long long)blockIdx.x * (blockDim.x / LANES) + number; }
    DEVICE_MEMBER long long first_row_of_warp() const { return first_row() - number % COUNT; }

    DEVICE_MEMBER float sum(float value) const {
#pragma unroll
        for (int offset = LANES / 2; offset > 0; offset /= 2) value += exchange(value, offset);
        return value;
    }

    template <typename Use>
    DEVICE_MEMBER void for_each_item(const NormParams& p, const Use& use) const {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int channel = (LANES * i + lane) * VECTOR;
            if (channel < p.channels) use(i, channel);
        }
    }
};

template <bool GATED>
DEVICE void norm_row(const NormParams& p) {
    const RowTeam team;
    if (team.first_row_of_warp() >= p.rows) return;
    const bool inside = team.first_row() < p.rows;
    const long long row = inside ? team.first_row() : p.rows - 1, start = row * p.channels;
    float x[ITEMS][VECTOR], sum = 0.f, squares = 0.f;
    elements gate[ITEMS];
    team.for_each_item(p, [&](int i, int channel) {
        if (GATED) gate[i] = load(p.gate + start + channel);
        to_floats(load(p.x + start + channel), x[i]);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) sum += x[i][c];
    });
    const float mean = team.sum(sum) / p.channels;
    team.for_each_item(p, [&](int i, int) {
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) squares += (x[i][c] - mean) * (x[i][c] - mean);
    });
    const float scale = rsqrtf(team.sum(squares) / p.channels + float(p.eps));
    if (!inside) return;
    team.for_each_item(p, [&](int i, int channel) {
        const floats<VECTOR> weight = read<VECTOR>(p.weight + channel), bias = read<VECTOR>(p.bias + channel);
        float y[VECTOR];
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            y[c] = fmaf((x[i][c] - mean) * scale, weight.v[c], bias.v[c]);
            if (GATED) y[c] *= silu(to_float(gate[i].v[c]));
        }
        store(p.y + start + channel, y);
    });
    if (team.lane == 0) {
        p.statistics[2 * row] = mean;
        p.statistics[2 * row + 1] = scale;
    }
}

constexpr bool LOADS_AHEAD = ITEMS <= 6;  // the gate before it is needed; a longer row has no registers left for it

// A team takes one row after another; at the end the teams of a block add up the gradients of weight and bias.
template <bool GATED>
DEVICE void norm_rows_backward(const NormParams& p) {
    SHARED_MEMORY(shared);
    const RowTeam team;
    float dweight[ITEMS][VECTOR] = {}, dbias[ITEMS][VECTOR] = {};
    for (long long first = team.first_row_of_warp(); first < p.rows; first += team.step) {
        const long long own = first + team.number % RowTeam::COUNT;
        const bool inside = own < p.rows;
        const long long row = inside ? own : p.rows - 1, start = row * p.channels;
        const float mean = p.statistics[2 * row], scale = p.statistics[2 * row + 1];
        float normed[ITEMS][VECTOR], dnormed[ITEMS][VECTOR], sum = 0.f, projection = 0.f;
        elements gates[ITEMS];
        team.for_each_item(p, [&](int i, int channel) {
            to_floats(load(p.x + start + channel), normed[i]);
            to_floats(load(p.dy + start + channel), dnormed[i]);
            if (GATED && LOADS_AHEAD) gates[i] = load(p.gate + start + channel);
        });
        team.for_each_item(p, [&](int i, int channel) {
            const floats<VECTOR> weight = read<VECTOR>(p.weight + channel), bias = read<VECTOR>(p.bias + channel);
            elements gate;
            if (GATED) gate = LOADS_AHEAD ? gates[i] : load(p.gate + start + channel);
            float dgate[VECTOR], y[VECTOR];
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                float d = inside ? dnormed[i][c] : 0.f;
                normed[i][c] = (normed[i][c] - mean) * scale;
                const float affine = fmaf(normed[i][c], weight.v[c], bias.v[c]);
                y[c] = affine;
                if (GATED) {
                    const float z = to_float(gate.v[c]), sigmoid = reciprocal_fast(1.f + exp_(-z));
                    y[c] = affine * z * sigmoid;
                    dgate[c] = d * affine * sigmoid * fmaf(z, 1.f - sigmoid, 1.f);
                    d *= z * sigmoid;
                }
                dweight[i][c] = fmaf(d, normed[i][c], dweight[i][c]);
                dbias[i][c] += d;
                dnormed[i][c] = d * weight.v[c];
                sum += dnormed[i][c];
                projection = fmaf(dnormed[i][c], normed[i][c], projection);
            }
            if (GATED && inside) store(p.dgate + start + channel, dgate);
            if (p.y && inside) store(p.y + start + channel, y);
        });
        sum = team.sum(sum) / p.channels;
        projection = team.sum(projection) / p.channels;
        if (!inside) continue;
        team.for_each_item(p, [&](int i, int channel) {
            float dx[VECTOR];
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) dx[c] = scale * (dnormed[i][c] - sum - normed[i][c] * projection);
            store(p.dx + start + channel, dx);
        });
    }
    const int teams = blockDim.x / LANES;
    for (int part = 0; part < 2; ++part) {
        __syncthreads();
        team.for_each_item(p, [&](int i, int channel) {
#pragma unroll
            for (int c = 0; c < VECTOR; ++c)
                shared[team.number * p.channels + channel + c] = part == 0 ? dweight[i][c] : dbias[i][c];
        });
        __syncthreads();
        for (int channel = threadIdx.x; channel < p.channels; channel += blockDim.x) {
            float sum = 0.f;
            for (int t = 0; t < teams; ++t) sum += shared[t * p.channels + channel];
            p.dparameters[((long long)blockIdx.x * 2 + part) * p.channels + channel] = sum;
        }
    }
}

KERNEL layer_norm(const GRID_CONSTANT NormParams p) { norm_row<false>(p); }
KERNEL layer_norm_gate(const GRID_CONSTANT NormParams p) { norm_row<true>(p); }
KERNEL LAUNCH_BOUNDS(256, 1) layer_norm_backward(const GRID_CONSTANT NormParams p) { norm_rows_backward<false>(p); }
KERNEL LAUNCH_BOUNDS(256, 1) layer_norm_gate_backward(const GRID_CONSTANT NormParams p) { norm_rows_backward<true>(p); }
