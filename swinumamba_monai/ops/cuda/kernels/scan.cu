// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The selective scan of several groups of channels, each in its own order over the same map, and its backward.
// Symbols as in ops/reference.py; groups g are the four directions of a map, or the groups of a sequence.
//
// For channels with two states and more; scan_one.cu is for those with one. A block owns some channels of one group and
// one sample and walks along the sequence; a thread holds LANE_STATES states of one channel in registers, STATE_LANES =
// 4 threads of a warp hold all of them. How many threads there are is given by the work (batch, groups, channels,
// states), and is what an H100 has too many places for: with four states a thread, the first stage of a network has
// three warps for each scheduler. So what is done per state is done once, and what is done per position is kept short.
// The next limit is how much shared memory can answer; see `Place`.
//
// What does not depend on the state is done once per position and channel, for a tile of positions at a time. The
// numbers of a tile travel from memory to shared memory by themselves (`copy_async`) while the tile before is computed.
// The thread that ordered them takes them from there, without a barrier: it adds the bias, takes the softplus, converts
// to float32, and puts the results where the threads of all states read them. B and C are shared by the block. Which
// pixel a position is costs additions, no division (`Walk`). Positions beyond the end count as Δ = 0, which leaves
// every state as it is.
//
// Sums over states meet in shared memory in the forward (y): each thread leaves its part, and whoever stores the result
// adds them up; in the backward (dΔ, du) they go from thread to thread. Sums over channels (dB, dC) are products of
// small matrices, states × channels times channels × positions, and run on the matrix units; see `Products`. All of
// this has a fixed order.
//
// A long sequence is cut into segments that run at the same time. Their start states come from a first pass that keeps
// nothing but the state each segment would end with if it started from zero, and from `scan_chain_*`, which goes
// through these. Where some multiprocessors would have a block more than the others, the backward cuts off a short
// segment at the end, which only the others take. The backward knows the state at every CHUNK positions, recomputes it
// at every SUBTILE positions, and holds the decays and states of one subtile in registers. Nothing is ever divided by a
// decay.
//
// Defined by the compiling side, besides what common.cuh names: LANE_STATES and STATE_LANES as above; SURPLUS_STATES,
// whether these are more than a channel has; MATRIX_VECTOR, the neighbours in B and C that a thread may load at a time;
// DELTA_SOFTPLUS, whether Δ is softplus of delta; TILE, the positions that a block prepares at a time in the forward;
// STAGES, the tiles that are on their way; CHUNK and SUBTILE;
// UNROLLED, the positions of the forward that the compiler sees at a time; FORWARD_WARPS and BACKWARD_WARPS of a block;
// FORWARD_BLOCKS and BACKWARD_BLOCKS, that a multiprocessor shall have room for; FORWARD_BYTES and BACKWARD_BYTES, the
// shared memory of a block.

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

// ---------------------------------------------------------------------------------------------- the order of a group

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

// ------------------------------------------------------------------------------------- what a thread moves of a tile

DEVICE constexpr int power_of_two_up_to(int n) { return n < 2 ? 1 : 2 * power_of_two_up_to(n / 2); }

// Of POSITIONS rows of a block's channels, the vectors that a thread moves: COUNT of them, all in the same columns.
template <int WARPS, int POSITIONS>
struct ChannelRows {
    static constexpr int THREADS = 32 * WARPS, CHANNELS = WARPS * WARP_CHANNELS;
    static constexpr int VECTORS = CHANNELS / VECTOR, STEP = THREADS / VECTORS, COUNT = POSITIONS / STEP;
    static_assert(POSITIONS % STEP == 0, "");
    typedef elements Slots[COUNT][THREADS];  // of shared memory, each used by one thread alone

    int row, column, channel;
    bool inside;
    int rows;  // that are left from the thread's first on; 0 beyond the last channel

    DEVICE_MEMBER ChannelRows(const ScanParams& p, const Place& at, int length) {
        const int thread = WARPS == 1 ? at.lane : threadIdx.x;
        row = thread / VECTORS;
        column = thread % VECTORS * VECTOR;
        channel = at.block_channel + column;
        inside = channel < int(p.channels);
        rows = inside ? length - row : 0;
    }
};

// The same for rows of B and C side by side. Threads that no row is left for move nothing.
template <int WARPS, int POSITIONS>
struct MatrixRows {
    static constexpr int THREADS = 32 * WARPS, FITTING = power_of_two_up_to(THREADS / MATRIX_VECTORS);
    static constexpr int STEP = FITTING < POSITIONS ? FITTING : POSITIONS, COUNT = POSITIONS / STEP;
    typedef element_vector<MATRIX_VECTOR> Slots[COUNT][THREADS];

