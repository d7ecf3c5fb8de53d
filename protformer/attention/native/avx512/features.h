// What forward and backward share: sizes, a worker's buffers, families of features, and features of a block of rows.

#pragma once

#include "products.h"
// (which says what an Element is)
#include "../families.h"
#include "../team.h"

namespace favor {

constexpr bool READS_OUTPUT = true;  // a backward reads outputs; row numbers are denominators
constexpr int BLOCK = 64;            // rows that are worked on at once
constexpr int SUB = BLOCK;
constexpr int GROUP = 64;  // features that are formed before a product over features takes them

// `features` is padded to a multiple of 16 by rows of zeros in the projection: whatever feature they have meets zeros
// in the states, and nothing of it is seen.
struct Sizes {
    int heads, dim, rows, features, width, vectors;  // width: dim padded to a multiple of 16
    std::size_t stride;                              // numbers from a token's row to the next one's: heads * dim

    // [features][width] and [features][16]: sums of what belongs to ones, still to be summed over the lanes
    // what of a finished state is kept for the backward: state_size of favor_settings.py
    std::size_t kept_floats() const { return static_cast<std::size_t>(features) * (width + 1) + width + LANES; }
    std::size_t state_floats() const { return static_cast<std::size_t>(features) * (width + LANES); }
};

static inline Sizes make_sizes(const Call& call) {
    Sizes x{};
    x.heads = call.heads;
    x.dim = call.dim;
    x.rows = call.rows;
    x.features = (call.rows + 15) / 16 * 16;
    x.width = (call.dim + 15) / 16 * 16;
    x.vectors = x.width / LANES;
    x.stride = static_cast<std::size_t>(call.heads) * call.dim;
    return x;
}

// The projection W of one head as operands, and the constants of one segment's queries and keys.
struct Head {
    const float* panels;  // [features / 8][dim][8], left operand of logits, in the family's unit
    const float* weight;  // [features][width], right operand of gradients
    float norm;           // a key's log weight is norm |k|^2 + tilt . k
    const float *tilt, *offset, *query_scale, *key_scale;  // [dim], [rows], [dim], [dim]; or null
    float reach;          // of queries' shifts, see reach_of; 0 where they have none
    bool weighted() const { return norm != 0 || tilt; }
    float room() const { return reach != 0 ? CAUSAL_ROOM : 1; }
};

using Ahead = AheadOf<float>;

// One worker's buffers. Turned: tokens are the columns.
struct Scratch {
    float* x;         // [width][BLOCK] queries or keys, turned
    float* turned;    // [width][BLOCK] values or G, turned
    float* values;    // [BLOCK][width] values or G
    float* features;  // [GROUP][BLOCK]
    float* grads;     // [GROUP][BLOCK] gradients of logits
    float* joint;     // [BLOCK][width]
    float* others;    // [BLOCK][width]
    float *shifts, *last, *sums;  // [BLOCK]
    Ahead ahead;                  // input rows to come
    // causal only:
    float *query_features, *key_features, *logit_grads;  // [features][BLOCK]
    float *turned_grads, *grad_rows;                     // [width][BLOCK], [BLOCK][width] G
    float *mixing, *grad_mixing;                         // [BLOCK][BLOCK]
    float *state, *state_sums, *centre;                  // [features][width], [features], [width]
};

static inline void set_head(const Sizes&, const Head&, Scratch&) {}

// A family: features of logits, several vectors at once; `shift` is a key's log weight, or a query's shift. Logits and
// shifts come in a unit of the family's: W's left operand has its reciprocal as a factor.
struct Exponential {
    static constexpr bool stabilised = true;
    static constexpr float PER_UNIT = LOG2E;
    template <int N>
    static __attribute__((always_inline)) void form(__m512 (&x)[N], const __m512 (&shift)[N], __m512) {
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) x[i] = _mm512_add_ps(x[i], shift[i]);
        exp2(x);
    }
    static __m512 vjp(__m512 grad, __m512 feature, __m512) { return _mm512_mul_ps(grad, feature); }
};

// Vectors that hold `count` tokens, an even number: products take their columns in pairs.
static inline int token_vectors(int count) { return (count + 2 * LANES - 1) / (2 * LANES) * 2; }

// out[d][t] = (x[t][d] - less[d]) scale[d]; zero for tokens beyond `count` and dims beyond `dim`.
static inline void turn(const Sizes& sizes, const float* x, std::size_t stride, int count, const float* scale,
                        const float* less, float* out) {
    for (int part = 0; part < token_vectors(count); ++part)
        for (int d = 0; d < sizes.width; d += LANES) {
            const __mmask16 there = lanes(sizes.dim - d);
            const __m512 factor = scale ? _mm512_maskz_loadu_ps(there, scale + d) : _mm512_set1_ps(1);
            const __m512 minus = less ? _mm512_maskz_loadu_ps(there, less + d) : _mm512_setzero_ps();
            __m512i rows[LANES];
            for (int i = 0; i < LANES; ++i) {
                const int t = part * LANES + i;
                const __m512 row = _mm512_maskz_loadu_ps(t < count ? there : 0, x + (t < count ? t : 0) * stride + d);
                const __m512 less_row = _mm512_maskz_sub_ps(t < count ? 0xffff : 0, row, minus);
                rows[i] = _mm512_castps_si512(_mm512_mul_ps(less_row, factor));
            }
            transpose(rows);
            for (int i = 0; i < LANES; ++i)
                _mm512_store_ps(out + (d + i) * BLOCK + part * LANES, _mm512_castsi512_ps(rows[i]));
        }
}

// The shifts of the turned queries in scratch.x, in units of log 2; null where they have none.
template <class Family>
static inline const float* query_shifts(const Sizes& sizes, const Head& head, int count, const Scratch& scratch) {
    if (!Family::stabilised || head.reach == 0) return nullptr;
    for (int part = 0; part < token_vectors(count); ++part) {
        __m512 squares = _mm512_setzero_ps();
        for (int d = 0; d < sizes.dim; ++d) {
            const __m512 x = _mm512_load_ps(scratch.x + d * BLOCK + part * LANES);
            squares = _mm512_fmadd_ps(x, x, squares);
        }
        _mm512_store_ps(scratch.shifts + part * LANES, query_shift(_mm512_sqrt_ps(squares), head.reach));
    }
    return scratch.shifts;
}

// Logits, and the features of them, of 8 features and 32 tokens: `x` turned, from its column on; `shift` of two vectors.
template <class Family>
static inline __attribute__((always_inline)) void form_features(const Sizes& sizes, const Head& head, int panel,
                                                                const float* x, const float* shifts, __m512 added,
                                                                __m512 (&c)[2 * ROWS], FeatureRange& range) {
    const int first = panel * ROWS;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
        const bool offset = head.offset && first + i < sizes.rows;
        c[2 * i] = c[2 * i + 1] = offset ? _mm512_set1_ps(head.offset[first + i] * Family::PER_UNIT) : _mm512_setzero_ps();
    }
    multiply<2, 1, ROWS>(c, head.panels + static_cast<std::size_t>(first) * sizes.dim, x, BLOCK, sizes.dim);
    __m512 shift[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
        shift[i] = Family::stabilised && shifts ? _mm512_load_ps(shifts + i % 2 * LANES) : _mm512_setzero_ps();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        __m512(&part)[ROWS] = *reinterpret_cast<__m512(*)[ROWS]>(&c[half * ROWS]);
        Family::form(part, shift, added);
        if (Family::stabilised) range.features(part);
    }
}

}  // namespace favor
