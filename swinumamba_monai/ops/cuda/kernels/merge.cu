// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// Adding up what the directions of a map gave, in one pass over it.

struct MergeParams {
    const element *parts;  // (g, rows, d)
    const element *skip;   // (rows, d)
    const float *weight;   // (g, d)
    element *merged;       // (rows, d)
    long long groups, rows, channels;
};

// The sum of all groups, and of skip times the sum of all groups' weights.
KERNEL merge(const GRID_CONSTANT MergeParams p) {
    const uint32 vector = blockIdx.x * blockDim.x + threadIdx.x;  // 32 bits are divided in few instructions
    const long long e = (long long)vector * VECTOR, size = p.rows * p.channels;
    if (e >= size) return;
    float sums[VECTOR] = {};
    const elements skip = load(p.skip + e);
    const float* weight = p.weight + vector % uint32(p.channels / VECTOR) * VECTOR;
#pragma unroll 4
    for (int g = 0; g < p.groups; ++g) {
        const elements part = load(p.parts + g * size + e);
        const floats<VECTOR> weights = read<VECTOR>(weight + g * p.channels);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v)
            sums[v] += fmaf(weights.v[v], to_float(skip.v[v]), to_float(part.v[v]));
    }
    store(p.merged + e, sums);
}
