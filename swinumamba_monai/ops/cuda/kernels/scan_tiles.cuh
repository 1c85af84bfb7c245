// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// For scan.cu: what a thread moves of a tile.

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
