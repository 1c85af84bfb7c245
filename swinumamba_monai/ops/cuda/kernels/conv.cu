// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// Depthwise 3x3 convolution of a channels-last map, with SiLU, and its backward. A thread has VECTOR channels of a patch
// of ROWS x RUN pixels: the more rows, the fewer pixels are loaded twice. ROWS and RUN are defined by the compiling side,
// besides what common.cuh names.

struct ConvParams {
    const element *x;       // (b, h, w, c)
    const element *dy;      // (b, h, w, c)
    const float *taps;      // (10, c): the nine weights and the bias
    element *y;             // (b, h, w, c); in the backward the gradient before SiLU
    float *dparameters;     // (blocks, 10, c): of the nine weights and the bias
    long long height, width, channels;
    long long patches;      // b * ceil(h / ROWS) * ceil(w / RUN)
    long long lanes;        // of a block that have different channels
};

// Where a patch lies.
struct Patch {
    int line, row, column;  // of its first pixel; `line` counts the rows of all images

    DEVICE_MEMBER Patch(const ConvParams& p, int number) {
        const int across = (int(p.width) + RUN - 1) / RUN, down = (int(p.height) + ROWS - 1) / ROWS;
        const int strip = number / across;
        row = strip % down * ROWS;
        line = strip / down * int(p.height) + row;
        column = number % across * RUN;
    }
};

// The pixels around a patch, all loaded before the first is used.
struct Window {
    elements raw[ROWS + 2][RUN + 2];
    float v[ROWS + 2][RUN + 2][VECTOR];

    DEVICE_MEMBER Window(const ConvParams& p, const Patch& patch, int channel) {
        const int width = int(p.width), channels = int(p.channels);
#pragma unroll
        for (int r = 0; r < ROWS + 2; ++r) {
            const int row = patch.row + r - 1;
            const bool row_inside = row >= 0 && row < p.height;
            const Column<const element> from(p.x, (long long)(patch.line + r - 1) * width * channels + channel, channels);
#pragma unroll
            for (int j = 0; j < RUN + 2; ++j) {
                const int column = patch.column + j - 1;
                raw[r][j] = elements{};
                if (row_inside && column >= 0 && column < width) raw[r][j] = ::load(from.at(column));
            }
        }
    }
    DEVICE_MEMBER void convert(int r) {
#pragma unroll
        for (int j = 0; j < RUN + 2; ++j) to_floats(raw[r][j], v[r][j]);
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

    // at pixel j of row r of the patch
    DEVICE_MEMBER float apply(const Window& window, int r, int j, int c) const {
        float sum = bias[c];
#pragma unroll
        for (int k = 0; k < 9; ++k) sum = fmaf(v[k][c], window.v[r + k / 3][j + k % 3][c], sum);
        return sum;
    }
};

// Go through the patch with number `number`; `use` gets the window, row and column in the patch and where the pixel's
// channels begin.
template <typename Use>
DEVICE void for_each_pixel(const ConvParams& p, int number, int channel, const Use& use) {
    const Patch patch(p, number);
    Window window(p, patch, channel);
    window.convert(0);
    window.convert(1);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        window.convert(r + 2);
        if (patch.row + r >= p.height) return;
        const long long start = ((long long)(patch.line + r) * p.width + patch.column) * p.channels + channel;
#pragma unroll
        for (int j = 0; j < RUN; ++j)
            if (patch.column + j < p.width) use(window, r, j, start + j * int(p.channels));
    }
}

// A team has one patch after another, or one. Teams side by side have patches side by side, whose edges they find in the
// cache of their multiprocessor.

// Blocks of a multiprocessor: three hide the most latency, and float32 has registers for two alone.
constexpr int CONV_BLOCKS = ELEMENT == 0 ? 2 : 3;

template <bool SILU>
DEVICE void convolve(const ConvParams& p) {
    const Team team(int(p.lanes));
    const int patch = blockIdx.x * team.count + team.number;
    if (team.channel >= p.channels || patch >= p.patches) return;
    Weights weights;
    weights.load(p, team.channel, !SILU);
    for_each_pixel(p, patch, team.channel, [&](const Window& window, int r, int j, long long place) {
        float y[VECTOR];
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            const float sum = weights.apply(window, r, j, c);
            y[c] = SILU ? silu(sum) : sum;
        }
        store(p.y + place, y);
    });
}

KERNEL LAUNCH_BOUNDS(256, CONV_BLOCKS) conv_silu(const GRID_CONSTANT ConvParams p) { convolve<true>(p); }
// With the weights turned around and without the bias: the gradient of the map.
KERNEL LAUNCH_BOUNDS(256, CONV_BLOCKS) conv_transposed(const GRID_CONSTANT ConvParams p) { convolve<false>(p); }

// The gradient before SiLU, and of the parameters. A team takes one patch after another; at the end the teams of a block
// add up what they found.
KERNEL LAUNCH_BOUNDS(256, 2) conv_silu_backward(const GRID_CONSTANT ConvParams p) {
    SHARED_MEMORY(shared);
    const Team team(int(p.lanes));
    const int channel = team.channel;
    const bool inside = channel < p.channels;
    float sums[10][VECTOR] = {};
    if (inside) {
        Weights weights;
        weights.load(p, channel, false);
        for (int patch = blockIdx.x * team.count + team.number; patch < p.patches; patch += gridDim.x * team.count)
            for_each_pixel(p, patch, channel, [&](const Window& window, int r, int j, long long place) {
                const elements dy = load(p.dy + place);
                float dsum[VECTOR];
#pragma unroll
                for (int c = 0; c < VECTOR; ++c) {
                    const float sum = weights.apply(window, r, j, c), gate = reciprocal_fast(1.f + exp_(-sum));
                    dsum[c] = to_float(dy.v[c]) * gate * fmaf(sum, 1.f - gate, 1.f);
                    sums[9][c] += dsum[c];
#pragma unroll
                    for (int k = 0; k < 9; ++k) sums[k][c] = fmaf(dsum[c], window.v[r + k / 3][j + k % 3][c], sums[k][c]);
                }
                store(p.y + place, dsum);
            });
    }
#pragma unroll
    for (int k = 0; k < 10; ++k) {
        __syncthreads();
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) shared[(team.number * team.lanes + team.lane) * VECTOR + c] = sums[k][c];
        __syncthreads();
        if (team.number == 0 && inside) {
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                float sum = 0.f;
                for (int t = 0; t < team.count; ++t) sum += shared[(t * team.lanes + team.lane) * VECTOR + c];
                p.dparameters[((long long)blockIdx.x * 10 + k) * p.channels + channel + c] = sum;
            }
        }
    }
}
