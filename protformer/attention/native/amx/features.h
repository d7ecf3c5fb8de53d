// What forward and backward share: sizes, a worker's buffers, families of features, and features of 32 rows.

#pragma once

#include "tiles.h"
// (which says what an Element is)
#include "../families.h"
#include "../team.h"

namespace favor {

constexpr bool READS_OUTPUT = false;  // a backward forms outputs and denominators anew; row numbers are log weights
constexpr int BLOCK = 128;         // rows that a product over tokens takes at once
constexpr int MOST_FEATURES = 512;  // as in __init__.py
constexpr int SUB = 32;            // rows whose features are formed at once

// `features` is padded to a multiple of 32 by rows of zeros in the projection: whatever feature they have meets zeros
// in the states, and nothing of it is seen.
struct Sizes {
    int heads, dim, rows, features;
    std::size_t stride;  // numbers from a token's row to the next one's: heads * dim
    int dim_steps, dim_tiles, feature_steps, feature_tiles;

    std::size_t joint_tiles() const { return dim_tiles + 1; }  // values' columns and one tile for what belongs to ones
    std::size_t state_tiles() const { return feature_tiles * joint_tiles(); }
    // what of a finished state is kept for the backward: state_size of favor_settings.py
    std::size_t kept_floats() const {
        const std::size_t tiles = feature_steps * joint_tiles() + std::size_t(dim_steps) * feature_tiles;
        return features + dim + LANES + tiles * LEFT / 2;
    }
    std::size_t state_floats() const { return state_tiles() * RESULT; }
};

static inline Sizes make_sizes(const Call& call) {
    Sizes x{};
    x.heads = call.heads;
    x.dim = call.dim;
    x.rows = call.rows;
    x.features = (call.rows + 31) / 32 * 32;
    x.stride = static_cast<std::size_t>(call.heads) * call.dim;
    x.dim_steps = call.dim / STEP;
    x.dim_tiles = call.dim / LANES;
    x.feature_steps = x.features / STEP;
    x.feature_tiles = x.features / LANES;
    return x;
}

// The projection W of one head as operands, and the constants of one segment's keys.
struct Head {
    const bf16* left;           // W, rows by dims                   [feature_tiles][dim_steps] tiles
    const bf16* over_dims;      // right operand of x W^T            [dim_steps][feature_tiles]
    const bf16* over_features;  // right operand of grad_logits W    [feature_steps][dim_tiles]
    float norm;                 // a key's log weight is norm |k|^2 + tilt . k
    const float* tilt;          // [dim] or null
    const float* offset;        // [rows] or null: what is added to logits
    float reach;                // of queries' shifts, see reach_of; 0 where they have none
    bool weighted() const { return norm != 0 || tilt; }
    float room() const { return reach != 0 ? CAUSAL_ROOM : 1; }
};

using Ahead = AheadOf<bf16>;

struct CausalScratch;

// One worker's buffers, each of a fixed place in its own memory. Tiles unless said otherwise.
struct Scratch {
    bf16* keys;          // [dim_steps][8] right operand: keys of a block, over dims
    bf16* values;        // [4][dim_tiles + 1] right operand: [v, 1] of a block, over tokens
    bf16* key_features;  // [2][4] left operand: 32 features by the block's tokens
    bf16* features;      // [2][feature_steps] left operand: features of 32 rows
    bf16* paired;        // [4][feature_tiles] right operand: features of a block, over tokens
    bf16* grads;         // [2][dim_steps] left operand: G of 32 rows
    bf16* turned;        // [dim_tiles + 1][4] left operand: G^T of a block
    bf16* grad_logits;   // [2][feature_steps] left operand
    bf16* tails[2];      // [BLOCK][dim] rows of an incomplete block
    float* logits;       // [2][2][2] results: two groups of 32 features, so that one can be filled as one is read
    float* kept;         // [2][feature_tiles] features in fp32
    float* joint;        // [2][dim_tiles + 1] results: numerators and denominators
    float* starts;       // [2][feature_steps][2][2] offsets as results to start from, by features and by tokens
    Ahead ahead;         // input rows to come
    int ones;            // tokens that the ones in `values` are for
    CausalScratch* causal;
};

// A family: features of logits, several vectors at once; a key's log weight, or a query's shift, comes as `shift` in
// units of log 2.
struct Exponential {
    static constexpr bool stabilised = true;
    static constexpr float PER_UNIT = 1;  // logits come as they are
    template <int N>
    static __attribute__((always_inline)) void form(__m512 (&x)[N], const __m512 (&shift)[N], __m512) {
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) x[i] = _mm512_fmadd_ps(x[i], _mm512_set1_ps(LOG2E), shift[i]);
        exp2(x);
    }
    static __m512 vjp(__m512 grad, __m512 feature, __m512) { return _mm512_mul_ps(grad, feature); }
};

// `count` rows of one head, followed by zeros up to a multiple of SUB rows. Whole blocks are taken where they lie.
struct Rows {
    const bf16* at;
    std::size_t stride;
};

static inline Rows whole_rows(const Sizes& sizes, const bf16* x, int count, bf16* tail) {
    if (count % SUB == 0) return {x, sizes.stride};
    const int end = (count + SUB - 1) / SUB * SUB;
    for (int t = 0; t < end; ++t)
        for (int d = 0; d < sizes.dim; d += 32)
            store(tail + t * sizes.dim + d, t < count ? load(x + t * sizes.stride + d) : _mm512_setzero_si512());
    return {tail, static_cast<std::size_t>(sizes.dim)};
}

