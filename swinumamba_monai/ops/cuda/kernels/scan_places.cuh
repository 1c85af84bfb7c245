// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// For scan.cu: its parameters, the order in which a group goes through the pixels, where a thread works, and its states.

constexpr int STATES = LANE_STATES * STATE_LANES;  // at least d_state; surplus states have A = B = C = 0
constexpr int WARP_CHANNELS = 32 / STATE_LANES;
constexpr int MATRIX_VECTORS = 2 * STATES / MATRIX_VECTOR;  // that B and C of a position are moved in
constexpr float LN2 = 0.6931471806f;  // decays are 2^(Δ A), so their derivatives have this factor

static_assert(STATE_LANES == 4 && LANE_STATES <= 4, "");
static_assert(CHUNK % TILE == 0 && CHUNK % SUBTILE == 0 && TILE % UNROLLED == 0 && SUBTILE % 4 == 0, "");

struct ScanParams {
    const element *u, *delta, *B, *C, *dy;
    const float *A;           // (g, d, n), times log2(e)
    const float *delta_bias;  // (g, d)
    element *y;               // (g, b, l, d)
    element *states;          // (b, g, chunks, d, n): the state before each chunk
    float *carry;             // (g, b, segments, d, n): what a segment ends with, then what it starts with
    float *decay;             // (g, b, segments, d): sum of Δ over a segment
    element *du;              // (g, b, l, d)
    element *ddelta;          // strides of delta
    element *dBC;             // (blocks of channels, b, l, g, 2 STATES)
    float *dparameters;       // (segments, b, g, (n + 2) d): dA (d, n), then ddelta_bias and dD (d)
    long long u_group, u_batch, u_position;
    long long delta_group, delta_batch, delta_position;
    long long BC_group, BC_batch, BC_position;
    long long batch, groups, channels, d_state, length, height, width;
    long long segment;  // positions of a segment, a multiple of CHUNK
    long long segments;
    long long lead;  // positions that the first segment has more than the others, a multiple of CHUNK
    long long four_directions;  // whether group g walks the map in direction g, or each walks the sequence
    long long keep_states;
};

// Every `stride`-th position from `position` on, or back, and the pixel that group g visits there: along the rows, the
// columns, and both reversed. The pixel means nothing beyond the sequence's ends.
struct Walk {
    int pixel, inner;  // position within the column that it lies in
    int step, inner_step, inner_length, wrap;

    DEVICE_MEMBER Walk(const ScanParams& p, int g, int position, int stride, bool backwards) {
        const bool columns = p.four_directions && (g & 1), reversed = p.four_directions && (g & 2);
        const int height = columns ? int(p.height) : 1, width = int(p.width), length = int(p.length);
        pixel = position;
        step = stride;
        inner = inner_step = 0;
        inner_length = height;
        wrap = 1 - length;  // from below a column to the top of the next
        if (columns) {
            inner = position % height;
            pixel = inner * width + position / height;
            inner_step = stride % height;
            step = inner_step * width + stride / height;
        }
        if (columns && backwards) inner = height - 1 - inner;
        if (reversed) pixel = length - 1 - pixel;
        if (reversed != backwards) {
            step = -step;
            wrap = -wrap;
        }
    }

    DEVICE_MEMBER void advance() {
        pixel += step;
        inner += inner_step;
        if (inner >= inner_length) {
            inner -= inner_length;
            pixel += wrap;
        }
    }
};

// Where a thread works.
//
// Shared memory answers a warp that asks for 8 bytes a thread at once, not in two turns, if threads i and i ^ 1 ask for
// the same or all i and i ^ 2 do; of 16 bytes the same holds for each half of the warp. So in the forward threads i and
// i ^ 1 have the same channel, i and i ^ 2 the same states. The backward has them in the order that its products need.
struct Place {
    int lane, warp, state_lane, channel_lane;
    int b, g;
    int block_channel;         // the block's first
    int slot;                  // the thread's, counted from there
    int channel;               // the thread's
    int segment, start, stop;  // positions

