// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// Depthwise 3x3 convolution of a channels-last map, with SiLU, and its backward. A thread has VECTOR channels of RUN
// pixels of a row. RUN is defined by the compiling side, besides what common.cuh names.

struct ConvParams {
    const element *x;       // (b, h, w, c)
    const element *dy;      // (b, h, w, c)
    const float *taps;      // (10, c): the nine weights and the bias
    element *y;             // (b, h, w, c); in the backward the gradient before SiLU
    float *dparameters;     // (blocks, 10, c): of the nine weights and the bias
    long long height, width, channels;
    long long runs;         // b * h * ceil(w / RUN)
    long long lanes;        // of a block in the backward that have different channels
};

// The pixels around a run, all loaded before the first is used.
struct Window {
    float v[3][RUN + 2][VECTOR];  // row, column

    // `line` counts the rows of all images.
    DEVICE_MEMBER void load(const ConvParams& p, int line, int first, int channel) {
        const int row = line % int(p.height), width = int(p.width), channels = int(p.channels);
        elements raw[3][RUN + 2];
#pragma unroll
        for (int r = 0; r < 3; ++r) {
            const bool row_inside = row + r >= 1 && row + r <= p.height;
            const Column<const element> from(p.x, (long long)(line + r - 1) * width * channels + channel, channels);
#pragma unroll
            for (int j = 0; j < RUN + 2; ++j) {
                const int column = first + j - 1;
                raw[r][j] = elements{};
                if (row_inside && column >= 0 && column < width) raw[r][j] = ::load(from.at(column));
            }
        }
#pragma unroll
        for (int r = 0; r < 3; ++r)
#pragma unroll
            for (int j = 0; j < RUN + 2; ++j)
                to_floats(raw[r][j], v[r][j]);
    }
};

// Of one tap the weights of neighbouring channels lie side by side, so that a warp loads them in one piece.
struct Weights {
    float v[9][VECTOR], bias[VECTOR];

    DEVICE_MEMBER void load(const ConvParams& p, int channel, bool transposed) {
        const float* from = p.taps + channel;
        const int channels = int(p.channels);
#pragma unroll
        for (int k = 0; k < 9; ++k) {
            const floats<VECTOR> tap = read<VECTOR>(from + (transposed ? 8 - k : k) * channels);
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) v[k][c] = tap.v[c];
        }
        const floats<VECTOR> last = read<VECTOR>(from + 9 * channels);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) bias[c] = transposed ? 0.f : last.v[c];
    }

    // at pixel j of the run
    DEVICE_MEMBER float apply(const Window& window, int j, int c) const {
        float sum = bias[c];
#pragma unroll
        for (int k = 0; k < 9; ++k) sum = fmaf(v[k][c], window.v[k / 3][j + k % 3][c], sum);
        return sum;
    }
};

// Go along the run with number `run`; `use` gets the window, the place in the run and where its channels begin.
template <typename Use>
DEVICE void for_each_pixel(const ConvParams& p, int run, int channel, const Use& use) {
    const int width = int(p.width), runs_per_line = (width + RUN - 1) / RUN;
    const int line = run / runs_per_line, first = run % runs_per_line * RUN;
    const long long start = ((long long)line * width + first) * p.channels + channel;
    Window window;
    window.load(p, line, first, channel);
#pragma unroll
    for (int j = 0; j < RUN; ++j)
        if (first + j < width) use(window, j, start + j * int(p.channels));
}

// A thread for each run of each VECTOR channels.
template <bool SILU>
DEVICE void convolve(const ConvParams& p) {
    const int vectors = int(p.channels) / VECTOR, e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= p.runs * vectors) return;
    const int channel = e % vectors * VECTOR;
    Weights weights;
    weights.load(p, channel, !SILU);
    for_each_pixel(p, e / vectors, channel, [&](const Window& window, int j, long long place) {
        float y[VECTOR];
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            const float sum = weights.apply(window, j, c);
            y[c] = SILU ? silu(sum) : sum;
        }
        store(p.y + place, y);
    });
}

KERNEL LAUNCH_BOUNDS(256, 2) conv_silu(const GRID_CONSTANT ConvParams p) { convolve<true>(p); }
// With the weights turned around and without the bias: the gradient of the map.
KERNEL LAUNCH_BOUNDS(256, 2) conv_transposed(const GRID_CONSTANT ConvParams p) { convolve<false>(p); }

// The gradient before SiLU, and of the parameters. A block has `teams` of `lanes` threads: a team takes one run after
// another, a lane VECTOR channels; at the end the teams add up what they found.
KERNEL LAUNCH_BOUNDS(256, 2) conv_silu_backward(const GRID_CONSTANT ConvParams p) {
    SHARED_MEMORY(shared);
    const int lanes = int(p.lanes);
    const int lane = threadIdx.x % lanes, team = threadIdx.x / lanes, teams = blockDim.x / lanes;
    const int channel = (blockIdx.y * lanes + lane) * VECTOR;
    const bool inside = channel < p.channels;
    float sums[10][VECTOR] = {};
    if (inside) {
        Weights weights;
        weights.load(p, channel, false);
        for (int run = blockIdx.x * teams + team; run < p.runs; run += gridDim.x * teams)
            for_each_pixel(p, run, channel, [&](const Window& window, int j, long long place) {
                const elements dy = load(p.dy + place);
                float dsum[VECTOR];
#pragma unroll
                for (int c = 0; c < VECTOR; ++c) {
                    const float sum = weights.apply(window, j, c), gate = reciprocal_fast(1.f + exp_(-sum));
                    dsum[c] = to_float(dy.v[c]) * gate * fmaf(sum, 1.f - gate, 1.f);
                    sums[9][c] += dsum[c];
#pragma unroll
                    for (int k = 0; k < 9; ++k) sums[k][c] = fmaf(dsum[c], window.v[k / 3][j + k % 3][c], sums[k][c]);
                }
                store(p.y + place, dsum);
            });
    }
#pragma unroll
    for (int k = 0; k < 10; ++k) {
        __syncthreads();
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) shared[(team * lanes + lane) * VECTOR + c] = sums[k][c];
        __syncthreads();
        if (team == 0 && inside) {
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                float sum = 0.f;
                for (int t = 0; t < teams; ++t) sum += shared[(t * lanes + lane) * VECTOR + c];
                p.dparameters[((long long)blockIdx.x * 10 + k) * p.channels + channel + c] = sum;
            }
        }
    }
}