// Offsets as what the products of logits start from: by features for keys' states, by tokens otherwise.
static inline void set_head(const Sizes& sizes, const Head& head, Scratch& scratch) {
    if (!head.offset) return;
    float* by_features = scratch.starts;
    float* by_tokens = scratch.starts + sizes.feature_steps * 4 * RESULT;
    for (int tile = 0; tile < sizes.feature_tiles; ++tile) {
        alignas(64) float offsets[LANES];
        const __m512 all = _mm512_maskz_loadu_ps(lanes(sizes.rows - tile * LANES), head.offset + tile * LANES);
        _mm512_store_ps(offsets, all);
        const int group = tile / 2 * 4;
        for (int other = 0; other < 2; ++other)
            for (int i = 0; i < LANES; ++i) {
                const int by_feature = (group + 2 * (tile % 2) + other) * RESULT + i * LANES;
                _mm512_storeu_ps(by_features + by_feature, _mm512_set1_ps(offsets[i]));
                _mm512_storeu_ps(by_tokens + (group + 2 * other + tile % 2) * RESULT + i * LANES, all);
            }
    }
}

// The shifts of 32 queries, in units of log 2; null where they have none.
template <class Family>
static inline const float* query_shifts(const Sizes& sizes, const Head& head, Rows rows, float (&out)[SUB]) {
    if (!Family::stabilised || head.reach == 0) return nullptr;
    for (int half = 0; half < 2; ++half) {
        __m512 squares[LANES];
        for (int t = 0; t < LANES; ++t) {
            const bf16* row = rows.at + (half * LANES + t) * rows.stride;
            squares[t] = _mm512_setzero_ps();
            for (int d = 0; d < sizes.dim; d += STEP) {
                const __m512bh x = (__m512bh)load(row + d);
                squares[t] = _mm512_dpbf16_ps(squares[t], x, x);
            }
        }
        const __m512 length = _mm512_sqrt_ps(lane_sums(squares));
        _mm512_storeu_ps(out + half * LANES, query_shift(length, head.reach));
    }
    return out;
}

// Features of 32 rows x: into `features`, in fp32 into `kept`, and as the right operand `paired`, where not null.
template <class Family>
static inline void row_features(const Sizes& sizes, const Head& head, Left x, const float* shifts, float epsilon,
                                Scratch& scratch, float* kept, bf16* paired, FeatureRange& range) {
    const __m512 added = _mm512_set1_ps(epsilon);
    const std::size_t next = static_cast<std::size_t>(sizes.feature_tiles) * LEFT;
    const float* starts = head.offset ? scratch.starts + sizes.feature_steps * 4 * RESULT : nullptr;
    const auto project = [&](int group) __attribute__((always_inline)) {
        const Result logits{scratch.logits + group % 2 * 4 * RESULT, RESULT, 2 * RESULT};
        const Right weights{head.over_dims + group * 2 * LEFT, LEFT, next};
        multiply<2, 2>(logits, starts ? starts + group * 4 * RESULT : nullptr, x, weights, sizes.dim_steps);
    };
    project(0);
    for (int group = 0; group < sizes.feature_steps; ++group) {
        if (group + 1 < sizes.feature_steps) project(group + 1);
        const float* logits = scratch.logits + group % 2 * 4 * RESULT;
        FeatureRange seen = range;  // (in registers: a sum through memory is slower than all the rest)
        Ahead ahead = scratch.ahead;
        for (int half = 0; half < 2; ++half) {
            bf16* out = scratch.features + (half * sizes.feature_steps + group) * LEFT;
            for (int t = 0; t < LANES; t += 4) {
                __m512 x[8], shift[8];
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i) {  // four rows of 32 features
                    x[i] = _mm512_loadu_ps(logits + (2 * half + i % 2) * RESULT + (t + i / 2) * LANES);
                    const bool shifted = Family::stabilised && shifts;
                    shift[i] = shifted ? _mm512_set1_ps(shifts[half * LANES + t + i / 2]) : _mm512_setzero_ps();
                }
                for (int i = 0; i < 4; ++i) ahead.fetch();
                Family::form(x, shift, added);
                if (Family::stabilised) seen.features(x);
                __m512i rounded[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    rounded[i] = round_pair(x[2 * i], x[2 * i + 1]);
                    store(out + (t + i) * STEP, rounded[i]);
                }
                if (kept)
#pragma GCC unroll 8
                    for (int i = 0; i < 8; ++i) {
                        const int tile = half * sizes.feature_tiles + 2 * group + i % 2;
                        _mm512_storeu_ps(kept + tile * RESULT + (t + i / 2) * LANES, x[i]);
                    }
                if (paired)
#pragma GCC unroll 2
                    for (int i = 0; i < 4; i += 2) {
                        bf16* place = paired + 2 * group * LEFT + (half * 8 + (t + i) / 2) * STEP;
                        interleave_rows(rounded[i], rounded[i + 1], place, place + LEFT);
                    }
            }
        }
        scratch.ahead = ahead;
        range = seen;
    }
}

}  // namespace favor
