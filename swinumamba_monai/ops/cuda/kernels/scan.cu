// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The selective scan of several groups of channels, each in its own order over the same map, and its backward.
// Symbols as in ops/reference.py; groups g are the four directions of a map, or the groups of a sequence.
//
// A warp owns WARP_CHANNELS channels of one group and one sample and walks along the sequence. Of the (channel, state)
// pairs of a position, a thread holds a tile of CHANNELS x 4 in registers: STATE_LANES neighbouring threads share the
// states of a channel, CHANNEL_LANES groups of them the channels of the warp. So Δ, Δu and dy are loaded once for four
// states, B and C once for CHANNELS channels, and the sums over states (y, dΔ) and over channels (dB, dC) begin in
// registers and end with few exchanges between threads.
//
// What does not depend on the state is done once per position and channel, for a tile of positions at a time: loading in
// the group's order, bias, softplus, conversion to float32. The tile lies in shared memory that belongs to the warp
// alone. Positions beyond the end count as Δ = 0, which leaves every state as it is.
//
// A long sequence is cut into segments that run at the same time. Their start states come from a first pass that keeps
// nothing but the state each segment would end with if it started from zero, and from `scan_carry`, which goes through
// these. The backward knows the state at every CHUNK positions, recomputes it at every SUBTILE positions, and holds the
// decays and states of one subtile in registers. Nothing is ever divided by a decay.
//
// Defined by the compiling side, besides what common.cuh names: CHANNELS and STATE_LANES as above; MATRIX_VECTOR, the
// neighbours in B and C that a thread may load at a time; DELTA_SOFTPLUS, whether Δ is softplus of delta; TILE, the
// positions that a warp prepares at a time in the forward; CHUNK and SUBTILE; FORWARD_THREADS and BACKWARD_THREADS, the
// most of a block.

constexpr int CHANNEL_LANES = 32 / STATE_LANES;
constexpr int WARP_CHANNELS = CHANNEL_LANES * CHANNELS;
constexpr int STATES = 4 * STATE_LANES;  // at least d_state; surplus states have A = B = C = 0
constexpr float LN2 = 0.6931471806f;  // decays are 2^(Δ A), so their derivatives have this factor
constexpr int ROW_VECTORS = WARP_CHANNELS / VECTOR;          // that a position's channels of the warp are moved in
constexpr int MATRIX_VECTORS = 2 * STATES / MATRIX_VECTOR;  // and its B and C

static_assert(CHUNK % TILE == 0 && CHUNK % SUBTILE == 0 && CHUNK <= 32, "a lane knows the pixel of one position");
static_assert(CHANNELS <= STATE_LANES && STATE_LANES <= 4, "");
static_assert(32 % ROW_VECTORS == 0 && 32 % MATRIX_VECTORS == 0, "a lane moves the same columns of every position");

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
    float *dBC;               // (blocks of channels, b, l, g, 2 STATES)
    float *dparameters;       // (segments, b, g, (n + 2) d): dA (d, n), then ddelta_bias and dD (d)
    long long u_group, u_batch, u_position;
    long long delta_group, delta_batch, delta_position;
    long long BC_group, BC_batch, BC_position;
    long long batch, groups, channels, d_state, length, height, width;
    long long segment;  // positions of a segment, a multiple of CHUNK
    long long segments;
    long long four_directions;  // whether group g walks the map in direction g, or each walks the sequence
    long long keep_states;
};

// ---------------------------------------------------------------------------------------------- the order of a group

// The pixel that direction g visits at position p: along the rows, the columns, and both reversed.
DEVICE int visited_pixel(const ScanParams& p, int g, int position) {
    if (!p.four_directions) return position;
    if (g & 2) position = int(p.length) - 1 - position;
    const int height = int(p.height);
    return g & 1 ? (position % height) * int(p.width) + position / height : position;
}

