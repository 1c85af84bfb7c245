// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The selective scan of channels with one state, and its backward: what scan.cu does for up to sixteen. With one state
// there is nothing to add up over states and one exponential a position, so memory is what it waits for: every number is
// read once and written once, and sequences are not cut into segments that would be read twice.
//
// A block owns 32 channels of one group and one sample and goes along the sequence by stretches. A thread has VECTOR
// channels of RUN positions; LANES threads have the same positions, a team; a warp has WARP_POSITIONS = 16 of them in
// order, a stretch is what the block's warps have. A run takes a state h to D h + H. Each thread finds D and H of its
// own, the warp puts its teams' one behind the other by exchanges, the block its warps' by shared memory, and then each
// thread goes through its run again, from the state that it starts with. The way back is the same with the gradient of
// the state, from right to left, with the same D.
//
// The forward keeps the state before each WARP_POSITIONS, so that in the backward a warp knows its own. Sums over
// channels (dB, dC) meet by exchanges within a team, of which each thread ends with one of the sums of its positions.
// All of this has a fixed order. Positions beyond the end count as Δ = 0, which leaves every state as it is.
//
// Symbols as in ops/reference.py. Defined by the compiling side, besides what common.cuh names: DELTA_SOFTPLUS, whether
// Δ is softplus of delta; FORWARD_WARPS and BACKWARD_WARPS of a block; FORWARD_BLOCKS and BACKWARD_BLOCKS, that a
// multiprocessor shall have room for.

#include "scan_one_parts.cuh"

// Where the state before a warp's positions is kept.
DEVICE element* kept_state(const OneStateParams& p, const Place& at, int first) {
    const long long chunks = (p.length + WARP_POSITIONS - 1) / WARP_POSITIONS, chunk = first / WARP_POSITIONS + at.warp;
    return p.states + ((at.b * p.groups + at.g) * chunks + chunk) * p.channels + at.channel;
}

KERNEL LAUNCH_BOUNDS(32 * FORWARD_WARPS, FORWARD_BLOCKS) scan_forward(const GRID_CONSTANT OneStateParams p) {
    SHARED_MEMORY(shared);
    auto& warp_maps = *reinterpret_cast<WarpMaps<FORWARD_WARPS>*>(shared);
    constexpr int STRETCH = FORWARD_WARPS * WARP_POSITIONS;
    const Place at(p);
    const Channels channels(p, at);
    const Columns columns(p, at);
    const auto ys = dense_column(p, at, p.y);
    float carry = 0.f;

    Pixels next_pixels(p, at.g, at.position, STRETCH);
    Run next;
    next.load(columns, at, int(p.length), next_pixels);
    for (int first = 0, turn = 0; first < p.length; first += STRETCH, turn ^= 1) {
        const Pixels pixels = next_pixels;
        const Run run = next;
        next_pixels.advance();
        next.load(columns, at, int(p.length) - first - STRETCH, next_pixels);  // under way while this one is computed

        float decay[RUN][VECTOR], inflow[RUN][VECTOR];
        Affine total, before;
        total.reset();
#pragma unroll
        for (int i = 0; i < RUN; ++i) {
            float raw[VECTOR], u[VECTOR];
            to_floats(run.delta[i], raw);
            to_floats(run.u[i], u);
            const float B = to_float(run.B[i]);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float step = channels.step(raw[v], v, i < run.count);
                decay[i][v] = exp2_fast(step * channels.A[v]);
                inflow[i][v] = step * u[v] * B;
                total.H[v] = fmaf(decay[i][v], total.H[v], inflow[i][v]);
                total.D[v] *= decay[i][v];
            }
        }
        chain_teams<false>(at, total, before);
        float h[VECTOR];
        warp_maps.template chain<false>(at, turn, total, carry, h);
        if (p.keep_states && at.lane < LANES && at.inside && first + at.warp * WARP_POSITIONS < p.length)
            store(kept_state(p, at, first), h);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) h[v] = before.apply(v, h[v]);
#pragma unroll
        for (int i = 0; i < RUN; ++i) {
            const float C = to_float(run.C[i]);
            float y[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                h[v] = fmaf(decay[i][v], h[v], inflow[i][v]);
                y[v] = C * h[v];
            }
            if (i < run.count && at.inside) store(ys.at(pixels.at[i]), y);
        }
    }
}

// Add up each of the sums over the threads of a team; thread k of it returns the one with number k.
DEVICE float sum_over_team(const Place& at, float (&sums)[LANES]) {
#pragma unroll
    for (int half = LANES / 2; half > 0; half /= 2) {
        const bool upper = at.lane & half;
#pragma unroll
        for (int k = 0; k < half; ++k) {
            const float kept = upper ? sums[k + half] : sums[k], given = upper ? sums[k] : sums[k + half];
            sums[k] = kept + exchange(given, half);
        }
    }
    return sums[0];
}