    static constexpr bool ALL = THREADS / MATRIX_VECTORS == STEP;  // threads have a row

    int row, column;
    int rows;  // that are left from the thread's first on
    Column<const element> source;

    DEVICE_MEMBER MatrixRows(const ScanParams& p, const Place& at, int length)
        : row(threadIdx.x / MATRIX_VECTORS),
          column(threadIdx.x % MATRIX_VECTORS * MATRIX_VECTOR),
          rows((ALL || row < STEP) && column % STATES < int(p.d_state) ? length - row : 0),
          source(BC_column(p, at, column < STATES ? p.B : p.C, column % STATES)) {}

    // Order row i of a tile that begins at position `first`.
    DEVICE_MEMBER void fetch(Slots& slots, int i, int first, int pixel) const {
        copy_async<sizeof(slots[0][0])>(&slots[i][threadIdx.x], source.at(pixel), first + i * STEP < rows);
    }

    DEVICE_MEMBER void convert_to(float (*rows)[2 * STATES], const Slots& slots) const {
        if (!ALL && row >= STEP) return;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            float values[MATRIX_VECTOR];
            to_floats(slots[i][threadIdx.x], values);
            copy<MATRIX_VECTOR>(&rows[i * STEP + row][column], values);
        }
    }
};

// Bias and softplus of Δ for the channels that a thread moves.
struct Discretisation {
    float bias[VECTOR];

    DEVICE_MEMBER Discretisation(const ScanParams& p, const Place& at, int channel, bool inside) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) bias[v] = inside ? p.delta_bias[at.g * p.channels + channel + v] : 0.f;
    }

    // A factor (0 beyond the ends, else 1) in place of a condition keeps the elements free of branches, so that their
    // latencies overlap.
    DEVICE_MEMBER float apply(float raw, int v, float factor) const {
        const float step = raw + bias[v];
        return (DELTA_SOFTPLUS ? softplus(step) : step) * factor;
    }
};

// ------------------------------------------------------------------------------------------------------ forward

enum Pass {
    OUTPUT,        // y, and the states before each chunk
    END_STATES,    // what a segment started from zero ends with
    END_GRADIENTS  // the same for what flows backwards: decay_t dL/dh_t at its first position
};

typedef ChannelRows<FORWARD_WARPS, TILE> ForwardRows;
typedef MatrixRows<FORWARD_WARPS, TILE> ForwardMatrices;

// Two tiles take turns: while one is read, the next is prepared. `inflow` is Δu, or dy for END_GRADIENTS.
struct ForwardMemory {
    float steps[2][TILE][ForwardRows::CHANNELS][2];  // Δ and inflow
    float BC[2][TILE][2 * STATES];
    float parts[FORWARD_WARPS][TILE][32 + 8];  // of y, of each thread; 8 more keep positions in different banks
    ForwardRows::Slots delta[STAGES], inflow[STAGES];
    ForwardMatrices::Slots matrices[STAGES];
};

static_assert(sizeof(ForwardMemory) == FORWARD_BYTES, "scan_layout.py counts otherwise");