// Where a warp works.
struct Place {
    int lane, state_lane, channel_lane;
    int b, g;
    int channel;                // the warp's first
    int moved;                  // the first that this thread moves
    int segment, start, stop;   // positions
};

DEVICE Place find_place(const ScanParams& p) {
    Place at;
    at.lane = threadIdx.x % 32;
    at.state_lane = at.lane % STATE_LANES;
    at.channel_lane = at.lane / STATE_LANES;
    at.b = blockIdx.z % int(p.batch);
    at.g = blockIdx.z / int(p.batch);
    at.channel = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * WARP_CHANNELS;
    at.moved = at.channel + at.lane % ROW_VECTORS * VECTOR;
    at.segment = blockIdx.y;
    at.start = at.segment * int(p.segment);
    at.stop = min(at.start + int(p.segment), int(p.length));
    return at;
}

DEVICE long long sequence(const ScanParams& p, const Place& at) { return (long long)at.g * p.batch + at.b; }

// The map of a warp's sample and group, and its rows of channels and of states; offsets within it fit 32 bits.
template <typename T>
struct Map {
    T* first;
    int position;  // stride

    DEVICE_MEMBER T* at(int pixel, int channel) const { return first + pixel * position + channel; }
};

DEVICE Map<const element> u_map(const ScanParams& p, const Place& at, const element* u) {
    return {u + at.g * p.u_group + at.b * p.u_batch, int(p.u_position)};
}

template <typename T>
DEVICE Map<T> delta_map(const ScanParams& p, const Place& at, T* delta) {
    return {delta + at.g * p.delta_group + at.b * p.delta_batch, int(p.delta_position)};
}

DEVICE Map<const element> BC_map(const ScanParams& p, const Place& at, const element* matrices) {
    return {matrices + at.g * p.BC_group + at.b * p.BC_batch, int(p.BC_position)};
}

DEVICE Map<element> dense_map(const ScanParams& p, const Place& at, element* rows) {
    return {rows + sequence(p, at) * p.length * p.channels, int(p.channels)};
}

DEVICE element* kept_states(const ScanParams& p, const Place& at, int chunk) {
    const int chunks = (int(p.length) + CHUNK - 1) / CHUNK;
    return p.states + ((at.b * p.groups + at.g) * chunks + chunk) * p.channels * p.d_state;
}

// (channel, state) pairs of this thread from, or to, rows (d, n)
template <typename T>
DEVICE void load_pairs(const ScanParams& p, const Place& at, const T* rows, float (&pairs)[CHANNELS][4]) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        const int channel = at.channel + at.channel_lane * CHANNELS + c;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            const int n = 4 * at.state_lane + s;
            pairs[c][s] = channel < p.channels && n < p.d_state ? to_float(rows[channel * int(p.d_state) + n]) : 0.f;
        }
    }
}

template <typename T>
DEVICE void store_pairs(const ScanParams& p, const Place& at, T* rows, const float (&pairs)[CHANNELS][4]) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        const int channel = at.channel + at.channel_lane * CHANNELS + c;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            const int n = 4 * at.state_lane + s;
            if (channel < p.channels && n < p.d_state) rows[channel * int(p.d_state) + n] = convert<T>(pairs[c][s]);
        }
    }
}

// ------------------------------------------------------------------------------------------- sums over threads

// Sum K values over M threads that are STRIDE lanes apart. Each step halves the values a thread is left with: it gives
// one half away and adds what it gets to the other, so a thread ends with K / M sums, or with one that it shares.
template <int K, int M, int STRIDE, int SIZE>
DEVICE void sum_over_lanes(float (&values)[SIZE], int lane) {
    if constexpr (M > 1) {
        constexpr int offset = M / 2 * STRIDE;
        if constexpr (K > 1) {
            const bool upper = lane & offset;
#pragma unroll
            for (int i = 0; i < K / 2; ++i) {
                const float given = upper ? values[i] : values[i + K / 2];
                const float kept = upper ? values[i + K / 2] : values[i];
                values[i] = kept + exchange(given, offset);
            }
            sum_over_lanes<K / 2, M / 2, STRIDE>(values, lane);
        } else {
            values[0] += exchange(values[0], offset);
            sum_over_lanes<1, M / 2, STRIDE>(values, lane);
        }
    }
}

