// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The words of the kernels for a CPU: a block's threads are coroutines that take turns, and each gives its turn away
// where it waits for others. A thread that reads what another has not written yet, for want of a barrier, sees poison.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#define DEVICE static inline
#define DEVICE_MEMBER
#define GRID_CONSTANT
#define LAUNCH_BOUNDS(threads, blocks)
#define KERNEL static void
#define SHARED_MEMORY(name) float* name = emulator::shared

using std::max;
using std::min;
typedef uint32_t uint32;

namespace emulator {
struct Index {
    int x = 0, y = 0, z = 0;
};

constexpr int STACK_BYTES = 1 << 18;
float* shared;
float exchanged[1024];
enum State : char { NEW, STARTED, DONE };
struct Thread {
    State state;
    ucontext_t start;  // a thread is started with it; going on by jumps is cheaper, they make no system calls
    jmp_buf place;
};
std::vector<Thread> threads;
jmp_buf scheduler;
int current;

void give_turn() {
    if (!_setjmp(threads[current].place)) _longjmp(scheduler, 1);
}

__attribute__((noinline)) void let_current_run() {
    if (_setjmp(scheduler)) return;
    if (threads[current].state == STARTED) _longjmp(threads[current].place, 1);
    threads[current].state = STARTED;
    setcontext(&threads[current].start);
}

struct Barrier {
    int arrived = 0, generation = 0;
};
Barrier of_block, of_warp[32];

void wait(Barrier& barrier, int count) {
    const int generation = barrier.generation;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    while (barrier.generation == generation) give_turn();
}
}  // namespace emulator

static emulator::Index threadIdx, blockIdx, blockDim, gridDim;

static void __syncthreads() { emulator::wait(emulator::of_block, blockDim.x); }
static void __syncwarp() { emulator::wait(emulator::of_warp[emulator::current / 32], 32); }

static inline float exp2_fast(float x) {
    const float y = std::exp2(x);
    return y < 1.17549435e-38f ? 0.f : y;
}
static inline float log2_fast(float x) { return std::log2(x); }
static inline float reciprocal_fast(float x) { return 1.f / x; }
static inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

static inline float bits_to_float(uint32 bits) {
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}
static inline uint32 float_to_bits(float v) {
    uint32 bits;
    std::memcpy(&bits, &v, 4);
    return bits;
}
static inline float bfloat16_to_float(unsigned short v) { return bits_to_float(uint32(v) << 16); }
static inline unsigned short float_to_bfloat16(float v) {
    uint32 bits = float_to_bits(v);
    if (v != v) return 0x7fff;
    bits += 0x7fff + ((bits >> 16) & 1);  // round to nearest, ties to even
    return bits >> 16;
}
static inline float float16_to_float(unsigned short v) {
    const int exponent = (v >> 10) & 31, mantissa = v & 1023;
    float y = exponent == 31 ? (mantissa ? NAN : INFINITY)
              : exponent     ? std::ldexp(1024.f + mantissa, exponent - 25)
                             : std::ldexp(float(mantissa), -24);
    return v & 0x8000 ? -y : y;
}
static inline unsigned short float_to_float16(float v) {
    const unsigned short sign = std::signbit(v) ? 0x8000 : 0;
    const float a = std::fabs(v);
    if (v != v) return 0x7fff;
    if (a >= 65520.f) return sign | 0x7c00;
    if (a < std::ldexp(1.f, -14)) return sign | (unsigned short)std::nearbyint(std::ldexp(a, 24));
    int exponent;
    std::frexp(a, &exponent);
    const int rounded = (int)std::nearbyint(std::ldexp(a, 11 - exponent));  // 1024 to 2048
    return sign | (unsigned short)(((exponent + 14) << 10) + rounded - 1024);
}

static float exchange(float v, int lane_mask) {
    emulator::exchanged[emulator::current] = v;
    __syncwarp();
    const float other = emulator::exchanged[emulator::current ^ lane_mask];
    __syncwarp();
    return other;
}
static int from_lane(int v, int lane) {
    emulator::exchanged[emulator::current] = bits_to_float(v);
    __syncwarp();
    const int other = float_to_bits(emulator::exchanged[emulator::current / 32 * 32 + lane % 32]);
    __syncwarp();
    return other;
}

template <typename T>
static inline T* in_registers(T* address) {
    return address;
}