template <Pass PASS>
DEVICE void scan_segment(const ScanParams& p) {
    SHARED_MEMORY(forward_memory);
    ForwardMemory& memory = *reinterpret_cast<ForwardMemory*>(forward_memory);
    constexpr bool BACKWARDS = PASS == END_GRADIENTS;
    const Place at = Place::find<FORWARD_WARPS, false>(p);
    if (PASS != OUTPUT && at.segment == (BACKWARDS ? 0 : p.segments - 1)) return;  // nothing begins with how it ends
    const int length = at.stop - at.start, origin = BACKWARDS ? at.stop - 1 : at.start;
    const long long row = sequence(p, at) * p.segments + at.segment, pairs = p.channels * p.d_state;

    const ForwardRows mine(p, at, length);
    const ForwardMatrices matrices(p, at, length);
    const Discretisation discretisation(p, at, mine.channel, mine.inside);
    const auto deltas = delta_column(p, at, p.delta, mine.channel);
    const auto inflows = u_column(p, at, BACKWARDS ? p.dy : p.u, mine.channel);
    const int sign = BACKWARDS ? -1 : 1;
    Walk walk(p, at.g, origin + sign * mine.row, ForwardRows::STEP, BACKWARDS);
    Walk matrix_walk(p, at.g, origin + sign * matrices.row, ForwardMatrices::STEP, BACKWARDS);
    constexpr bool SAME_ROWS = ForwardRows::VECTORS == MATRIX_VECTORS && ForwardRows::STEP == ForwardMatrices::STEP;
    auto fetch = [&](int first, int stage) {
#pragma unroll
        for (int i = 0; i < ForwardRows::COUNT; ++i) {
            const bool wanted = first + i * ForwardRows::STEP < mine.rows;
            copy_async<sizeof(elements)>(&memory.delta[stage][i][threadIdx.x], deltas.at(walk.pixel), wanted);
            copy_async<sizeof(elements)>(&memory.inflow[stage][i][threadIdx.x], inflows.at(walk.pixel), wanted);
            if (SAME_ROWS) matrices.fetch(memory.matrices[stage], i, first, walk.pixel);
            walk.advance();
        }
        if (!SAME_ROWS) {
#pragma unroll
            for (int i = 0; i < ForwardMatrices::COUNT; ++i) {
                matrices.fetch(memory.matrices[stage], i, first, matrix_walk.pixel);
                matrix_walk.advance();
            }
        }
        end_copies();
    };
#pragma unroll
    for (int stage = 0; stage < STAGES; ++stage) fetch(stage * TILE, stage);

    float A[LANE_STATES], h[LANE_STATES] = {}, sum = 0.f;
    load_states(p, at, p.A + at.g * pairs, A);
    if (PASS == OUTPUT && at.segment > 0) load_states(p, at, p.carry + row * pairs, h);

    // y: vectors of the warp's own channels
    typedef ChannelRows<1, TILE> StoredRows;
    Place warp_at = at;
    warp_at.block_channel += at.warp * WARP_CHANNELS;
    const StoredRows stored(p, warp_at, length);
    const auto out = dense_column(p, at, p.y, stored.channel);
    const KeptStates kept(p, at);
    Walk stored_walk(p, at.g, origin + stored.row, StoredRows::STEP, false);
    const bool keeps = p.keep_states;
    auto& parts = memory.parts[at.warp];
    const int own_part = at.state_lane * WARP_CHANNELS + at.channel_lane;

    int stage = 0;
    for (int first = 0, turn = 0; first < length; first += TILE, turn ^= 1) {
        wait_for_copies<STAGES - 1>();
#pragma unroll
        for (int i = 0; i < ForwardRows::COUNT; ++i) {
            const int t = i * ForwardRows::STEP + mine.row;
            const float factor = first + i * ForwardRows::STEP < mine.rows ? 1.f : 0.f;
            float raw[VECTOR], inflow[VECTOR], steps[2 * VECTOR];
            to_floats(memory.delta[stage][i][threadIdx.x], raw);
            to_floats(memory.inflow[stage][i][threadIdx.x], inflow);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                steps[2 * v] = discretisation.apply(raw[v], v, factor);
                steps[2 * v + 1] = BACKWARDS ? inflow[v] : steps[2 * v] * inflow[v];
            }
#pragma unroll
            for (int v = 0; v < VECTOR; v += 2)
                copy<VECTOR == 1 ? 2 : 4>(memory.steps[turn][t][mine.column + v], steps + 2 * v);
        }
        matrices.convert_to(memory.BC[turn], memory.matrices[stage]);
        fetch(first + STAGES * TILE, stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        // Now the tile is there for all, and nobody reads the one before, whose place the next will take.
        __syncthreads();

        if (PASS == OUTPUT && keeps && first % CHUNK == 0) kept.store((at.start + first) / CHUNK, h);
#pragma unroll 1
        for (int begin = 0; begin < TILE; begin += UNROLLED) {
            float y[UNROLLED];
#pragma unroll
            for (int i = 0; i < UNROLLED; ++i) {
                const floats<2> step = read<2>(memory.steps[turn][begin + i][at.slot]);
                const float* BC = memory.BC[turn][begin + i] + LANE_STATES * at.state_lane;
                const floats<LANE_STATES> B = read<LANE_STATES>(BC), C = read<LANE_STATES>(BC + STATES);
                y[i] = 0.f;
#pragma unroll
                for (int s = 0; s < LANE_STATES; ++s) {
                    const float decay = exp2_fast(step.v[0] * A[s]);
                    if (BACKWARDS)
                        h[s] = decay * fmaf(step.v[1], C.v[s], h[s]);
                    else
                        h[s] = fmaf(decay, h[s], step.v[1] * B.v[s]);
                    if (PASS == OUTPUT) y[i] = fmaf(C.v[s], h[s], y[i]);
                }
                if (PASS != OUTPUT) sum += step.v[0];
            }
            // Stored for several positions at once: the compiler, which can't know that nothing read later is
            // overwritten, would begin no position before the store of the one before it.
            if (PASS == OUTPUT) {
#pragma unroll
                for (int i = 0; i < UNROLLED; ++i)
                    parts[begin + i][own_part] = y[i];
            }
        }
        if (PASS == OUTPUT) {
            __syncwarp();
#pragma unroll
            for (int i = 0; i < StoredRows::COUNT; ++i) {
                float y[VECTOR] = {};
#pragma unroll
                for (int lane = 0; lane < STATE_LANES; ++lane) {
                    const float* part = &parts[i * StoredRows::STEP + stored.row][lane * WARP_CHANNELS + stored.column];
                    const floats<VECTOR> some = read<VECTOR>(part);
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) y[v] = lane == 0 ? some.v[v] : y[v] + some.v[v];
                }
                if (first + i * StoredRows::STEP < stored.rows) store(out.at(stored_walk.pixel), y);
                stored_walk.advance();
            }
            __syncwarp();
        }
    }
    if (PASS != OUTPUT) {
        store_states(p, at, p.carry + row * pairs, h);
        if (at.state_lane == 0 && at.channel < p.channels) p.decay[row * p.channels + at.channel] = sum;
    }
}