// What a thread is left with of K values summed over M threads: `count` of them from `first` on.
template <int K, int M>
struct Left {
    static constexpr int count = K > M ? K / M : 1;
    static constexpr int sharers = M > K ? M / K : 1;
    static DEVICE_MEMBER int first(int index) { return index / sharers * count; }
    static DEVICE_MEMBER bool writes(int index) { return index % sharers == 0; }
};

// ------------------------------------------------------------------------------------------ tiles of positions

// Every POSITIONS-th row of channels in shared memory that this thread moves a vector of.
template <int POSITIONS, typename Use>
DEVICE void for_each_row(const Place& at, const Use& use) {
#pragma unroll
    for (int i = 0; i < POSITIONS * ROW_VECTORS / 32; ++i)
        use(i, i * (32 / ROW_VECTORS) + at.lane / ROW_VECTORS, at.lane % ROW_VECTORS * VECTOR);
}

// Bias and softplus of Δ for the channels that a thread moves.
struct Discretisation {
    float bias[VECTOR];
    float inside;  // 0 beyond the last channel

    DEVICE_MEMBER Discretisation(const ScanParams& p, const Place& at) : inside(at.moved < p.channels) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) bias[v] = inside ? p.delta_bias[at.g * p.channels + at.moved + v] : 0.f;
    }

    // Factors instead of conditions keep the elements free of branches, so that their latencies overlap.
    DEVICE_MEMBER float apply(element raw, int v, int pixel) const {
        const float step = to_float(raw) + bias[v];
        return (DELTA_SOFTPLUS ? softplus(step) : step) * (pixel < 0 ? 0.f : inside);
    }
};

// The columns of B or C that a thread moves, of one position after another.
struct MatrixColumns {
    Map<const element> map;
    int column;
    bool inside;

    DEVICE_MEMBER MatrixColumns(const ScanParams& p, const Place& at) {
        const int j = at.lane % MATRIX_VECTORS * MATRIX_VECTOR;
        column = j % STATES;
        inside = column < p.d_state;
        map = BC_map(p, at, j < STATES ? p.B : p.C);
    }

    DEVICE_MEMBER element_vector<MATRIX_VECTOR> load_row(int pixel) const {
        element_vector<MATRIX_VECTOR> row = {};
        if (pixel >= 0 && inside) row = load<MATRIX_VECTOR>(map.at(pixel, column));
        return row;
    }
};

// ------------------------------------------------------------------------------------------------------ forward

enum Pass {
    OUTPUT,        // y, and the states before each chunk
    END_STATES,    // what a segment started from zero ends with
    END_GRADIENTS  // the same for what flows backwards: decay_t dL/dh_t at its first position
};

// One tile of a warp on its way from memory, so that the next tile loads while this one is computed.
struct RawTile {
    elements delta[TILE * ROW_VECTORS / 32], inflow[TILE * ROW_VECTORS / 32];
    element_vector<MATRIX_VECTOR> BC[TILE * MATRIX_VECTORS / 32];
    int pixel;  // of position `lane` of the tile, -1 beyond the end

