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

DEVICE float bits_to_float(uint32 bits) { return __uint_as_float(bits); }
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

// The same address in global memory, which the compiler shall have ready instead of working it out where it is used.
template <typename T>
DEVICE T* in_registers(T* address) {
    asm("" : "+l"(address));
    __builtin_assume(__isGlobal(address));
    return address;
}

// Copy SIZE bytes to shared memory without waiting for them, or fill it with zeros where `wanted` is false; the source
// is then not read. What the hardware can't copy so, less than four bytes, is copied at once.
template <int SIZE>
DEVICE void copy_async(void* to, const void* from, bool wanted) {
    if constexpr (SIZE >= 4) {
        const uint32 address = uint32(__cvta_generic_to_shared(to));
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :
                     : "r"(address), "l"(from), "n"(SIZE), "r"(wanted ? SIZE : 0)
                     : "memory");
    } else {
        static_assert(SIZE == 2, "");
        *static_cast<unsigned short*>(to) = wanted ? *static_cast<const unsigned short*>(from) : 0;
    }
}

// What a thread has ordered since it last called this is a group; wait until all its groups but the last N are there.
// They are there for the thread that ordered them; others need a barrier.
DEVICE void end_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <int N>
DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

// What the matrix units read of a float32: 10 bits after the leading one, the others cut off.
DEVICE float cut_to_tf32(float v) { return __uint_as_float(__float_as_uint(v) & 0xffffe000u); }

// Add the product of a 16x8 and an 8x8 matrix, spread over a warp as PTX's mma.m16n8k8 says; all threads must take
// part.
DEVICE void multiply_add(float (&sums)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