KERNEL LAUNCH_BOUNDS(32 * FORWARD_WARPS, FORWARD_BLOCKS) scan_forward(const GRID_CONSTANT ScanParams p) {
    scan_segment<OUTPUT>(p);
}
KERNEL LAUNCH_BOUNDS(32 * FORWARD_WARPS, FORWARD_BLOCKS) scan_end_states(const GRID_CONSTANT ScanParams p) {
    scan_segment<END_STATES>(p);
}
KERNEL LAUNCH_BOUNDS(32 * FORWARD_WARPS, FORWARD_BLOCKS) scan_end_gradients(const GRID_CONSTANT ScanParams p) {
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

// ----------------------------------------------------------------------------- sums over channels, on the matrix units

// dB[t, n] = Σ_c dh[t, c, n] Δu[t, c] and dC[t, n] = Σ_c h[t, c, n] dy[t, c] over the channels of a warp. For one
// position that is a matrix (states × channels) times a vector, and the units multiply matrices; so the vectors of
// STATE_LANES positions stand side by side in a matrix that is zero elsewhere, and the products of the positions add up
// in one result.
//
// The units' layouts (m16n8k8) fit to how a warp holds its states. With q = lane % 4 and r = lane / 4, a thread gives
// the left matrix elements of rows r and r + 8, columns q and q + 4; the right one those of rows q and q + 4, column r;
// and it gets rows r and r + 8, columns 2q and 2q + 1 of the result. Channels are q + 4 β; r holds the state lane and
// β. Hence
//   left    row r: the thread's first state, row r + 8: its second; column q: one position, column q + 4: the next
//   right   column (position, β): the vector's channels q + 4 β, held by the very thread whose place that is
//   result  of row r the columns with the same β; the others mix channels, and are left out
// and the sum over β follows.
//
// The units read 11 significant bits of a float32 (tf32) and add in float32. That is as fine as float16 and finer than
// bfloat16, so one product does for maps of these types. For float32 maps each factor is cut in two, and three products
// are taken, which leaves out 2^-21.
constexpr int TOGETHER = 2;                      // positions in one product
constexpr int PRODUCTS = (LANE_STATES + 1) / 2;  // of one or two of a thread's states

struct Products {
    float result[PRODUCTS][4];

    DEVICE_MEMBER void add(const float (&left)[TOGETHER][LANE_STATES], const float (&right)[TOGETHER]) {
        if constexpr (ELEMENT != 0) {
            multiply(left, right);
        } else {
            float coarse[TOGETHER][LANE_STATES], rest[TOGETHER][LANE_STATES];
            float coarse_right[TOGETHER], rest_right[TOGETHER];
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j) {
                coarse_right[j] = cut_to_tf32(right[j]);
                rest_right[j] = right[j] - coarse_right[j];
#pragma unroll
                for (int s = 0; s < LANE_STATES; ++s) {
                    coarse[j][s] = cut_to_tf32(left[j][s]);
                    rest[j][s] = left[j][s] - coarse[j][s];
                }
            }
            multiply(coarse, coarse_right);
            multiply(rest, coarse_right);
            multiply(coarse, rest_right);
        }
    }

    DEVICE_MEMBER void multiply(const float (&left)[TOGETHER][LANE_STATES], const float (&right)[TOGETHER]) {
        constexpr bool TWO_STATES = LANE_STATES > 1;
#pragma unroll
        for (int m = 0; m < PRODUCTS; ++m)
            multiply_add(
                result[m], left[0][2 * m], TWO_STATES ? left[0][2 * m + TWO_STATES] : 0.f, left[1][2 * m],
                TWO_STATES ? left[1][2 * m + TWO_STATES] : 0.f, right[0], right[1]);
    }
};