    template <Pass PASS>
    DEVICE_MEMBER void fetch(const ScanParams& p, const Place& at, const MatrixColumns& columns, int done) {
        const auto deltas = delta_map(p, at, p.delta);
        const auto inflows = u_map(p, at, PASS == END_GRADIENTS ? p.dy : p.u);
        const int position = done + at.lane;
        pixel = -1;
        if (at.lane < TILE && position < at.stop - at.start)
            pixel = visited_pixel(p, at.g, PASS == END_GRADIENTS ? at.stop - 1 - position : at.start + position);
        for_each_row<TILE>(at, [&](int i, int t, int) {
            const int pixel_t = from_lane(pixel, t);
            delta[i] = inflow[i] = {};
            if (pixel_t >= 0 && at.moved < p.channels) {
                delta[i] = load(deltas.at(pixel_t, at.moved));
                inflow[i] = load(inflows.at(pixel_t, at.moved));
            }
        });
#pragma unroll
        for (int i = 0; i < TILE * MATRIX_VECTORS / 32; ++i)
            BC[i] = columns.load_row(from_lane(pixel, (32 * i + at.lane) / MATRIX_VECTORS));
    }
};

// The same tile in shared memory, in float32. `inflow` is Δu, or dy for END_GRADIENTS.
struct Tile {
    float delta[TILE][WARP_CHANNELS], inflow[TILE][WARP_CHANNELS], BC[TILE * 2 * STATES];

    template <Pass PASS>
    DEVICE_MEMBER void prepare(const ScanParams& p, const Place& at, const Discretisation& step, const RawTile& raw) {
        for_each_row<TILE>(at, [&](int i, int t, int c) {
            const int pixel = from_lane(raw.pixel, t);
            float deltas[VECTOR], inflows[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                deltas[v] = step.apply(raw.delta[i].v[v], v, pixel);
                inflows[v] = to_float(raw.inflow[i].v[v]);
                if (PASS != END_GRADIENTS) inflows[v] *= deltas[v];
            }
            copy<VECTOR>(&delta[t][c], deltas);
            copy<VECTOR>(&inflow[t][c], inflows);
        });
#pragma unroll
        for (int i = 0; i < TILE * MATRIX_VECTORS / 32; ++i) {
            float values[MATRIX_VECTOR];
#pragma unroll
            for (int v = 0; v < MATRIX_VECTOR; ++v) values[v] = to_float(raw.BC[i].v[v]);
            copy<MATRIX_VECTOR>(&BC[(32 * i + at.lane) * MATRIX_VECTOR], values);
        }
    }
};