KERNEL LAUNCH_BOUNDS(32 * BACKWARD_WARPS, BACKWARD_BLOCKS) scan_backward(const GRID_CONSTANT OneStateParams p) {
    SHARED_MEMORY(shared);
    auto& warp_maps = *reinterpret_cast<WarpMaps<BACKWARD_WARPS>*>(shared);
    constexpr int STRETCH = BACKWARD_WARPS * WARP_POSITIONS;
    const Place at(p);
    const Channels channels(p, at);
    const Columns columns(p, at);
    const Column<const element> dys(p.dy, at.g * p.u_group + at.b * p.u_batch + at.channel, p.u_position);
    const auto dus = dense_column(p, at, p.du);
    const Column<element> ddeltas(
        p.ddelta, at.g * p.delta_group + at.b * p.delta_batch + at.channel, p.delta_position);
    const Column<float> dBCs(
        p.dBC, ((blockIdx.x * p.batch + at.b) * p.length * p.groups + at.g) * 2 + at.lane % LANES % 2, p.groups * 2);
    float carry = 0.f;  // decay_{t+1} dL/dh_{t+1} of the position behind the stretch
    float sums[3][VECTOR] = {};  // dA, ddelta_bias, dD

    const int last = (int(p.length) - 1) / STRETCH * STRETCH;
    Pixels pixels(p, at.g, last + at.position, -STRETCH);
    for (int first = last, turn = 0; first >= 0; first -= STRETCH, turn ^= 1) {
        Run run;
        run.load(columns, at, int(p.length) - first, pixels);
        elements dy_run[RUN];
#pragma unroll
        for (int i = 0; i < RUN; ++i) {
            dy_run[i] = elements{};
            if (i < run.count && at.inside) dy_run[i] = load(dys.at(pixels.at[i]));
        }
        float h[VECTOR] = {};
        if (at.inside && first + at.warp * WARP_POSITIONS < p.length) to_floats(load(kept_state(p, at, first)), h);

        // the states before each position
        float step[RUN][VECTOR], decay[RUN][VECTOR], states[RUN][VECTOR];
        Affine total, others;
        total.reset();
#pragma unroll
        for (int i = 0; i < RUN; ++i) {
            float raw[VECTOR], u[VECTOR];
            to_floats(run.delta[i], raw);
            to_floats(run.u[i], u);
            const float B = to_float(run.B[i]);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                step[i][v] = channels.step(raw[v], v, i < run.count);
                decay[i][v] = exp2_fast(step[i][v] * channels.A[v]);
                states[i][v] = total.H[v];
                total.H[v] = fmaf(decay[i][v], total.H[v], step[i][v] * u[v] * B);
                total.D[v] *= decay[i][v];
            }
        }
        Affine back = total;  // the same D on the way back
        chain_teams<false>(at, total, others);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) h[v] = others.apply(v, h[v]);
#pragma unroll
        for (int i = 0; i < RUN; ++i)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                states[i][v] += h[v];  // h is what the run began with, decayed
                h[v] *= decay[i][v];
            }

        float from_right[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) back.H[v] = 0.f;
#pragma unroll
        for (int i = RUN - 1; i >= 0; --i) {
            float dy[VECTOR];
            to_floats(dy_run[i], dy);
            const float C = to_float(run.C[i]);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) back.H[v] = decay[i][v] * fmaf(dy[v], C, back.H[v]);
        }
        chain_teams<true>(at, back, others);
        warp_maps.template chain<true>(at, turn, back, carry, from_right);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) from_right[v] = others.apply(v, from_right[v]);

        float dBC[LANES];
#pragma unroll
        for (int i = RUN - 1; i >= 0; --i) {
            float u[VECTOR], dy[VECTOR], du[VECTOR], ddelta[VECTOR];
            to_floats(run.u[i], u);
            to_floats(dy_run[i], dy);
            const float B = to_float(run.B[i]), C = to_float(run.C[i]);
            dBC[2 * i] = dBC[2 * i + 1] = 0.f;
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float inflow = step[i][v] * u[v];
                const float dh = fmaf(dy[v], C, from_right[v]);
                from_right[v] = decay[i][v] * dh;
                const float dexponent = LN2 * from_right[v] * states[i][v], dinflow = dh * B;
                dBC[2 * i] = fmaf(dh, inflow, dBC[2 * i]);
                dBC[2 * i + 1] = fmaf(dy[v], fmaf(decay[i][v], states[i][v], inflow * B), dBC[2 * i + 1]);
                du[v] = dinflow * step[i][v];
                ddelta[v] = fmaf(dinflow, u[v], dexponent * channels.A[v]);
                if (DELTA_SOFTPLUS) ddelta[v] *= softplus_slope(step[i][v]);
                sums[0][v] = fmaf(dexponent, step[i][v], sums[0][v]);
                sums[1][v] += i < run.count ? ddelta[v] : 0.f;
                sums[2][v] = fmaf(dy[v], u[v], sums[2][v]);
            }
            if (i < run.count && at.inside) {
                store(dus.at(pixels.at[i]), du);
                store(ddeltas.at(pixels.at[i]), ddelta);
            }
        }
        const float sum = sum_over_team(at, dBC);
        const int mine = at.lane % LANES / 2;  // position of the run
        int pixel = 0;
#pragma unroll
        for (int i = 0; i < RUN; ++i)
            if (i == mine) pixel = pixels.at[i];
        if (mine < run.count) *dBCs.at(pixel) = sum;
        pixels.advance();
    }

    // The sums of the teams of a warp, and then of the warps.
    __syncthreads();
    float(*parts)[3][BLOCK_CHANNELS] = reinterpret_cast<float(*)[3][BLOCK_CHANNELS]>(shared);
#pragma unroll
    for (int k = 0; k < 3; ++k)
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
#pragma unroll
            for (int mask = LANES; mask < 32; mask *= 2) sums[k][v] += exchange(sums[k][v], mask);
            if (at.lane < LANES) parts[at.warp][k][at.slot + v] = sums[k][v];
        }
    __syncthreads();
    float* dparameters = p.dparameters + (at.b * p.groups + at.g) * 3 * p.channels;
    for (int e = threadIdx.x; e < 3 * BLOCK_CHANNELS; e += 32 * BACKWARD_WARPS) {
        const int k = e / BLOCK_CHANNELS, slot = e % BLOCK_CHANNELS, channel = blockIdx.x * BLOCK_CHANNELS + slot;
        float sum = 0.f;
        for (int warp = 0; warp < BACKWARD_WARPS; ++warp) sum += parts[warp][k][slot];
        if (channel < p.channels) dparameters[k * p.channels + channel] = sum;
    }
}