    template <int WARPS, bool FOR_PRODUCTS>
    static DEVICE_MEMBER Place find(const ScanParams& p) {
        Place at;
        at.lane = threadIdx.x % 32;
        at.warp = threadIdx.x / 32;
        at.state_lane = FOR_PRODUCTS ? at.lane / WARP_CHANNELS : at.lane % 2 + at.lane / 16 * 2;
        at.channel_lane = FOR_PRODUCTS ? at.lane % WARP_CHANNELS : at.lane / 2 % WARP_CHANNELS;
        at.b = blockIdx.y % int(p.batch);
        at.g = blockIdx.y / int(p.batch);
        at.block_channel = blockIdx.x * WARPS * WARP_CHANNELS;
        at.slot = at.warp * WARP_CHANNELS + at.channel_lane;
        at.channel = at.block_channel + at.slot;
        at.segment = blockIdx.z;  // the slowest, so that a longer first segment is begun before the others
        at.stop = int(p.lead) + (at.segment + 1) * int(p.segment);
        at.start = at.segment ? at.stop - int(p.segment) : 0;
        at.stop = min(at.stop, int(p.length));
        return at;
    }
};

DEVICE long long sequence(const ScanParams& p, const Place& at) { return (long long)at.g * p.batch + at.b; }

DEVICE Column<const element> u_column(const ScanParams& p, const Place& at, const element* u, int channel) {
    return {u, at.g * p.u_group + at.b * p.u_batch + channel, p.u_position};
}

template <typename T>
DEVICE Column<T> delta_column(const ScanParams& p, const Place& at, T* delta, int channel) {
    return {delta, at.g * p.delta_group + at.b * p.delta_batch + channel, p.delta_position};
}

DEVICE Column<const element> BC_column(const ScanParams& p, const Place& at, const element* matrices, int state) {
    return {matrices, at.g * p.BC_group + at.b * p.BC_batch + state, p.BC_position};
}

DEVICE Column<element> dense_column(const ScanParams& p, const Place& at, element* map, int channel) {
    return {map, sequence(p, at) * p.length * p.channels + channel, p.channels};
}

// This thread's first state of rows (d, n), and how many it has there.
DEVICE int first_state(const ScanParams& p, const Place& at) {
    return at.channel * int(p.d_state) + LANE_STATES * at.state_lane;
}

DEVICE int count_states(const ScanParams& p, const Place& at) {
    return at.channel < p.channels ? min(int(p.d_state) - LANE_STATES * at.state_lane, LANE_STATES) : 0;
}

DEVICE void load_states(const ScanParams& p, const Place& at, const float* rows, float (&states)[LANE_STATES]) {
    const int count = count_states(p, at);
#pragma unroll
    for (int s = 0; s < LANE_STATES; ++s) states[s] = s < count ? rows[first_state(p, at) + s] : 0.f;
}

DEVICE void store_states(const ScanParams& p, const Place& at, float* rows, const float (&states)[LANE_STATES]) {
    const int count = count_states(p, at);
#pragma unroll
    for (int s = 0; s < LANE_STATES; ++s)
        if (s < count) rows[first_state(p, at) + s] = states[s];
}

// The states kept for the backward, of this thread. Where none is surplus they can be moved at a time.
struct KeptStates {
    typedef element_vector<LANE_STATES> Vector;

    element* first;  // of chunk 0
    int stride;      // from chunk to chunk
    int count;

    DEVICE_MEMBER KeptStates(const ScanParams& p, const Place& at) {
        const int chunks = (int(p.length) + CHUNK - 1) / CHUNK;
        stride = int(p.channels) * int(p.d_state);
        count = count_states(p, at);
        first = in_registers(p.states + (at.b * p.groups + at.g) * chunks * stride + first_state(p, at));
    }

    DEVICE_MEMBER void store(int chunk, const float (&states)[LANE_STATES]) const {
        if (count <= 0) return;
        element* to = first + (long long)chunk * stride;
        Vector packed;
#pragma unroll
        for (int s = 0; s < LANE_STATES; ++s) packed.v[s] = from_float(states[s]);
        if constexpr (!SURPLUS_STATES) {
            *reinterpret_cast<Vector*>(to) = packed;
        } else {
#pragma unroll
            for (int s = 0; s < LANE_STATES; ++s)
                if (s < count) to[s] = packed.v[s];
        }
    }

    DEVICE_MEMBER void fetch(int chunk, Vector& to) const {
        const element* from = first + (long long)chunk * stride;
        if constexpr (!SURPLUS_STATES) {
            copy_async<sizeof(Vector)>(&to, from, count > 0);
        } else {
#pragma unroll
            for (int s = 0; s < LANE_STATES; ++s) to.v[s] = s < count ? from[s] : element(0);
        }
    }
};
