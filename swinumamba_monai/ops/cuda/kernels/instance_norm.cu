// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// Instance norm of a channels-last map, what is added to it and LeakyReLU, and the backward. A block has a chunk of an
// image's pixels, each of its teams every count-th of them. What depends on all pixels of an image is found by chunks
// first, and then from these, in a fixed order.

struct InstanceParams {
    const element *x, *residual;  // (b, pixels, c); the residual may be null
    const element *y, *dy;        // (b, pixels, c): of the forward, null without LeakyReLU; and its gradient
    const float *weight, *bias;   // (c), or null
    const float* sums;            // (b, 2, c): over an image, of the gradient before LeakyReLU, and of it times x normed
    float *parts;                 // (chunks, b, 2, c): mean and squared deviations of a chunk; or its share of `sums`
    float *statistics;            // (b, 2, c): mean, and the reciprocal of the standard deviation
    element *out;                 // (b, pixels, c): y, or the gradient of x
    element *dresidual;           // (b, pixels, c): the gradient before LeakyReLU, or null
    long long batch, pixels, channels;
    long long chunk, chunks;  // pixels of a chunk, and how many chunks an image has
    long long lanes;          // of a team
    double eps, slope;        // of LeakyReLU below zero; 1 without it
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

// What a thread needs of its channels of an image.
struct Normed {
    float mean[VECTOR], scale[VECTOR], weight[VECTOR], bias[VECTOR];

    DEVICE_MEMBER Normed(const InstanceParams& p, const Team& team) {
        if (team.channel >= p.channels) return;
        const float* statistics = p.statistics + blockIdx.z * 2 * p.channels + team.channel;
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            mean[c] = statistics[c];
            scale[c] = statistics[p.channels + c];
            weight[c] = p.weight ? p.weight[team.channel + c] : 1.f;
            bias[c] = p.bias ? p.bias[team.channel + c] : 0.f;
        }
    }
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

// Leave two numbers for each channel of a thread where the first team finds those of all teams.
struct Exchange {
    float *first, *second;  // (teams, lanes, VECTOR)

    DEVICE_MEMBER Exchange(float* shared, const Team& team)
        : first(shared), second(shared + team.count * team.lanes * VECTOR) {}

    DEVICE_MEMBER void put(const Team& team, const float (&a)[VECTOR], const float (&b)[VECTOR]) const {
        const int place = (team.number * team.lanes + team.lane) * VECTOR;
        copy<VECTOR>(first + place, a);
        copy<VECTOR>(second + place, b);
    }

    // `use` gets a channel of the thread, a team, and what that team left
    template <typename Use>
    DEVICE_MEMBER void for_each_team(const Team& team, const Use& use) const {
#pragma unroll
        for (int c = 0; c < VECTOR; ++c)
            for (int t = 0; t < team.count; ++t) {
                const int place = (t * team.lanes + team.lane) * VECTOR + c;
                use(c, t, first[place], second[place]);
            }
    }
};

DEVICE float* part_of_block(const InstanceParams& p, const Team& team) {
    return p.parts + (blockIdx.x * p.batch + blockIdx.z) * 2 * p.channels + team.channel;
}

KERNEL LAUNCH_BOUNDS(256, 4) instance_statistics(const GRID_CONSTANT InstanceParams p) {
    SHARED_MEMORY(shared);
    const Team team(int(p.lanes));
    const Share share(p, team);
    const Exchange teams(shared, team);
    // Deviations from the first pixel that the thread has, so that a large mean costs no digits.
    float base[VECTOR] = {}, sum[VECTOR] = {}, squares[VECTOR] = {}, count = 0.f;
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
    teams.put(team, base, squares);
    __syncthreads();
    if (team.number > 0 || team.channel >= p.channels) return;
    Moments moments[VECTOR];
    const int left = share.stop - share.first;  // from the first team's first pixel on
    teams.for_each_team(team, [&](int c, int t, float mean, float deviations) {
        moments[c].add(float(max(0, (left - t + team.count - 1) / team.count)), mean, deviations);
    });
    float* part = part_of_block(p, team);
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

KERNEL LAUNCH_BOUNDS(256, 4) instance_norm(const GRID_CONSTANT InstanceParams p) {
    const Team team(int(p.lanes));
    const Normed normed(p, team);
    const float slope = float(p.slope);
    struct Loaded {
        elements x, residual;
    };
    const auto at = [&](long long place) {
        return Loaded{load(p.x + place), p.residual ? load(p.residual + place) : elements{}};
    };
    Share(p, team).for_each_pixel<4>(p, at, [&](const Loaded& loaded, long long place) {
        float x[VECTOR], residual[VECTOR];
        to_floats(loaded.x, x);
        to_floats(loaded.residual, residual);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            const float affine = fmaf((x[c] - normed.mean[c]) * normed.scale[c], normed.weight[c], normed.bias[c]);
            const float sum = affine + residual[c];
            x[c] = sum > 0.f ? sum : slope * sum;
        }
        store(p.out + place, x);
    });
}

// What the backward loads of a pixel.
struct BackwardPixel {
    elements x, dy, y;

