// Products of fp32 matrices on AVX-512, 8 rows by up to 32 columns at a time in registers.
//
// The left operand is read number by number, the right one by vectors along its rows:
//     c[i][j] += sum over k of a[i I + k K] b[k next + j]
// I and K are known to the compiler, so that every number has its place in one instruction.

#pragma once

#include <type_traits>

#include "../vectors.h"

namespace favor {

using Element = float;

struct Thread {
    Thread() {}
};

constexpr int ROWS = 8;  // of a product, formed at once

template <int N, int I, int K>
static inline __attribute__((always_inline)) void multiply(__m512 (&c)[ROWS * N], const float* a, const float* b,
                                                           std::size_t next, int count) {
    for (int k = 0; k < count; ++k, a += K, b += next) {
        __m512 right[N];
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) right[j] = _mm512_load_ps(b + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            const __m512 left = _mm512_set1_ps(a[i * I]);
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) c[i * N + j] = _mm512_fmadd_ps(left, right[j], c[i * N + j]);
        }
    }
}

// The same with rows of a that are `stride` numbers apart.
static inline __attribute__((always_inline)) void multiply_rows(__m512 (&c)[2 * ROWS], const float* a,
                                                                std::size_t stride, const float* b, std::size_t next,
                                                                int count) {
    const float* rows[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) rows[i] = a + i * stride;
    for (int k = 0; k < count; ++k, b += next) {
        const __m512 low = _mm512_load_ps(b), high = _mm512_load_ps(b + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            const __m512 left = _mm512_set1_ps(rows[i][k]);
            c[2 * i] = _mm512_fmadd_ps(left, low, c[2 * i]);
            c[2 * i + 1] = _mm512_fmadd_ps(left, high, c[2 * i + 1]);
        }
    }
}

// c = a b, or c += a b, for 8 rows and `vectors` vectors of columns; rows of b and c are `next` numbers apart.
template <int I, int K>
static inline void add_product(float* c, bool fresh, const float* a, const float* b, std::size_t next, int vectors,
                               int count) {
    const auto columns = [&](auto several, int column) __attribute__((always_inline)) {
        constexpr int N = decltype(several)::value;
        float* const at = c + column * LANES;
        __m512 x[ROWS * N];
#pragma GCC unroll 16
        for (int i = 0; i < ROWS * N; ++i) {
            x[i] = _mm512_setzero_ps();
            _mm_prefetch(reinterpret_cast<const char*>(at + i / N * next + i % N * LANES), _MM_HINT_T0);
        }
        multiply<N, I, K>(x, a, b + column * LANES, next, count);
        // (c is added last: a long sum then is rounded once for each product, and not for each of its terms)
#pragma GCC unroll 16
        for (int i = 0; i < ROWS * N; ++i) {
            float* const place = at + i / N * next + i % N * LANES;
            _mm512_store_ps(place, fresh ? x[i] : _mm512_add_ps(_mm512_load_ps(place), x[i]));
        }
    };
    int column = 0;
    for (; column + 2 <= vectors; column += 2) columns(std::integral_constant<int, 2>(), column);
    if (column < vectors) columns(std::integral_constant<int, 1>(), column);
}

}  // namespace favor