// Where the share of a warp in dB (matrix 0) or dC (1) of a position begins, for the states of one state lane. Threads
// that write neighbouring positions find different banks.
DEVICE int share_column(int position, int matrix, int state_lane) {
    return ((matrix * STATE_LANES + state_lane) ^ (position & 3)) * LANE_STATES;
}

// Columns 2q and 2q + 1 are one position's, β = 0 and 1. Threads with β = 0 finish dB, the others dC: each gives away
// what it has of the other matrix.
DEVICE int parity(const Place& at) { return at.lane / 4 % 2; }

// Where a thread leaves its sums of the first STATE_LANES positions.
DEVICE float* own_share(const Place& at, float (&shares)[CHUNK][2 * STATES]) {
    const int q = at.lane % 4;
    return &shares[q][share_column(q, parity(at), at.state_lane)];
}

DEVICE void write_shares(const Place& at, const Products& dB, const Products& dC, float* share) {
    float sums[LANE_STATES];
#pragma unroll
    for (int s = 0; s < LANE_STATES; ++s) {
        const float *b = dB.result[s / 2] + s % 2 * 2, *c = dC.result[s / 2] + s % 2 * 2;
        const float kept = parity(at) ? c[1] : b[0], given = parity(at) ? b[1] : c[0];
        sums[s] = kept + exchange(given, 4);
    }
    copy<LANE_STATES>(share, sums);
}

// ----------------------------------------------------------------------------------------------------- backward

typedef ChannelRows<BACKWARD_WARPS, CHUNK> BackwardRows;
typedef MatrixRows<BACKWARD_WARPS, CHUNK> BackwardMatrices;

// What is known of a position: Δ, Δu, dy, u of all channels; then dΔ and du in place of the first two.
enum Value { DELTA, INFLOW, DY, U, VALUES };

struct BackwardMemory {
    float values[CHUNK][VALUES * BackwardRows::CHANNELS + 8];  // 8 more keep positions in different banks
    float BC[CHUNK][2 * STATES];
    float starts[BACKWARD_WARPS][CHUNK / SUBTILE][32][LANE_STATES];  // states of a thread before each subtile
    float shares[BACKWARD_WARPS][CHUNK][2 * STATES];
    BackwardRows::Slots delta, u, dy;
    BackwardMatrices::Slots matrices;
    KeptStates::Vector kept[32 * BACKWARD_WARPS];
};

static_assert(sizeof(BackwardMemory) == BACKWARD_BYTES, "scan_layout.py counts otherwise");

// Each thread has a part of the sums over states for STATE_LANES positions; it gets the sum of one, its state lane.
DEVICE float sum_over_states(const Place& at, const float (&parts)[STATE_LANES]) {
    const bool upper = at.state_lane & 2, odd = at.state_lane & 1;
    const float even_sum = (upper ? parts[2] : parts[0]) + exchange(upper ? parts[0] : parts[2], 2 * WARP_CHANNELS);
    const float odd_sum = (upper ? parts[3] : parts[1]) + exchange(upper ? parts[1] : parts[3], 2 * WARP_CHANNELS);
    return (odd ? odd_sum : even_sum) + exchange(odd ? even_sum : odd_sum, WARP_CHANNELS);
}

// The rows of a block's dB and dC that a thread sums up and writes, LANE_STATES neighbours of each.
struct GradientRows {
    static constexpr int FITTING = power_of_two_up_to(32 * BACKWARD_WARPS / (2 * STATE_LANES));
    static constexpr int STEP = FITTING < CHUNK ? FITTING : CHUNK, COUNT = CHUNK / STEP;

    int row, matrix, state_lane;
    Walk walk;
    Column<element> target;

