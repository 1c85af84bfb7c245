// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// Instance norm of a channels-last map, what is added to it and LeakyReLU, and the backward. A block has a chunk of an
// image's pixels, each of its teams every count-th of them. What depends on all pixels of an image is found by chunks
// first, and then from these, in a fixed order. Defined by the compiling side (ops/cuda/instance_norm.py):
//
//   NORMED_RESIDUAL  1 where what is added goes through a norm of its own first; else 0.
//   BLOCKS           blocks that a multiprocessor shall have room for.

constexpr int SUMS = 2 + NORMED_RESIDUAL;
constexpr int LOADED = 4 * (1 + NORMED_RESIDUAL);  // pixels that a thread loads before it uses the first, in the forward

struct InstanceParams {
    const element *x, *residual;  // (b, pixels, c); the residual may be null
    const element *y, *dy;        // (b, pixels, c): result of the forward, null without a residual; and its gradient
    const float *weight, *bias;   // (c), or null
    const float *residual_weight, *residual_bias;
    const float* sums;            // (b, SUMS, c): over an image, of the gradient before LeakyReLU, of it times x normed,
                                  // and of it times the residual normed
    float *parts;                 // (chunks, b, 2, c): mean and squared deviations of a chunk; or its share of `sums`
    float *statistics;            // (b, 2, c): mean, and the reciprocal of the standard deviation
    float *residual_statistics;
    element *out;                 // (b, pixels, c): y, or the gradient of x
    element *dresidual;           // (b, pixels, c): of a residual without a norm the gradient before LeakyReLU, or null
    long long batch, pixels, channels;
    long long chunk, chunks;  // pixels of a chunk, and how many chunks an image has
    long long lanes;          // of a team
    double eps, slope;        // of LeakyReLU below zero; 1 without it, or where dy has passed it
};

// The pixels of a block's chunk that one of its teams has.
struct Share {
    int first, stop, step;
    long long start;  // of the thread's channels at the image's first pixel, in the map

    DEVICE_MEMBER Share(const InstanceParams& p, const Team& team) {
        const int begin = blockIdx.x * int(p.chunk);
        first = begin + team.number;
        stop = min(begin + int(p.chunk), int(p.pixels));
        step = team.count;
        start = blockIdx.z * p.pixels * p.channels + team.channel;
        if (team.channel >= p.channels) stop = first;  // a block has all its threads until its last barrier
    }

    // `use` gets what `load` finds at a pixel's place, and the place. So many pixels are loaded before the first is used:
    // the compiler may not do so by itself, for what is stored could be what is loaded next.
    template <int AT_ONCE, typename Load, typename Use>
    DEVICE_MEMBER void for_each_pixel(const InstanceParams& p, const Load& load, const Use& use) const {
        typedef decltype(load(0LL)) Loaded;
        const long long apart = step * p.channels;
        long long place = start + first * p.channels;
        int pixel = first;
        for (; pixel + (AT_ONCE - 1) * step < stop; pixel += AT_ONCE * step, place += AT_ONCE * apart) {
            Loaded loaded[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) loaded[i] = load(place + i * apart);
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) use(loaded[i], place + i * apart);
        }
        for (; pixel < stop; pixel += step, place += apart) use(load(place), place);
    }
};

// What a thread needs of its channels of an image to norm them.
struct Norm {
    float mean[VECTOR], scale[VECTOR], weight[VECTOR], bias[VECTOR];

    DEVICE_MEMBER Norm(
        const InstanceParams& p, const Team& team, const float* statistics, const float* weights, const float* biases
    ) {
        if (team.channel >= p.channels) return;
        statistics += blockIdx.z * 2 * p.channels + team.channel;
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            mean[c] = statistics[c];
            scale[c] = statistics[p.channels + c];
            weight[c] = weights ? weights[team.channel + c] : 1.f;
            bias[c] = biases ? biases[team.channel + c] : 0.f;
        }
    }
    DEVICE_MEMBER float value(float x, int c) const { return (x - mean[c]) * scale[c]; }
    DEVICE_MEMBER float affine(float x, int c) const { return fmaf(value(x, c), weight[c], bias[c]); }
};

// The norm of x, and that of the residual where it has one.
struct Norms {
    Norm x, residual;

    DEVICE_MEMBER Norms(const InstanceParams& p, const Team& team)
        : x(p, team, p.statistics, p.weight, p.bias),
          residual(p, team, NORMED_RESIDUAL ? p.residual_statistics : p.statistics, p.residual_weight, p.residual_bias) {}
};

// Number of some values, their mean, counted from that of the first ones, and squared deviations from it.
struct Moments {
    float count = 0.f, base = 0.f, above = 0.f, squares = 0.f;

    DEVICE_MEMBER void add(float others, float mean, float others_squares) {
        if (others == 0.f) return;
        if (count == 0.f) base = mean;
        const float total = count + others, difference = mean - base - above, share = others / total;
        squares += others_squares + difference * difference * count * share;
        above = fmaf(difference, share, above);
        count = total;
    }
    DEVICE_MEMBER float mean() const { return base + above; }
};