    DEVICE_MEMBER BackwardPixel() {}
    DEVICE_MEMBER BackwardPixel(const InstanceParams& p, long long place)
        : x(load(p.x + place)), dy(load(p.dy + place)), y(p.y ? load(p.y + place) : elements{}) {}

    // before LeakyReLU
    DEVICE_MEMBER void gradient(const InstanceParams& p, float slope, float (&gradient)[VECTOR]) const {
        to_floats(dy, gradient);
        if (!p.y) return;
        float values[VECTOR];
        to_floats(y, values);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) gradient[c] *= values[c] > 0.f ? 1.f : slope;
    }
};

KERNEL LAUNCH_BOUNDS(256, 4) instance_sums(const GRID_CONSTANT InstanceParams p) {
    SHARED_MEMORY(shared);
    const Team team(int(p.lanes));
    const Normed normed(p, team);
    const Exchange teams(shared, team);
    const float slope = float(p.slope);
    float sum[VECTOR] = {}, projection[VECTOR] = {};
    const auto at = [&](long long place) { return BackwardPixel(p, place); };
    Share(p, team).for_each_pixel<2>(p, at, [&](const BackwardPixel& loaded, long long place) {
        float x[VECTOR], gradient[VECTOR];
        to_floats(loaded.x, x);
        loaded.gradient(p, slope, gradient);
        if (p.dresidual) store(p.dresidual + place, gradient);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            sum[c] += gradient[c];
            projection[c] = fmaf(gradient[c], (x[c] - normed.mean[c]) * normed.scale[c], projection[c]);
        }
    });
    teams.put(team, sum, projection);
    __syncthreads();
    if (team.number > 0 || team.channel >= p.channels) return;
    float sums[VECTOR] = {}, projections[VECTOR] = {};
    teams.for_each_team(team, [&](int c, int, float of_team, float projection_of_team) {
        sums[c] += of_team;
        projections[c] += projection_of_team;
    });
    float* part = part_of_block(p, team);
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) {
        part[c] = sums[c];
        part[p.channels + c] = projections[c];
    }
}

KERNEL LAUNCH_BOUNDS(256, 4) instance_backward(const GRID_CONSTANT InstanceParams p) {
    const Team team(int(p.lanes));
    const Normed normed(p, team);
    float mean[VECTOR] = {}, projection[VECTOR] = {};  // of the gradient, over the image
    if (team.channel < p.channels) {
        const float* sums = p.sums + blockIdx.z * 2 * p.channels + team.channel;
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            mean[c] = sums[c] / p.pixels;
            projection[c] = sums[p.channels + c] / p.pixels;
        }
    }
    const float slope = float(p.slope);
    const auto at = [&](long long place) { return BackwardPixel(p, place); };
    Share(p, team).for_each_pixel<2>(p, at, [&](const BackwardPixel& loaded, long long place) {
        float x[VECTOR], gradient[VECTOR];
        to_floats(loaded.x, x);
        loaded.gradient(p, slope, gradient);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
            const float value = (x[c] - normed.mean[c]) * normed.scale[c];
            x[c] = normed.scale[c] * normed.weight[c] * (gradient[c] - mean[c] - value * projection[c]);
        }
        store(p.out + place, x);
    });
}