    DEVICE_MEMBER GradientRows(const ScanParams& p, const Place& at, int last)
        : row(threadIdx.x / (2 * STATE_LANES)),
          matrix(threadIdx.x / STATE_LANES % 2),
          state_lane(threadIdx.x % STATE_LANES),
          walk(p, at.g, last + (COUNT - 1) * STEP + row, STEP, true),
          target(p.dBC,
                 ((blockIdx.x * p.batch + at.b) * p.length * p.groups + at.g) * 2 * STATES +
                     threadIdx.x % (2 * STATE_LANES) * LANE_STATES,
                 p.groups * 2 * STATES) {}

    DEVICE_MEMBER void write(const ScanParams& p, const Place& at, const BackwardMemory& memory, int first) {
        if (row >= STEP) return;
#pragma unroll
        for (int i = COUNT - 1; i >= 0; --i) {
            const int t = i * STEP + row, column = share_column(t, matrix, state_lane);
            float sums[LANE_STATES];
#pragma unroll
            for (int warp = 0; warp < BACKWARD_WARPS; ++warp) {
                const floats<LANE_STATES> share = read<LANE_STATES>(&memory.shares[warp][t][column]);
#pragma unroll
                for (int s = 0; s < LANE_STATES; ++s) sums[s] = warp == 0 ? share.v[s] : sums[s] + share.v[s];
            }
            if (first + t < at.stop) {
                element_vector<LANE_STATES> packed;
#pragma unroll
                for (int s = 0; s < LANE_STATES; ++s) packed.v[s] = from_float(sums[s]);
                *reinterpret_cast<element_vector<LANE_STATES>*>(target.at(walk.pixel)) = packed;
            }
            walk.advance();
        }
    }
};

