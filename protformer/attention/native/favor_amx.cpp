// The Performer's attention of bf16 inputs on CPUs with AMX: projection, features and state in one walk over tokens.
//
// protformer/attention/native/__init__.py is the door; it checks every pointer and size before a call. The library has
// no pool of threads: it borrows PyTorch's (GOMP_parallel of the OpenMP library that PyTorch has loaded).
//
// Compiled for any x86-64; whether this CPU has the instructions is asked at run time. Elsewhere the file is empty.

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Linux gives a process tile registers only when it asks; asking twice does no harm.
static bool amx_granted() {
    constexpr int request = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

// 0 where this CPU and kernel can run the engine; 1: no AVX-512 with bf16, 2: no AMX with bf16, 3: not granted.
EXPORTED int protformer_favor_available() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 1;
    constexpr unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    constexpr unsigned amx = 1u << 22 | 1u << 24;                           // bf16, tile
    if ((b & avx512) != avx512) return 1;
    if ((d & amx) != amx) return 2;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return 1;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned saved = 0x600e6;  // SSE, AVX, AVX-512, tiles: what the kernel keeps when it switches threads
    if ((low & saved) != saved) return 3;
    return amx_granted() ? 0 : 3;
}

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#endif

#include "amx/operands.h"
#include "exports.h"

// (GCC makes what templates ask for at the end of the file: its options stay)
#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
