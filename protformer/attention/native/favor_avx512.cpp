// The Performer's attention of fp32 inputs on CPUs with AVX-512: projection, features and state in one walk over tokens.
//
// As `favor_amx.cpp`, in full precision and for heads of any dimension, scaled inputs included.

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <type_traits>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

// 0 where this CPU and kernel can run the engine; 1: no AVX-512, 3: not granted.
EXPORTED int protformer_favor_available() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 1;
    constexpr unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    if ((b & avx512) != avx512) return 1;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned saved = 0xe6;  // SSE, AVX, AVX-512: what the kernel keeps when it switches threads
    return (low & saved) == saved ? 0 : 3;
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#endif

#include "avx512/operands.h"
#include "exports.h"

// (GCC makes what templates ask for at the end of the file: its options stay)
#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