// Leave N numbers for each channel of a thread where the first team finds those of all teams.
template <int N>
struct Exchange {
    float* shared;  // (N, teams, lanes, VECTOR)

    DEVICE_MEMBER void put(const Team& team, const float (&numbers)[N][VECTOR]) const {
#pragma unroll
        for (int n = 0; n < N; ++n) copy<VECTOR>(shared + place(team, n, team.number), numbers[n]);
    }

    // `use` gets a channel of the thread, a team, and what that team left
    template <typename Use>
    DEVICE_MEMBER void for_each_team(const Team& team, const Use& use) const {
#pragma unroll
        for (int c = 0; c < VECTOR; ++c)
            for (int t = 0; t < team.count; ++t) {
                float left[N];
#pragma unroll
                for (int n = 0; n < N; ++n) left[n] = shared[place(team, n, t) + c];
                use(c, t, left);
            }
    }

    DEVICE_MEMBER static int place(const Team& team, int n, int t) {
        return ((n * team.count + t) * team.lanes + team.lane) * VECTOR;
    }
};

template <int N>
DEVICE float* part_of_block(const InstanceParams& p, const Team& team) {
    return p.parts + (blockIdx.x * p.batch + blockIdx.z) * N * p.channels + team.channel;
}

KERNEL LAUNCH_BOUNDS(256, BLOCKS) instance_statistics(const GRID_CONSTANT InstanceParams p) {
    SHARED_MEMORY(shared);
    const Team team(int(p.lanes));
    const Share share(p, team);
    const Exchange<2> teams{shared};
    // Deviations from the first pixel that the thread has, so that a large mean costs no digits.
    float found[2][VECTOR] = {}, sum[VECTOR] = {}, count = 0.f;
    auto &base = found[0], &squares = found[1];
    if (share.first < share.stop) to_floats(load(p.x + share.start + share.first * p.channels), base);
    const auto at = [&](long long place) { return load(p.x + place); };
    share.for_each_pixel<8>(p, at, [&](const elements& loaded, long long) {
        float x[VECTOR];
        to_floats(loaded, x);
        count += 1.f;
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            const float deviation = x[c] - base[c];
            sum[c] += deviation;
            squares[c] = fmaf(deviation, deviation, squares[c]);
        }
    });
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) {
        const float deviation = sum[c] / fmaxf(count, 1.f);
        base[c] += deviation;
        squares[c] = fmaxf(squares[c] - sum[c] * deviation, 0.f);
    }
    teams.put(team, found);
    __syncthreads();
    if (team.number > 0 || team.channel >= p.channels) return;
    Moments moments[VECTOR];
    const int left = share.stop - share.first;  // from the first team's first pixel on
    teams.for_each_team(team, [&](int c, int t, const float (&of_team)[2]) {
        moments[c].add(float(max(0, (left - t + team.count - 1) / team.count)), of_team[0], of_team[1]);
    });
    float* part = part_of_block<2>(p, team);
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) {
        part[c] = moments[c].mean();
        part[p.channels + c] = moments[c].squares;
    }
}

// A block has 32 channels of images, a warp of it one chunk after another; at the end the warps' moments are added up in
// their order.
KERNEL LAUNCH_BOUNDS(1024, 1) instance_finish(const GRID_CONSTANT InstanceParams p) {
    SHARED_MEMORY(shared);
    float(*left)[32][3] = reinterpret_cast<float(*)[32][3]>(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int number = 32 * blockIdx.x + lane, channels = int(p.channels);
    const bool inside = number < p.batch * channels;
    const long long place = inside ? (long long)(number / channels) * 2 * channels + number % channels : 0;
    Moments moments;
#pragma unroll 4
    for (int i = warp; i < p.chunks; i += warps) {
        const float* part = p.parts + i * p.batch * 2 * channels + place;
        moments.add(float(min(int(p.chunk), int(p.pixels) - i * int(p.chunk))), part[0], part[channels]);
    }
    left[warp][lane][0] = moments.count;
    left[warp][lane][1] = moments.mean();
    left[warp][lane][2] = moments.squares;
    __syncthreads();
    if (warp > 0 || !inside) return;
    for (int w = 1; w < warps; ++w) moments.add(left[w][lane][0], left[w][lane][1], left[w][lane][2]);
    p.statistics[place] = moments.mean();
    p.statistics[place + channels] = rsqrtf(moments.squares / p.pixels + float(p.eps));
}

KERNEL LAUNCH_BOUNDS(256, BLOCKS) instance_norm(const GRID_CONSTANT InstanceParams p) {
    const Team team(int(p.lanes));
    const Norms norms(p, team);
    const float slope = float(p.slope);
    struct Loaded {
        elements x, residual;
    };
    const auto at = [&](long long place) {
        return Loaded{load(p.x + place), p.residual ? load(p.residual + place) : elements{}};
    };
    Share(p, team).for_each_pixel<LOADED>(p, at, [&](const Loaded& loaded, long long place) {
        float x[VECTOR], residual[VECTOR];
        to_floats(loaded.x, x);
        to_floats(loaded.residual, residual);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            const float added = NORMED_RESIDUAL ? norms.residual.affine(residual[c], c) : residual[c];
            const float sum = norms.x.affine(x[c], c) + added;
            x[c] = sum > 0.f ? sum : slope * sum;
        }
        store(p.out + place, x);
    });
}

