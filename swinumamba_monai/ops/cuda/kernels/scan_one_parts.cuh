// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// For scan_one.cu: its parameters, where a thread works, the order of the pixels, and the runs that are chained.

constexpr int BLOCK_CHANNELS = 32, WARP_POSITIONS = 16;
constexpr int LANES = BLOCK_CHANNELS / VECTOR;
constexpr int RUN = WARP_POSITIONS * LANES / 32;
constexpr float LN2 = 0.6931471806f;  // decays are 2^(Δ A), so their derivatives have this factor
static_assert(2 * RUN == LANES, "a thread of a team ends with one of the sums for dB and dC of its positions");

struct OneStateParams {
    const element *u, *delta, *B, *C, *dy;
    const float *A;           // (g, d), times log2(e)
    const float *delta_bias;  // (g, d)
    element *y;               // (g, b, l, d)
    element *states;          // (b, g, ceil(l / WARP_POSITIONS), d): the state before these positions
    element *du;              // (g, b, l, d)
    element *ddelta;          // strides of delta
    float *dBC;               // (blocks of channels, b, l, g, 2)
    float *dparameters;       // (b, g, 3, d): of A, delta_bias and D
    long long u_group, u_batch, u_position;
    long long delta_group, delta_batch, delta_position;
    long long BC_group, BC_batch, BC_position;
    long long batch, groups, channels, length, height, width;
    long long four_directions;  // whether group g walks the map in direction g, or each walks the sequence
    long long keep_states;
};

// Where a thread works.
struct Place {
    int lane, warp, b, g;
    int channel;  // the thread's first
    int slot;     // the same, counted from the block's first
    bool inside;
    int position;  // the thread's first in a stretch, counted from the stretch's first

    DEVICE_MEMBER explicit Place(const OneStateParams& p)
        : lane(threadIdx.x % 32),
          warp(threadIdx.x / 32),
          b(blockIdx.y % int(p.batch)),
          g(blockIdx.y / int(p.batch)),
          slot(lane % LANES * VECTOR),
          position(warp * WARP_POSITIONS + lane / LANES * RUN) {
        channel = blockIdx.x * BLOCK_CHANNELS + slot;
        inside = channel < p.channels;
    }
};

// The pixels that group g visits at RUN positions from `position` on, and then at every `stride`-th such run, or back:
// along the rows, the columns, and both reversed.
struct Pixels {
    int at[RUN];
    int pixel, inner;  // of the first position, and its place in the column that it lies in, before anything is reversed
    int step, inner_step, next, inner_length, wrap, last;
    bool reversed;

    DEVICE_MEMBER Pixels(const OneStateParams& p, int g, int position, int stride) {
        const bool columns = p.four_directions && (g & 1);
        const int height = columns ? int(p.height) : 1, width = int(p.width);
        reversed = p.four_directions && (g & 2);
        last = int(p.length) - 1;
        inner_length = columns ? height : last + 2;  // a row has no end to turn at
        wrap = -last;  // from below a column to the top of the next
        next = columns ? width : 1;
        inner = columns ? position % height : 0;
        inner_step = columns ? stride % height : 0;
        pixel = columns ? inner * width + position / height : position;
        step = columns ? inner_step * width + stride / height : stride;
        find();
    }

    DEVICE_MEMBER void find() {
        int visited = pixel, within = inner;
#pragma unroll
        for (int i = 0; i < RUN; ++i) {
            at[i] = reversed ? last - visited : visited;
            visited += next;
            if (++within == inner_length) {
                within = 0;
                visited += wrap;
            }
        }
    }

    DEVICE_MEMBER void advance() {
        pixel += step;
        inner += inner_step;
        if (inner >= inner_length) {
            inner -= inner_length;
            pixel += wrap;
        } else if (inner < 0) {
            inner += inner_length;
            pixel -= wrap;
        }
        find();
    }
};

// Where a thread finds its channels of the maps, and B and C.
struct Columns {
    Column<const element> delta, u, B, C;

    DEVICE_MEMBER Columns(const OneStateParams& p, const Place& at)
        : delta(p.delta, at.g * p.delta_group + at.b * p.delta_batch + at.channel, p.delta_position),
          u(p.u, at.g * p.u_group + at.b * p.u_batch + at.channel, p.u_position),
          B(p.B, at.g * p.BC_group + at.b * p.BC_batch, p.BC_position),
          C(p.C, at.g * p.BC_group + at.b * p.BC_batch, p.BC_position) {}
};

