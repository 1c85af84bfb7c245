// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The words of the kernels for NVRTC. tests/ops/emulator has the same words for a CPU.

#define DEVICE static __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define DEVICE_MEMBER __device__ __forceinline__
#define GRID_CONSTANT __grid_constant__
#define LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define SHARED_MEMORY(name) extern __shared__ __align__(16) float name[]

typedef unsigned int uint32;

// 2^x with relative error 2^-22; results below 2^-126 are 0
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// log2(x), for 1 <= x <= 2 to 2^-22
DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x with relative error 2^-23
DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float bfloat16_to_float(unsigned short v) { return __uint_as_float(uint32(v) << 16); }
DEVICE unsigned short float_to_bfloat16(float v) {
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(v));
    return y;
}
DEVICE float float16_to_float(unsigned short v) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(v));
    return y;
}
DEVICE unsigned short float_to_float16(float v) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(v));
    return y;
}

DEVICE float exchange(float v, int lane_mask) { return __shfl_xor_sync(0xffffffffu, v, lane_mask); }
DEVICE int from_lane(int v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
