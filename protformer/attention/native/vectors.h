// AVX-512 vectors: what the engines of both precisions need of them.

#pragma once

#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics (its bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace favor {

constexpr int LANES = 16;  // fp32 numbers of a vector
constexpr float LOG2E = 1.44269504088896341f;

// What keeps sums of exponentials in fp32: 2^37 x 2^58 leaves room for 1e8 terms and the values, and where
// denominators are no smaller, whatever underflows is nothing beside them. Logits alone would say less: those far below
// zero do no harm.
constexpr float KEY_MOST = 0x1p37f, QUERY_MOST = 0x1p58f, LEAST_DENOMINATOR = 1e-10f;

// Causal keys count from the first one's weight, because nothing later may touch what earlier rows see. Where queries
// have shifts (`reach_of`), the limits of keys and of denominators are this much higher: with the inputs of a model
// trained on 17 M residues, later features are up to e^27, and denominators, sums over a row's own past, are no smaller
// than 1. What bounds denominators from above leaves sums their room.
constexpr float CAUSAL_ROOM = 0x1p23f, MOST_DENOMINATOR = 0x1p100f;

static inline __m512i load(const void* x) { return _mm512_loadu_si512(x); }
static inline void store(void* x, __m512i y) { _mm512_storeu_si512(x, y); }

