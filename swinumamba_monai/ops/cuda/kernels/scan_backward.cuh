// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// For scan.cu: its backward.

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