// Copies are made no sooner than a thread waits for them, so that what is read too early is poison.
namespace emulator {
struct Copy {
    void* to;
    const void* from;  // null: zeros
    int size;
};
std::vector<std::vector<std::vector<Copy>>> copies;  // of each thread, its groups

void make_copies(const std::vector<Copy>& group) {
    for (const Copy& copy : group)
        if (copy.from)
            std::memcpy(copy.to, copy.from, copy.size);
        else
            std::memset(copy.to, 0, copy.size);
}
}  // namespace emulator

template <int SIZE>
static void copy_async(void* to, const void* from, bool wanted) {
    if ((uintptr_t)to % SIZE || (wanted && (uintptr_t)from % SIZE)) std::abort();
    emulator::copies[emulator::current].back().push_back({to, wanted ? from : nullptr, SIZE});
}
static void end_copies() { emulator::copies[emulator::current].emplace_back(); }
template <int N>
static void wait_for_copies() {
    auto& groups = emulator::copies[emulator::current];
    while (groups.size() > N + 1) {  // the last is not ended yet
        emulator::make_copies(groups.front());
        groups.erase(groups.begin());
    }
}

static inline float cut_to_tf32(float v) { return bits_to_float(float_to_bits(v) & 0xffffe000u); }

namespace emulator {
float fragments[1024][6];
}
static void multiply_add(float (&sums)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    const float mine[6] = {a0, a1, a2, a3, b0, b1};
    for (int i = 0; i < 6; ++i) emulator::fragments[emulator::current][i] = cut_to_tf32(mine[i]);
    __syncwarp();
    const int first = emulator::current / 32 * 32, q = emulator::current % 4, r = emulator::current % 32 / 4;
    for (int i = 0; i < 4; ++i) {
        const int row = i / 2, column = 2 * q + i % 2;  // row: of r and r + 8
        for (int k = 0; k < 8; ++k)
            sums[i] += emulator::fragments[first + 4 * r + k % 4][row + k / 4 * 2] *
                       emulator::fragments[first + 4 * column + k % 4][4 + k / 4];
    }
    __syncwarp();
}

namespace emulator {
template <typename Params>
struct Launch {
    static void (*kernel)(Params);
    static const Params* params;

    static void thread() {
        kernel(*params);
        threads[current].state = DONE;
        give_turn();
    }

    static void run(void (*kernel_)(Params), const int* grid, int threads_per_block, int shared_bytes, const void* p) {
        kernel = kernel_;
        params = static_cast<const Params*>(p);
        blockDim.x = threads_per_block;
        gridDim.x = grid[0];
        gridDim.y = grid[1];
        gridDim.z = grid[2];
        std::vector<float> memory(shared_bytes / 4 + 8);
        shared = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16);
        const std::unique_ptr<char[]> stacks(new char[(size_t)threads_per_block * STACK_BYTES]);  // not filled: it is large
        threads.resize(threads_per_block);
        for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
            for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
                for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
                    std::fill(memory.begin(), memory.end(), NAN);
                    of_block = Barrier();
                    for (auto& barrier : of_warp) barrier = Barrier();
                    copies.assign(threads_per_block, std::vector<std::vector<Copy>>(1));
                    for (int i = 0; i < threads_per_block; ++i) {
                        ucontext_t& start = threads[i].start;
                        getcontext(&start);
                        start.uc_stack.ss_sp = stacks.get() + (size_t)i * STACK_BYTES;
                        start.uc_stack.ss_size = STACK_BYTES;
                        start.uc_link = nullptr;
                        makecontext(&start, thread, 0);
                        threads[i].state = NEW;
                    }
                    for (bool running = true; running;) {
                        running = false;
                        for (current = 0; current < threads_per_block; ++current) {
                            if (threads[current].state == DONE) continue;
                            running = true;
                            threadIdx.x = current;
                            let_current_run();
                        }
                    }
                }
    }
};
template <typename Params>
void (*Launch<Params>::kernel)(Params);
template <typename Params>
const Params* Launch<Params>::params;
}  // namespace emulator

#define EMULATED(name, Params)                                                                                \
    extern "C" void launch_##name(const int* grid, int threads, int shared_bytes, const void* params) {       \
        emulator::Launch<Params>::run(name, grid, threads, shared_bytes, params);                             \
    }