template <Pass PASS>
DEVICE void scan_segment(const ScanParams& p) {
    SHARED_MEMORY(shared);
    const Place at = find_place(p);
    if (at.channel >= p.channels) return;
    Tile& tile = reinterpret_cast<Tile*>(shared)[threadIdx.x / 32];
    const long long row = sequence(p, at) * p.segments + at.segment, pairs = p.channels * p.d_state;
    const int first_channel = at.channel_lane * CHANNELS;
    const auto out = dense_map(p, at, p.y);

    float A[CHANNELS][4], h[CHANNELS][4] = {}, steps[CHANNELS] = {};
    load_pairs(p, at, p.A + at.g * pairs, A);
    if (PASS == OUTPUT && at.segment > 0) load_pairs(p, at, p.carry + row * pairs, h);

    const Discretisation step(p, at);
    const MatrixColumns columns(p, at);
    RawTile raw;
    raw.fetch<PASS>(p, at, columns, 0);
    const int length = at.stop - at.start;
    for (int done = 0; done < length; done += TILE) {
        __syncwarp();
        tile.prepare<PASS>(p, at, step, raw);
        const int pixel = raw.pixel;
        __syncwarp();
        if (done + TILE < length) raw.fetch<PASS>(p, at, columns, done + TILE);
        if (PASS == OUTPUT && p.keep_states && done % CHUNK == 0)
            store_pairs(p, at, kept_states(p, at, (at.start + done) / CHUNK), h);
#pragma unroll 1
        for (int start = 0; start < TILE; start += SUBTILE) {
            float results[SUBTILE];
#pragma unroll
            for (int i = 0; i < SUBTILE; ++i) {
                const int t = start + i;
                const floats<CHANNELS> delta = read<CHANNELS>(&tile.delta[t][first_channel]);
                const floats<CHANNELS> inflow = read<CHANNELS>(&tile.inflow[t][first_channel]);
                const floats<4> B = read<4>(&tile.BC[t * 2 * STATES + 4 * at.state_lane]);
                const floats<4> C = read<4>(&tile.BC[t * 2 * STATES + STATES + 4 * at.state_lane]);
                float y[CHANNELS];
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    y[c] = 0.f;
#pragma unroll
                    for (int s = 0; s < 4; ++s) {
                        const float decay = exp2_fast(delta.v[c] * A[c][s]);
                        if (PASS == END_GRADIENTS)
                            h[c][s] = decay * fmaf(inflow.v[c], C.v[s], h[c][s]);
                        else
                            h[c][s] = fmaf(decay, h[c][s], inflow.v[c] * B.v[s]);
                        if (PASS == OUTPUT) y[c] = fmaf(C.v[s], h[c][s], y[c]);
                    }
                    if (PASS != OUTPUT) steps[c] += delta.v[c];
                }
                if (PASS == OUTPUT) sum_over_lanes<CHANNELS, STATE_LANES, 1>(y, at.lane);
                results[i] = y[0];
            }
            // y takes the place of Δu. It is stored for several positions at once: the compiler, which can't know that
            // nothing read later is overwritten, would begin no position before all stores of the one before it.
            if (PASS == OUTPUT) {
                __syncwarp();
#pragma unroll
                for (int i = 0; i < SUBTILE; ++i)
                    tile.inflow[start + i][first_channel + Left<CHANNELS, STATE_LANES>::first(at.state_lane)] = results[i];
            }
        }
        if (PASS == OUTPUT) {
            __syncwarp();
            for_each_row<TILE>(at, [&](int, int t, int c) {
                const int pixel_t = from_lane(pixel, t);
                if (pixel_t >= 0 && at.moved < p.channels)
                    store(out.at(pixel_t, at.moved), read<VECTOR>(&tile.inflow[t][c]).v);
            });
        }
    }
    if (PASS != OUTPUT) {
        store_pairs(p, at, p.carry + row * pairs, h);
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            const int channel = at.channel + first_channel + c;
            if (at.state_lane == 0 && channel < p.channels) p.decay[row * p.channels + channel] = steps[c];
        }
    }
}

KERNEL LAUNCH_BOUNDS(FORWARD_THREADS, 512 / FORWARD_THREADS) scan_forward(const GRID_CONSTANT ScanParams p) { scan_segment<OUTPUT>(p); }
KERNEL LAUNCH_BOUNDS(FORWARD_THREADS, 512 / FORWARD_THREADS) scan_end_states(const GRID_CONSTANT ScanParams p) {
    scan_segment<END_STATES>(p);
}
KERNEL LAUNCH_BOUNDS(FORWARD_THREADS, 512 / FORWARD_THREADS) scan_end_gradients(const GRID_CONSTANT ScanParams p) {
    scan_segment<END_GRADIENTS>(p);
}

// Replace what each segment ends with by what it starts with; a thread has one (channel, state) pair.
DEVICE void chain_segments(const ScanParams& p, bool backwards) {
    const long long pairs = p.channels * p.d_state, e = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= p.groups * p.batch * pairs) return;
    const long long sequence = e / pairs, pair = e % pairs, g = sequence / p.batch;
    const float A = p.A[g * pairs + pair];
    float start = 0.f;
    for (int i = 0; i < p.segments; ++i) {
        const long long row = sequence * p.segments + (backwards ? p.segments - 1 - i : i);
        float& carry = p.carry[row * pairs + pair];
        const float end = fmaf(exp2_fast(A * p.decay[row * p.channels + pair / p.d_state]), start, carry);
        carry = start;
        start = end;
    }
}

KERNEL scan_chain_states(const GRID_CONSTANT ScanParams p) { chain_segments(p, false); }
KERNEL scan_chain_gradients(const GRID_CONSTANT ScanParams p) { chain_segments(p, true); }