// What the backward loads of a pixel.
struct BackwardPixel {
    elements x, dy, y, residual;

    DEVICE_MEMBER BackwardPixel() {}
    DEVICE_MEMBER BackwardPixel(const InstanceParams& p, long long place)
        : x(load(p.x + place)), dy(load(p.dy + place)), y(p.y ? load(p.y + place) : elements{}) {
        if constexpr (NORMED_RESIDUAL) residual = load(p.residual + place);
    }
};

// What it finds there: the gradient before LeakyReLU, and the maps as they were normed. Without a residual x tells on
// which side of zero a sum was, and no result is loaded for it.
struct Found {
    float gradient[VECTOR], x[VECTOR], residual[VECTOR];

    DEVICE_MEMBER Found(const InstanceParams& p, const Norms& norms, const BackwardPixel& loaded, float slope) {
        float y[VECTOR];
        to_floats(loaded.dy, gradient);
        to_floats(loaded.x, x);
        to_floats(loaded.y, y);
        if (slope != 1.f) {
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) gradient[c] *= (p.y ? y[c] : norms.x.affine(x[c], c)) > 0.f ? 1.f : slope;
        }
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) x[c] = norms.x.value(x[c], c);
        if constexpr (NORMED_RESIDUAL) {
            to_floats(loaded.residual, residual);
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) residual[c] = norms.residual.value(residual[c], c);
        }
    }
};

KERNEL LAUNCH_BOUNDS(256, BLOCKS) instance_sums(const GRID_CONSTANT InstanceParams p) {
    SHARED_MEMORY(shared);
    const Team team(int(p.lanes));
    const Norms norms(p, team);
    const Exchange<SUMS> teams{shared};
    const float slope = float(p.slope);
    float sums[SUMS][VECTOR] = {};
    const auto at = [&](long long place) { return BackwardPixel(p, place); };
    Share(p, team).for_each_pixel<LOADED / 2>(p, at, [&](const BackwardPixel& loaded, long long place) {
        const Found found(p, norms, loaded, slope);
        if (!NORMED_RESIDUAL && p.dresidual) store(p.dresidual + place, found.gradient);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            sums[0][c] += found.gradient[c];
            sums[1][c] = fmaf(found.gradient[c], found.x[c], sums[1][c]);
            if constexpr (NORMED_RESIDUAL) sums[2][c] = fmaf(found.gradient[c], found.residual[c], sums[2][c]);
        }
    });
    teams.put(team, sums);
    __syncthreads();
    if (team.number > 0 || team.channel >= p.channels) return;
    float totals[SUMS][VECTOR] = {};
    teams.for_each_team(team, [&](int c, int, const float (&of_team)[SUMS]) {
#pragma unroll
        for (int n = 0; n < SUMS; ++n) totals[n][c] += of_team[n];
    });
    float* part = part_of_block<SUMS>(p, team);
#pragma unroll
    for (int n = 0; n < SUMS; ++n)
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) part[n * p.channels + c] = totals[n][c];
}

KERNEL LAUNCH_BOUNDS(256, BLOCKS) instance_backward(const GRID_CONSTANT InstanceParams p) {
    const Team team(int(p.lanes));
    const Norms norms(p, team);
    float means[SUMS][VECTOR] = {};  // of what is summed up, over the image
    if (team.channel < p.channels) {
        const float* sums = p.sums + blockIdx.z * SUMS * p.channels + team.channel;
#pragma unroll
        for (int n = 0; n < SUMS; ++n)
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) means[n][c] = sums[n * p.channels + c] / p.pixels;
    }
    const float slope = float(p.slope);
    const auto at = [&](long long place) { return BackwardPixel(p, place); };
    Share(p, team).for_each_pixel<LOADED / 2>(p, at, [&](const BackwardPixel& loaded, long long place) {
        const Found found(p, norms, loaded, slope);
        const auto give = [&](element* to, const Norm& norm, const float(&value)[VECTOR], const float(&mean)[VECTOR]) {
            float dx[VECTOR];
#pragma unroll
            for (int c = 0; c < VECTOR; ++c)
                dx[c] = norm.scale[c] * norm.weight[c] * (found.gradient[c] - means[0][c] - value[c] * mean[c]);
            store(to + place, dx);
        };
        give(p.out, norms.x, found.x, means[1]);
        if constexpr (NORMED_RESIDUAL) give(p.dresidual, norms.residual, found.residual, means[2]);
    });
}