DEVICE Column<element> dense_column(const OneStateParams& p, const Place& at, element* map) {
    return {map, ((long long)at.g * p.batch + at.b) * p.length * p.channels + at.channel, p.channels};
}

// What a thread reads of the maps and of B and C at its positions; zeros beyond the ends.
struct Run {
    elements delta[RUN], u[RUN];
    element B[RUN], C[RUN];
    int count;  // positions before the end

    DEVICE_MEMBER void load(const Columns& columns, const Place& at, int left, const Pixels& pixels) {
        count = left - at.position;
#pragma unroll
        for (int i = 0; i < RUN; ++i) {
            const int pixel = pixels.at[i];
            const bool there = i < count;
            delta[i] = u[i] = elements{};
            B[i] = C[i] = element(0);
            if (there && at.inside) {
                delta[i] = ::load(columns.delta.at(pixel));
                u[i] = ::load(columns.u.at(pixel));
            }
            if (there) {
                B[i] = *columns.B.at(pixel);
                C[i] = *columns.C.at(pixel);
            }
        }
    }
};

// Per channel constants of a thread.
struct Channels {
    float A[VECTOR], bias[VECTOR];

    DEVICE_MEMBER Channels(const OneStateParams& p, const Place& at) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const long long channel = at.g * p.channels + at.channel + v;
            A[v] = at.inside ? p.A[channel] : 0.f;
            bias[v] = at.inside ? p.delta_bias[channel] : 0.f;
        }
    }

    DEVICE_MEMBER float step(float raw, int v, bool there) const {
        const float step = raw + bias[v];
        return there ? (DELTA_SOFTPLUS ? softplus(step) : step) : 0.f;
    }
};

// Maps x -> D x + H, one for each channel of a thread.
struct Affine {
    float D[VECTOR], H[VECTOR];

    DEVICE_MEMBER void reset() {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            D[v] = 1.f;
            H[v] = 0.f;
        }
    }

    DEVICE_MEMBER float apply(int v, float x) const { return fmaf(D[v], x, H[v]); }

    // this after `other`
    DEVICE_MEMBER void follow(const Affine& other) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            H[v] = fmaf(D[v], other.H[v], H[v]);
            D[v] *= other.D[v];
        }
    }
};

// Put the maps of a warp's teams one behind the other, the first team's first, or where BACKWARDS the last one's.
// `total` is a team's own map, and then that of all; `before` becomes that of the teams before it.
template <bool BACKWARDS>
DEVICE void chain_teams(const Place& at, Affine& total, Affine& before) {
    before.reset();
#pragma unroll
    for (int mask = LANES; mask < 32; mask *= 2) {
        Affine other;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            other.D[v] = exchange(total.D[v], mask);
            other.H[v] = exchange(total.H[v], mask);
        }
        if (bool(at.lane & mask) != BACKWARDS) {
            before.follow(other);
            total.follow(other);
        } else {
            other.follow(total);
            total = other;
        }
    }
}

// The maps of the warps, which two stretches take turns to use.
template <int WARPS>
struct WarpMaps {
    float maps[2][WARPS][BLOCK_CHANNELS][2];
    float starts[WARPS][BLOCK_CHANNELS];

    // Chain the warps behind `carry`, what the stretch begins with for the channel with the lane's number; then it is what
    // the next begins with. Returns in `start` what this warp begins with, for the thread's channels.
    template <bool BACKWARDS>
    DEVICE_MEMBER void chain(const Place& at, int turn, const Affine& total, float& carry, float (&start)[VECTOR]) {
        if (at.lane < LANES) {
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float map[2] = {total.D[v], total.H[v]};
                copy<2>(maps[turn][at.warp][at.slot + v], map);
            }
        }
        __syncthreads();
        float own = 0.f;
#pragma unroll
        for (int k = 0; k < WARPS; ++k) {
            const int warp = BACKWARDS ? WARPS - 1 - k : k;
            const floats<2> map = read<2>(maps[turn][warp][at.lane]);
            if (warp == at.warp) own = carry;
            carry = fmaf(map.v[0], carry, map.v[1]);
        }
        starts[at.warp][at.lane] = own;
        __syncwarp();
        const floats<VECTOR> mine = read<VECTOR>(starts[at.warp] + at.slot);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) start[v] = mine.v[v];
        __syncwarp();
    }
};
