// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// For scan.cu: its forward, and the first pass over segments.

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