// 16 x 16 numbers of 32 bits, in registers.
static inline __attribute__((always_inline)) void transpose(__m512i (&x)[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(x[i], x[i + 1]), b = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]), d = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
        y[i] = _mm512_unpacklo_epi64(a, c);
        y[i + 1] = _mm512_unpackhi_epi64(a, c);
        y[i + 2] = _mm512_unpacklo_epi64(b, d);
        y[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; ++i) {
        const __m512i a = _mm512_shuffle_i32x4(y[i], y[i + 4], 0x88), b = _mm512_shuffle_i32x4(y[i], y[i + 4], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(y[i + 8], y[i + 12], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(y[i + 8], y[i + 12], 0xdd);
        x[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

// Sums over the lanes of each of 16 vectors.
static inline __m512 lane_sums(const __m512 (&x)[16]) {
    __m512 y[8];
    for (int i = 0; i < 8; ++i) {
        const __m512 a = x[2 * i], b = x[2 * i + 1];
        y[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    __m512 z[4];
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(y[2 * i]), b = _mm512_castps_pd(y[2 * i + 1]);
        z[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(z[0], z[1], 0x88), _mm512_shuffle_f32x4(z[0], z[1], 0xdd));
    const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(z[2], z[3], 0x88), _mm512_shuffle_f32x4(z[2], z[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// x = 2^x for each, within 1e-7 of it; 0 for very negative x, also -inf. Several at once, step by step: in turn their
// long chains of dependent steps would fill the scheduler, at half the speed.
template <int N>
static inline __attribute__((always_inline)) void exp2(__m512 (&x)[N]) {
    constexpr float coefficients[] = {0.008989350029161193f, 0.055826307476501656f, 0.24015362197081055f,
                                      0.6931530722703348f, 0.9999999251038457f};
    __m512 r[N], p[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) r[i] = _mm512_reduce_ps(x[i], 0x01);  // x - floor(x)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) p[i] = _mm512_set1_ps(0.0018775732772885322f);
#pragma GCC unroll 8
    for (const float coefficient : coefficients)
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(p[i], r[i], _mm512_set1_ps(coefficient));
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) x[i] = _mm512_scalef_ps(p[i], x[i]);  // p 2^floor(x)
}

// The first `left` lanes.
static inline __mmask16 lanes(long left) {
    return static_cast<__mmask16>(left >= LANES ? 0xffff : left <= 0 ? 0 : (1 << left) - 1);
}

// Any factor of a query's features cancels in its output, and so is a constant to gradients. Theirs is e^-shift with
// shift = reach |q|, which is known before any logit is and keeps the row's largest feature near 1: where W's numbers
// have variance v, logits are about N(0, v |q|^2), the largest of m about sqrt(2 ln m) deviations, or a little less.
// 0.75 of that (2.50 for 256 rows, where rows of a model trained on 17 M residues have 1.84 to 5.44) because a feature
// may be e^40, and a denominator no smaller than e^-23. That model's logits, -47 to 48, then make features of e^-5 to
// e^18 and denominators from e^4 on, and they may grow to twice their size.
static inline float reach_of(const float* weight, int rows, int dim) {
    const long count = static_cast<long>(rows) * dim;
    __m512 squares = _mm512_setzero_ps();
    for (long i = 0; i < count; i += LANES) {
        const __m512 x = _mm512_maskz_loadu_ps(lanes(count - i), weight + i);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(count);
    return 0.75f * std::sqrt(2 * std::log(static_cast<float>(rows)) * variance);
}

// Of queries of these lengths, in units of log 2; whole numbers, so that a shift by itself rounds nothing.
static inline __m512 query_shift(__m512 length, float reach) {
    return _mm512_roundscale_ps(_mm512_mul_ps(length, _mm512_set1_ps(-LOG2E * reach)), 0);
}

// What a pass watches: the largest feature so far, and the denominators of queries. (NaN is passed over; it arrives in
// the output by itself.)
struct FeatureRange {
    __m512 largest;
    bool outside = false;
    FeatureRange() { largest = _mm512_setzero_ps(); }  // (written out: GCC makes implicit ones for the plainest CPU)
    static __m512 larger(__m512 a, __m512 b) { return _mm512_range_ps(a, b, 0x0b); }
    void features(const __m512 (&x)[8]) {  // (as a tree: a chain of them would be slower than the exponentials)
        const __m512 a = larger(larger(x[0], x[1]), larger(x[2], x[3]));
        const __m512 b = larger(larger(x[4], x[5]), larger(x[6], x[7]));
        largest = larger(larger(a, b), largest);
    }
    void denominator(float x, float room = 1) { outside |= x < LEAST_DENOMINATOR * room || x > MOST_DENOMINATOR; }
    bool left(float limit) const { return outside || _mm512_reduce_max_ps(largest) > limit; }
};

// Rows that will be needed soon, all at once: where much is computed in between.
template <class Element>
static inline void fetch_rows(const Element* x, std::size_t stride, std::size_t dim, long rows, bool written) {
    if (!x) return;
    for (long t = 0; t < rows; ++t)
        for (std::size_t d = 0; d < dim; d += 64 / sizeof(Element)) {
            const Element* line = x + t * stride + d;
            if (written)
                asm volatile("prefetchw %0" ::"m"(*line));
            else
                _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
        }
}

// Lines that will be needed soon, fetched one by one between arithmetic, because a burst of them blocks every other
// load. All heads' lines of a row in turn, where heads by themselves would take two of each. Tensors have the same
// layout, so that one distance serves those that will be read and those that will be written.
template <class Element>
struct AheadOf {
    static constexpr std::size_t LINE = 64 / sizeof(Element);
    const Element *read[4], *written[2];  // null where there are fewer
    std::size_t at, skip;  // numbers from the tensors' beginnings; and from a row's last line to the next row
    long line, lines, left;

    void begin(std::size_t first, std::size_t row_numbers, std::size_t stride, long rows) {
        at = first;
        lines = static_cast<long>((row_numbers + LINE - 1) / LINE);
        skip = stride - LINE * static_cast<std::size_t>(lines);
        line = 0;
        left = rows * lines;
    }
    void fetch() {
        if (left == 0) return;
        --left;
        for (const Element* x : read)
            if (x) _mm_prefetch(reinterpret_cast<const char*>(x + at), _MM_HINT_T1);
        for (const Element* x : written)
            if (x) asm volatile("prefetchw %0" ::"m"(x[at]));
        at += LINE;
        if (++line < lines) return;
        line = 0;
        at += skip;
    }
};

}  // namespace favor
