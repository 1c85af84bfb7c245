// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// What all kernels share: the element type of the maps, its conversions, and vectors of it. NVRTC is given no header
// files, so there is no cuda_bf16.h here. Defined by the compiling side (ops/nvrtc.py):
//
//   ELEMENT   0: float32, 1: bfloat16, 2: float16; the type of maps in memory. All arithmetic is float32.
//   VECTOR    channels that one thread moves at a time: 4 where addresses allow it, else 1.

#if ELEMENT == 0
typedef float element;
DEVICE float to_float(element v) { return v; }
DEVICE element from_float(float v) { return v; }
#elif ELEMENT == 1
typedef unsigned short element;
DEVICE float to_float(element v) { return bfloat16_to_float(v); }
DEVICE element from_float(float v) { return float_to_bfloat16(v); }
#else
typedef unsigned short element;
DEVICE float to_float(element v) { return float16_to_float(v); }
DEVICE element from_float(float v) { return float_to_float16(v); }
#endif

#if ELEMENT != 0
DEVICE float to_float(float v) { return v; }
#endif

template <typename T>
DEVICE T convert(float v) {
    if constexpr (sizeof(T) == sizeof(float))
        return v;
    else
        return from_float(v);
}

template <int N>
struct alignas(N * sizeof(element)) element_vector {
    element v[N];
};
typedef element_vector<VECTOR> elements;

// N neighbours, N a power of two, at an address that divides by their size
template <int N = VECTOR>
DEVICE element_vector<N> load(const element* from) {
    return *reinterpret_cast<const element_vector<N>*>(from);
}

template <int N>
DEVICE void to_floats(const element_vector<N>& raw, float (&values)[N]) {
#if ELEMENT == 1
    if constexpr (N % 2 == 0) {  // two at a time: the lower by a shift, the upper by a mask
        const element_vector<N> copy = raw;
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const uint32 both = reinterpret_cast<const uint32*>(&copy)[i / 2];
            values[i] = bits_to_float(both << 16);
            values[i + 1] = bits_to_float(both & 0xffff0000u);
        }
        return;
    }
#endif
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(raw.v[i]);
}

DEVICE void store(element* to, const float (&values)[VECTOR]) {
    elements packed;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) packed.v[i] = from_float(values[i]);
    *reinterpret_cast<elements*>(to) = packed;
}

// To, const where From is
template <typename From, typename To>
struct copy_const_ {
    typedef To type;
};
template <typename From, typename To>
struct copy_const_<const From, To> {
    typedef const To type;
};
template <typename From, typename To>
using copy_const = typename copy_const_<From, To>::type;

template <int N>
struct alignas(N * sizeof(float)) floats {
    float v[N];
};

// N floats, N a power of two up to 4, at an address that divides by their size
template <int N>
DEVICE floats<N> read(const float* from) { return *reinterpret_cast<const floats<N>*>(from); }

template <int N>
DEVICE void copy(float* to, const float* from) {
    floats<N> packed;
#pragma unroll
    for (int i = 0; i < N; ++i) packed.v[i] = from[i];
    *reinterpret_cast<floats<N>*>(to) = packed;
}

// What a thread moves of the pixels of a map: some neighbours of each, `stride` bytes apart. The address takes one
// instruction.
template <typename T>
struct Column {
    T* first;
    int stride;

    DEVICE_MEMBER Column(T* map, long long offset, long long position)
        : first(in_registers(map + offset)), stride(int(position) * int(sizeof(T))) {}
    DEVICE_MEMBER T* at(int pixel) const {
        typedef copy_const<T, char> bytes;
        return reinterpret_cast<T*>(reinterpret_cast<bytes*>(first) + (long long)pixel * stride);
    }
};

// The threads of a block that have the same pixel of a map, each VECTOR of its channels; the block's number along y says
// which channels it has.
struct Team {
    int lanes, lane, number, count, channel;  // threads of a team, this one among them; this team among all; first channel

    DEVICE_MEMBER explicit Team(int lanes)
        : lanes(lanes),
          lane(threadIdx.x % lanes),
          number(threadIdx.x / lanes),
          count(blockDim.x / lanes),
          channel((blockIdx.y * lanes + lane) * VECTOR) {}
};

DEVICE float sum_over_warp(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += exchange(value, offset);
    return value;
}

DEVICE float exp_(float x) { return exp2_fast(1.442695041f * x); }

// log(1 + e^x), and its derivative where its value is y. For float32 maps without cancellation where they are small:
//   log(1 + e^x) = max(x, 0) + 2 artanh(s) with e = e^-|x| and s = e / (2 + e) <= 1/3, six terms of the series of artanh
//   1 - e^-y as a series below 1/4
// Half precision has no use for what the plain forms lose, 6e-8 in the first and as much in the second.
#if ELEMENT == 0
DEVICE float softplus(float x) {
    const float e = exp_(-fabsf(x));
    const float s = e * reciprocal_fast(2.f + e), q = s * s;
    float series = 2.f / 11;
    series = fmaf(series, q, 2.f / 9);
    series = fmaf(series, q, 2.f / 7);
    series = fmaf(series, q, 2.f / 5);
    series = fmaf(series, q, 2.f / 3);
    series = fmaf(series, q, 2.f);
    return fmaf(s, series, fmaxf(x, 0.f));
}
DEVICE float softplus_slope(float y) {
    float series = -1.f / 720;
    series = fmaf(series, y, 1.f / 120);
    series = fmaf(series, y, -1.f / 24);
    series = fmaf(series, y, 1.f / 6);
    series = fmaf(series, y, -1.f / 2);
    series = fmaf(series, y, 1.f);
    const float exact = 1.f - exp_(-y);
    return y < 0.25f ? series * y : exact;
}
#else
DEVICE float softplus(float x) { return fmaf(0.6931471806f, log2_fast(1.f + exp_(-fabsf(x))), fmaxf(x, 0.f)); }
DEVICE float softplus_slope(float y) { return 1.f - exp_(-y); }
#endif

DEVICE float silu(float x) { return x * reciprocal_fast(1.f + exp_(-x)); }