// ----------------------------------------------------------------------------------------------------- backward

// A chunk of a warp. The gradients of Δ and u take the place of Δ and u.
struct WarpChunk {
    float delta[CHUNK][WARP_CHANNELS], u[CHUNK][WARP_CHANNELS], dy[CHUNK][WARP_CHANNELS];
    float states[CHUNK / SUBTILE][CHANNELS][32][4];  // before each subtile
    float dBC[CHUNK * 2 * STATES];                   // the warp's share
};

// (channel, state) pairs of a thread at each position of a subtile, recomputed from the state before it.
struct Subtile {
    float h[SUBTILE + 1][CHANNELS][4], decay[SUBTILE][CHANNELS][4];

    // Go from h[0] on; with KEEP fill the arrays, without leave in h[0] the state after the subtile.
    template <bool KEEP>
    DEVICE_MEMBER void advance(const Place& at, const WarpChunk& mine, const float* BC, const float (&A)[CHANNELS][4],
                               int first) {
#pragma unroll
        for (int t = 0; t < SUBTILE; ++t) {
            const floats<4> B = read<4>(&BC[(first + t) * 2 * STATES + 4 * at.state_lane]);
            const floats<CHANNELS> delta = read<CHANNELS>(&mine.delta[first + t][at.channel_lane * CHANNELS]);
            const floats<CHANNELS> u = read<CHANNELS>(&mine.u[first + t][at.channel_lane * CHANNELS]);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                const float inflow = delta.v[c] * u.v[c];
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    const float a = exp2_fast(delta.v[c] * A[c][s]);
                    if (KEEP) decay[t][c][s] = a;
                    h[KEEP ? t + 1 : 0][c][s] = fmaf(a, h[KEEP ? t : 0][c][s], inflow * B.v[s]);
                }
            }
        }
    }
};

