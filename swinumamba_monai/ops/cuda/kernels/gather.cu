// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The gradient of what an SS2D's scan is projected from: for each pixel and direction that of B and C, which blocks of
// channels found in parts, and after it that of Δ's low rank. Defined by the compiling side, besides what common.cuh
// names: FLOAT_PARTS, whether the parts are float32 instead of the maps' type.

#if FLOAT_PARTS
typedef float part;
DEVICE void load_part(const part* from, float (&values)[VECTOR]) {
    const floats<VECTOR> loaded = read<VECTOR>(from);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) values[v] = loaded.v[v];
}
#else
typedef element part;
DEVICE void load_part(const part* from, float (&values)[VECTOR]) { to_floats(load(from), values); }
#endif

struct GatherParams {
    const part *parts;     // (blocks, pixels, directions, 2, held)
    const element *low;    // (directions, pixels, width)
    element *gathered;     // (pixels, directions, 2 states + width - zeros)
    long long blocks, pixels, directions, states, held, width;
    long long zeros;       // first columns of `low` that count for nothing
    long long together;    // pixels of a block of threads
};

KERNEL LAUNCH_BOUNDS(256, 4) gather(const GRID_CONSTANT GatherParams p) {
    const int states = int(p.states), columns = 2 * states + int(p.width - p.zeros);
    const int vectors = int(p.directions) * columns / VECTOR;  // of a pixel
    const long long size = p.pixels * p.directions * 2 * p.held;
    for (int i = threadIdx.x; i < p.together * vectors; i += blockDim.x) {
        const long long pixel = blockIdx.x * p.together + i / vectors;
        if (pixel >= p.pixels) return;
        const int direction = i % vectors * VECTOR / columns, column = i % vectors * VECTOR % columns;
        float sums[VECTOR] = {};
        if (column < 2 * states) {
            const part* from =
                p.parts + ((pixel * p.directions + direction) * 2 + column / states) * p.held + column % states;
#pragma unroll 8
            for (int block = 0; block < p.blocks; ++block) {
                float values[VECTOR];
                load_part(from + block * size, values);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) sums[v] += values[v];
            }
        } else {
            to_floats(load(p.low + (direction * p.pixels + pixel) * p.width + p.zeros + column - 2 * states), sums);
        }
        store(p.gathered + (pixel * p.directions + direction) * columns + column, sums);
    }
}