KERNEL LAUNCH_BOUNDS(32 * BACKWARD_WARPS, BACKWARD_BLOCKS) scan_backward(const GRID_CONSTANT ScanParams p) {
    SHARED_MEMORY(backward_memory);
    BackwardMemory& memory = *reinterpret_cast<BackwardMemory*>(backward_memory);
    const Place at = Place::find<BACKWARD_WARPS, true>(p);
    const long long pairs = p.channels * p.d_state;

    const BackwardRows mine(p, at, at.stop);
    const BackwardMatrices matrices(p, at, at.stop);
    const Discretisation discretisation(p, at, mine.channel, mine.inside);
    const auto us = u_column(p, at, p.u, mine.channel), dys = u_column(p, at, p.dy, mine.channel);
    const auto deltas = delta_column(p, at, p.delta, mine.channel);
    const auto dus = dense_column(p, at, p.du, mine.channel);
    const auto ddeltas = delta_column(p, at, p.ddelta, mine.channel);
    const KeptStates kept(p, at);

    // Chunks and their rows are gone through from the last to the first; so are the rows that are written.
    const int last = (at.stop - 1) / CHUNK * CHUNK;
    constexpr int ROWS_ABOVE = (BackwardRows::COUNT - 1) * BackwardRows::STEP;
    constexpr int MATRIX_ROWS_ABOVE = (BackwardMatrices::COUNT - 1) * BackwardMatrices::STEP;
    Walk walk(p, at.g, last + ROWS_ABOVE + mine.row, BackwardRows::STEP, true), written = walk;
    Walk matrix_walk(p, at.g, last + MATRIX_ROWS_ABOVE + matrices.row, BackwardMatrices::STEP, true);
    GradientRows gradients(p, at, last);
    auto fetch = [&](int first) {
        if (first >= at.start) {
#pragma unroll
            for (int i = BackwardRows::COUNT - 1; i >= 0; --i) {
                const bool wanted = first + i * BackwardRows::STEP < mine.rows;
                copy_async<sizeof(elements)>(&memory.delta[i][threadIdx.x], deltas.at(walk.pixel), wanted);
                copy_async<sizeof(elements)>(&memory.u[i][threadIdx.x], us.at(walk.pixel), wanted);
                copy_async<sizeof(elements)>(&memory.dy[i][threadIdx.x], dys.at(walk.pixel), wanted);
                walk.advance();
            }
#pragma unroll
            for (int i = BackwardMatrices::COUNT - 1; i >= 0; --i) {
                matrices.fetch(memory.matrices, i, first, matrix_walk.pixel);
                matrix_walk.advance();
            }
            kept.fetch(first / CHUNK, memory.kept[threadIdx.x]);
        }
        end_copies();
    };
    fetch(last);

    float A[LANE_STATES], dA[LANE_STATES] = {}, carry[LANE_STATES] = {};  // carry: decay_{t+1} dL/dh_{t+1}
    float dbias[VECTOR] = {}, dD[VECTOR] = {};
    load_states(p, at, p.A + at.g * pairs, A);
    if (p.segments > 1) load_states(p, at, p.carry + (sequence(p, at) * p.segments + at.segment) * pairs, carry);

    // What is this thread's of the first position, and so `[t]` of position t.
    constexpr int ROW = sizeof(memory.values[0]) / sizeof(float), CHANNELS = BackwardRows::CHANNELS;
    auto own_values = reinterpret_cast<float(*)[ROW]>(memory.values[0] + at.slot);
    auto own_BC = reinterpret_cast<float(*)[2 * STATES]>(memory.BC[0] + LANE_STATES * at.state_lane);
    auto own_starts = reinterpret_cast<float(*)[32][LANE_STATES]>(memory.starts[at.warp][0][at.lane]);
    auto own_shares = reinterpret_cast<float(*)[2 * STATES]>(own_share(at, memory.shares[at.warp]));

    for (int first = last; first >= at.start; first -= CHUNK) {
        wait_for_copies<0>();
#pragma unroll
        for (int i = 0; i < BackwardRows::COUNT; ++i) {
            const int t = i * BackwardRows::STEP + mine.row;
            const float factor = first + i * BackwardRows::STEP < mine.rows ? 1.f : 0.f;
            float values[VALUES][VECTOR];
            to_floats(memory.delta[i][threadIdx.x], values[DELTA]);
            to_floats(memory.u[i][threadIdx.x], values[U]);
            to_floats(memory.dy[i][threadIdx.x], values[DY]);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                values[DELTA][v] = discretisation.apply(values[DELTA][v], v, factor);
                values[INFLOW][v] = values[DELTA][v] * values[U][v];
                dD[v] = fmaf(values[DY][v], values[U][v], dD[v]);
            }
#pragma unroll
            for (int kind = 0; kind < VALUES; ++kind)
                copy<VECTOR>(&memory.values[t][kind * CHANNELS + mine.column], values[kind]);
        }
        matrices.convert_to(memory.BC, memory.matrices);
        float h[LANE_STATES];
        to_floats(memory.kept[threadIdx.x], h);
        fetch(first - CHUNK);
        __syncthreads();

        // Both loops over the subtiles go along by addresses of this thread's own.
        float(*values)[ROW] = own_values;
        float(*BC)[2 * STATES] = own_BC;
        float(*start)[32][LANE_STATES] = own_starts;
#pragma unroll 2
        for (int subtile = 0; subtile < CHUNK / SUBTILE - 1; ++subtile) {
            copy<LANE_STATES>((*start)[0], h);
#pragma unroll
            for (int t = 0; t < SUBTILE; ++t) {
                const float delta = values[t][DELTA * CHANNELS], inflow = values[t][INFLOW * CHANNELS];
                const floats<LANE_STATES> B = read<LANE_STATES>(BC[t]);
#pragma unroll
                for (int s = 0; s < LANE_STATES; ++s)
                    h[s] = fmaf(exp2_fast(delta * A[s]), h[s], inflow * B.v[s]);
            }
            values += SUBTILE;
            BC += SUBTILE;
            start += 1;
        }
        copy<LANE_STATES>((*start)[0], h);

        float(*share)[2 * STATES] = own_shares + (CHUNK - SUBTILE);
#pragma unroll 1
        for (int subtile = 0; subtile < CHUNK / SUBTILE; ++subtile) {
            // The states and decays of the subtile, and what of its positions is needed twice.
            float states[SUBTILE + 1][LANE_STATES], decay[SUBTILE][LANE_STATES], B[SUBTILE][LANE_STATES];
            float delta[SUBTILE], inflow[SUBTILE], dy[SUBTILE];
            const floats<LANE_STATES> kept_start = read<LANE_STATES>((*start)[0]);
#pragma unroll
            for (int s = 0; s < LANE_STATES; ++s) states[0][s] = kept_start.v[s];
#pragma unroll
            for (int t = 0; t < SUBTILE; ++t) {
                const floats<LANE_STATES> row = read<LANE_STATES>(BC[t]);
                delta[t] = values[t][DELTA * CHANNELS];
                inflow[t] = values[t][INFLOW * CHANNELS];
                dy[t] = values[t][DY * CHANNELS];
#pragma unroll
                for (int s = 0; s < LANE_STATES; ++s) {
                    B[t][s] = row.v[s];
                    decay[t][s] = exp2_fast(delta[t] * A[s]);
                    states[t + 1][s] = fmaf(decay[t][s], states[t][s], inflow[t] * B[t][s]);
                }
            }

#pragma unroll
            for (int group = SUBTILE - STATE_LANES; group >= 0; group -= STATE_LANES) {
                // over this thread's states: dL/d(Δu), and the decays' share of dL/dΔ
                float dinflows[STATE_LANES] = {}, dexponents[STATE_LANES] = {};
                Products dB = {}, dC = {};
#pragma unroll
                for (int pair = STATE_LANES - TOGETHER; pair >= 0; pair -= TOGETHER) {
                    float dh[TOGETHER][LANE_STATES], after[TOGETHER][LANE_STATES];
                    float inflows[TOGETHER], dys[TOGETHER];
#pragma unroll
                    for (int j = TOGETHER - 1; j >= 0; --j) {
                        const int lane = pair + j, t = group + lane;  // the position, and who finishes it
                        const floats<LANE_STATES> C = read<LANE_STATES>(BC[t] + STATES);
#pragma unroll
                        for (int s = 0; s < LANE_STATES; ++s) {
                            dh[j][s] = fmaf(dy[t], C.v[s], carry[s]);
                            after[j][s] = states[t + 1][s];
                            dinflows[lane] = fmaf(dh[j][s], B[t][s], dinflows[lane]);
                            carry[s] = decay[t][s] * dh[j][s];
                            const float dexponent = carry[s] * states[t][s];
                            dexponents[lane] = fmaf(dexponent, A[s], dexponents[lane]);
                            dA[s] = fmaf(dexponent, delta[t], dA[s]);
                        }
                        inflows[j] = at.state_lane == lane ? inflow[t] : 0.f;
                        dys[j] = at.state_lane == lane ? dy[t] : 0.f;
                    }
                    dB.add(dh, inflows);
                    dC.add(after, dys);
                }
                write_shares(at, dB, dC, share[group]);

                // Each thread finishes its channel at one position.
                float* own = values[group + at.state_lane];
                const float own_delta = own[DELTA * CHANNELS], dinflow = sum_over_states(at, dinflows);
                float ddelta = fmaf(dinflow, own[U * CHANNELS], LN2 * sum_over_states(at, dexponents));
                if (DELTA_SOFTPLUS) ddelta *= softplus_slope(own_delta);
                __syncwarp();  // all have read the group's values
                own[DELTA * CHANNELS] = ddelta;
                own[INFLOW * CHANNELS] = dinflow * own_delta;
            }
            values -= SUBTILE;
            BC -= SUBTILE;
            start -= 1;
            share -= SUBTILE;
        }

        __syncthreads();
#pragma unroll
        for (int i = BackwardRows::COUNT - 1; i >= 0; --i) {
            const int t = i * BackwardRows::STEP + mine.row;
            if (first + i * BackwardRows::STEP < mine.rows) {
                const floats<VECTOR> ddelta = read<VECTOR>(&memory.values[t][DELTA * CHANNELS + mine.column]);
                const floats<VECTOR> du = read<VECTOR>(&memory.values[t][INFLOW * CHANNELS + mine.column]);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) dbias[v] += ddelta.v[v];
                store(ddeltas.at(written.pixel), ddelta.v);
                store(dus.at(written.pixel), du.v);
            }
            written.advance();
        }
        gradients.write(p, at, memory, first);
    }

    const long long part = ((long long)at.segment * p.batch + at.b) * p.groups + at.g;
    float* dparameters = p.dparameters + part * (pairs + 2 * p.channels);
#pragma unroll
    for (int s = 0; s < LANE_STATES; ++s) dA[s] *= LN2;
    store_states(p, at, dparameters, dA);

    // The sums of the threads that moved the same channels, which are STEP for each of them.
    __syncthreads();
    float(*sums)[CHANNELS][2] = reinterpret_cast<float(*)[CHANNELS][2]>(memory.values);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        sums[mine.row][mine.column + v][0] = dbias[v];
        sums[mine.row][mine.column + v][1] = dD[v];
    }
    __syncthreads();
    const int columns = min(CHANNELS, int(p.channels) - at.block_channel);
    for (int c = threadIdx.x; c < columns; c += 32 * BACKWARD_WARPS) {
        float dbias_sum = 0.f, dD_sum = 0.f;
        for (int row = 0; row < BackwardRows::STEP; ++row) {
            dbias_sum += sums[row][c][0];
            dD_sum += sums[row][c][1];
        }
        dparameters[pairs + at.block_channel + c] = dbias_sum;
        dparameters[pairs + p.channels + at.block_channel + c] = dD_sum;
    }
}