KERNEL LAUNCH_BOUNDS(BACKWARD_THREADS, 2) scan_backward(const GRID_CONSTANT ScanParams p) {
    SHARED_MEMORY(BC);  // (CHUNK, 2 STATES), of all warps; then their chunks
    WarpChunk* warp_chunks = reinterpret_cast<WarpChunk*>(BC + CHUNK * 2 * STATES);
    const Place at = find_place(p);
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
    WarpChunk& mine = warp_chunks[warp];
    const int first_channel = at.channel_lane * CHANNELS;
    const long long pairs = p.channels * p.d_state;
    const auto us = u_map(p, at, p.u), dys = u_map(p, at, p.dy);
    const auto deltas = delta_map(p, at, p.delta);
    const auto dus = dense_map(p, at, p.du), ddeltas = delta_map(p, at, p.ddelta);

    float A[CHANNELS][4], dA[CHANNELS][4] = {}, carry[CHANNELS][4] = {};  // carry: decay_{t+1} dL/dh_{t+1}
    float dbias[VECTOR] = {}, dD[VECTOR] = {};
    load_pairs(p, at, p.A + at.g * pairs, A);
    if (p.segments > 1) load_pairs(p, at, p.carry + (sequence(p, at) * p.segments + at.segment) * pairs, carry);
    const Discretisation step(p, at);
    const MatrixColumns columns(p, at);

    for (int chunk = (at.stop - 1) / CHUNK; chunk >= at.start / CHUNK; --chunk) {
        const int first = chunk * CHUNK;
        const int pixel = first + at.lane < at.stop ? visited_pixel(p, at.g, first + at.lane) : -1;
        for (int e = threadIdx.x; e < CHUNK * MATRIX_VECTORS; e += blockDim.x) {
            const auto raw = columns.load_row(from_lane(pixel, e / MATRIX_VECTORS));
#pragma unroll
            for (int v = 0; v < MATRIX_VECTOR; ++v) BC[e * MATRIX_VECTOR + v] = to_float(raw.v[v]);
        }
        for_each_row<CHUNK>(at, [&](int, int t, int c) {
            const int pixel_t = from_lane(pixel, t);
            elements raw_delta = {}, raw_u = {}, raw_dy = {};
            if (pixel_t >= 0 && at.moved < p.channels) {
                raw_delta = load(deltas.at(pixel_t, at.moved));
                raw_u = load(us.at(pixel_t, at.moved));
                raw_dy = load(dys.at(pixel_t, at.moved));
            }
            float delta[VECTOR], u[VECTOR], dy[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                delta[v] = step.apply(raw_delta.v[v], v, pixel_t);
                u[v] = to_float(raw_u.v[v]);
                dy[v] = to_float(raw_dy.v[v]);
                dD[v] = fmaf(dy[v], u[v], dD[v]);
            }
            copy<VECTOR>(&mine.delta[t][c], delta);
            copy<VECTOR>(&mine.u[t][c], u);
            copy<VECTOR>(&mine.dy[t][c], dy);
        });
        Subtile tile;
        load_pairs(p, at, kept_states(p, at, chunk), tile.h[0]);
        __syncthreads();

#pragma unroll 1
        for (int i = 0; i < CHUNK / SUBTILE; ++i) {
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) copy<4>(mine.states[i][c][at.lane], tile.h[0][c]);
            if (i + 1 < CHUNK / SUBTILE) tile.advance<false>(at, mine, BC, A, i * SUBTILE);
        }

#pragma unroll 1
        for (int i = CHUNK / SUBTILE - 1; i >= 0; --i) {
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                const floats<4> state = read<4>(mine.states[i][c][at.lane]);
#pragma unroll
                for (int s = 0; s < 4; ++s) tile.h[0][c][s] = state.v[s];
            }
            tile.advance<true>(at, mine, BC, A, i * SUBTILE);

            using Mine = Left<8, CHANNEL_LANES>;
            float sums[SUBTILE][2][CHANNELS];  // over this thread's states: dL/d(Δu), and the decays' share of dL/dΔ
            float dBC[SUBTILE][Mine::count];
#pragma unroll
            for (int t = SUBTILE - 1; t >= 0; --t) {
                const int position = i * SUBTILE + t;
                const floats<4> B = read<4>(&BC[position * 2 * STATES + 4 * at.state_lane]);
                const floats<4> C = read<4>(&BC[position * 2 * STATES + STATES + 4 * at.state_lane]);
                const floats<CHANNELS> delta = read<CHANNELS>(&mine.delta[position][first_channel]);
                const floats<CHANNELS> u = read<CHANNELS>(&mine.u[position][first_channel]);
                const floats<CHANNELS> dy = read<CHANNELS>(&mine.dy[position][first_channel]);
                float dmatrices[8] = {};  // dB and dC of this thread's states
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    const float inflow = delta.v[c] * u.v[c];
                    sums[t][0][c] = sums[t][1][c] = 0.f;
#pragma unroll
                    for (int s = 0; s < 4; ++s) {
                        const float dh = fmaf(dy.v[c], C.v[s], carry[c][s]);
                        dmatrices[s] = fmaf(dh, inflow, dmatrices[s]);
                        dmatrices[4 + s] = fmaf(dy.v[c], tile.h[t + 1][c][s], dmatrices[4 + s]);
                        sums[t][0][c] = fmaf(dh, B.v[s], sums[t][0][c]);
                        carry[c][s] = tile.decay[t][c][s] * dh;
                        const float dexponent = carry[c][s] * tile.h[t][c][s];
                        sums[t][1][c] = fmaf(dexponent, A[c][s], sums[t][1][c]);
                        dA[c][s] = fmaf(dexponent, delta.v[c], dA[c][s]);
                    }
                }
                sum_over_lanes<8, CHANNEL_LANES, STATE_LANES>(dmatrices, at.lane);
#pragma unroll
                for (int j = 0; j < Mine::count; ++j) dBC[t][j] = dmatrices[j];
            }
            // Stored for several positions at once, as y in the forward.
            if (Mine::writes(at.channel_lane)) {
#pragma unroll
                for (int t = 0; t < SUBTILE; ++t)
#pragma unroll
                    for (int j = 0; j < Mine::count; ++j) {
                        const int k = Mine::first(at.channel_lane) + j;  // 0 to 3: dB, 4 to 7: dC
                        mine.dBC[(i * SUBTILE + t) * 2 * STATES + k / 4 * STATES + 4 * at.state_lane + k % 4] = dBC[t][j];
                    }
            }
            // Each of the threads that share a channel finishes some of the subtile's positions.
            constexpr int KEPT = SUBTILE / STATE_LANES;
            sum_over_lanes<SUBTILE * 2 * CHANNELS, STATE_LANES, 1>(
                reinterpret_cast<float(&)[SUBTILE * 2 * CHANNELS]>(sums), at.lane);
            __syncwarp();
