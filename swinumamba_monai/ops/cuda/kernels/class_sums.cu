// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// Of each image and class the sums that soft Dice and cross entropy of a softmax are made of, and the gradient of what
// was made of them. Logits are read once in either direction, and the softmax is not kept. Defined by the compiling
// side, besides what common.cuh names:
//
//   CLASSES        logits of a pixel
//   CHANNELS_LAST  1: they are neighbours in memory, and VECTOR of them are moved at a time; 0: VECTOR pixels are

constexpr int PIXELS = CHANNELS_LAST ? 1 : VECTOR;  // of a thread at a time
constexpr int SUMS = 3 * CLASSES + 1;  // p of the class's pixels, p of all, number of the class's; cross entropy of all
constexpr int IGNORED = -1, NO_CLASS = CLASSES;

struct ClassSumsParams {
    const element *logits;  // (b, CLASSES, pixels), or (b, pixels, CLASSES)
    const float *target;    // (b, pixels)
    float *sums;            // (blocks, b, SUMS)
    const float *dsums;     // (b, SUMS)
    element *dlogits;       // like logits
    long long pixels;       // of an image
    double ignored;         // target of a pixel that counts for nothing
};

// Neighbours of image blockIdx.y.
struct Pixels {
    float v[PIXELS][CLASSES];  // softmax; 0 where the pixel is ignored, and NaN where the target is no class
    float cross_entropy[PIXELS];
    int label[PIXELS];

    // The VECTOR neighbours in memory with number n: where they begin, and the k-th of them.
    DEVICE_MEMBER static long long place(const ClassSumsParams& p, long long first, int n) {
        const long long image = blockIdx.y * CLASSES * p.pixels;
        return image + (CHANNELS_LAST ? first * CLASSES + n * VECTOR : n * p.pixels + first);
    }
    DEVICE_MEMBER float& at(int n, int k) { return CHANNELS_LAST ? v[0][n * VECTOR + k] : v[k % PIXELS][n]; }

    DEVICE_MEMBER void load(const ClassSumsParams& p, long long first) {
#pragma unroll
        for (int n = 0; n < PIXELS * CLASSES / VECTOR; ++n) {
            const elements raw = ::load(p.logits + place(p, first, n));
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) at(n, k) = to_float(raw.v[k]);
        }
        const floats<PIXELS> target = read<PIXELS>(p.target + blockIdx.y * p.pixels + first);
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) normalize(i, target.v[i], float(p.ignored));
    }

    DEVICE_MEMBER void normalize(int i, float target, float ignored) {
        const bool is_class = target >= 0.f && target < CLASSES && target == float(int(target));
        label[i] = target == ignored ? IGNORED : is_class ? int(target) : NO_CLASS;
        float highest = v[i][0], sum = 0.f, own = 0.f;
#pragma unroll
        for (int c = 1; c < CLASSES; ++c) highest = fmaxf(highest, v[i][c]);
#pragma unroll
        for (int c = 0; c < CLASSES; ++c) {
            const float power = 1.442695041f * (v[i][c] - highest);
            if (c == label[i]) own = power;
            v[i][c] = exp2_fast(power);
            sum += v[i][c];
        }
        const float nan = bits_to_float(0x7fffffffu);
        const float scale = label[i] == IGNORED ? 0.f : label[i] == NO_CLASS ? nan : reciprocal_fast(sum);
#pragma unroll
        for (int c = 0; c < CLASSES; ++c) v[i][c] *= scale;
        cross_entropy[i] = label[i] == IGNORED ? 0.f : 0.6931471806f * (log2_fast(sum) - own);
    }

    DEVICE_MEMBER void store(const ClassSumsParams& p, long long first) {
#pragma unroll
        for (int n = 0; n < PIXELS * CLASSES / VECTOR; ++n) {
            float values[VECTOR];
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) values[k] = at(n, k);
            ::store(p.dlogits + place(p, first, n), values);
        }
    }
};

// All pixels of image blockIdx.y, of which the blocks in x take turns.
template <typename Use>
DEVICE void for_each_pixels(const ClassSumsParams& p, const Use& use) {
    const long long step = (long long)gridDim.x * blockDim.x * PIXELS;
    for (long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * PIXELS; first < p.pixels; first += step) {
        Pixels pixels;
        pixels.load(p, first);
        use(pixels, first);
    }
}

// A thread adds up its pixels, then warps their threads and the block its warps; the blocks are added up elsewhere.
KERNEL LAUNCH_BOUNDS(256, 1) class_sums(const GRID_CONSTANT ClassSumsParams p) {
    SHARED_MEMORY(shared);
    float sums[SUMS] = {};
    for_each_pixels(p, [&](const Pixels& pixels, long long) {
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            const int label = pixels.label[i];
#pragma unroll
            for (int c = 0; c < CLASSES; ++c) {
                const float probability = pixels.v[i][c];
                sums[c] += c == label ? probability : 0.f;
                sums[CLASSES + c] += probability;
                sums[2 * CLASSES + c] += c == label ? 1.f : 0.f;
            }
            sums[3 * CLASSES] += pixels.cross_entropy[i];
        }
    });
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int s = 0; s < SUMS; ++s) {
        const float sum = sum_over_warp(sums[s]);
        if (threadIdx.x % 32 == 0) shared[warp * SUMS + s] = sum;
    }
    __syncthreads();
    for (int s = threadIdx.x; s < SUMS; s += blockDim.x) {
        float sum = 0.f;
        for (int w = 0; w < warps; ++w) sum += shared[w * SUMS + s];
        p.sums[((long long)blockIdx.x * gridDim.y + blockIdx.y) * SUMS + s] = sum;
    }
}

// With d for the gradient of a sum, and g = 1 for a pixel's own class, else 0: softmax gives
//   dlogit_c = p_c (a_c - sum over k of p_k a_k) + d(cross entropy) (p_c - g_c),  a_c = d(p of all)_c + d(p of own)_c g_c
KERNEL LAUNCH_BOUNDS(256, 1) class_sums_backward(const GRID_CONSTANT ClassSumsParams p) {
    const float* d = p.dsums + blockIdx.y * SUMS;
    const float dcross_entropy = d[3 * CLASSES];
    float dp[CLASSES];
#pragma unroll
    for (int c = 0; c < CLASSES; ++c) dp[c] = d[CLASSES + c];
    for_each_pixels(p, [&](Pixels& pixels, long long first) {
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            const int label = pixels.label[i];
            const float down = label == IGNORED || label == NO_CLASS ? 0.f : d[label];
            float mean = 0.f;
#pragma unroll
            for (int c = 0; c < CLASSES; ++c) mean = fmaf(pixels.v[i][c], dp[c] + (c == label ? down : 0.f), mean);
#pragma unroll
            for (int c = 0; c < CLASSES; ++c) {
                const bool own = c == label;
                const float a = dp[c] + (own ? down : 0.f) - mean + dcross_entropy;
                pixels.v[i][c] = fmaf(pixels.v[i][c], a, own ? -dcross_entropy : 0.f);
            }
        }
        pixels.store(p, first);
    });
}
