// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// For scan.cu: sums over channels, on the matrix units.
//
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