#pragma unroll
            for (int t = 0; t < KEPT; ++t) {
                const int position = i * SUBTILE + at.state_lane * KEPT + t;
                const floats<CHANNELS> delta = read<CHANNELS>(&mine.delta[position][first_channel]);
                const floats<CHANNELS> u = read<CHANNELS>(&mine.u[position][first_channel]);
                float ddelta[CHANNELS], du[CHANNELS];
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    ddelta[c] = fmaf(sums[t][0][c], u.v[c], LN2 * sums[t][1][c]);
                    if (DELTA_SOFTPLUS) ddelta[c] *= softplus_slope(delta.v[c]);
                    du[c] = sums[t][0][c] * delta.v[c];
                }
                copy<CHANNELS>(&mine.delta[position][first_channel], ddelta);
                copy<CHANNELS>(&mine.u[position][first_channel], du);
            }
        }

        __syncthreads();
        for_each_row<CHUNK>(at, [&](int, int t, int c) {
            const int pixel_t = from_lane(pixel, t);
            if (pixel_t >= 0 && at.moved < p.channels) {
                const floats<VECTOR> ddelta = read<VECTOR>(&mine.delta[t][c]);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) dbias[v] += ddelta.v[v];
                store(ddeltas.at(pixel_t, at.moved), ddelta.v);
                store(dus.at(pixel_t, at.moved), read<VECTOR>(&mine.u[t][c]).v);
            }
        });
        for (int e = threadIdx.x; e < CHUNK * STATES / 2; e += blockDim.x) {
            const int pixel_t = from_lane(pixel, e / (STATES / 2));
            float sums[4] = {};
            for (int w = 0; w < warps; ++w) {
                const floats<4> share = read<4>(&warp_chunks[w].dBC[4 * e]);
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[j] += share.v[j];
            }
            const long long row = (blockIdx.x * p.batch + at.b) * p.length + pixel_t;
            if (pixel_t >= 0) copy<4>(p.dBC + (row * p.groups + at.g) * 2 * STATES + 4 * e % (2 * STATES), sums);
        }
        __syncthreads();
    }

    const long long part = ((long long)at.segment * p.batch + at.b) * p.groups + at.g;
    float* dparameters = p.dparameters + part * (pairs + 2 * p.channels);
#pragma unroll
    for (int i = 0; i < CHANNELS * 4; ++i) dA[i / 4][i % 4] *= LN2;
    store_pairs(p, at, dparameters, dA);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
#pragma unroll
        for (int offset = 16; offset >= ROW_VECTORS; offset /= 2) {
            dbias[v] += exchange(dbias[v], offset);
            dD[v] += exchange(dD[v], offset);
        }
        if (at.lane < ROW_VECTORS && at.moved < p.channels) {
            dparameters[pairs + at.moved + v] = dbias[v];
            dparameters[pairs + p.channels + at.moved + v] = dD[v];
        }
    }
}
