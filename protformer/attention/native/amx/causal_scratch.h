// What causal attention keeps beside what two-way attention does.

#pragma once

#include "backward.h"

namespace favor {

// Rows of a causal block: between blocks a state is grown and packed, within them rows meet rows.
constexpr int SPAN = 64;

// Buffers of one worker that only causal attention needs; tiles. `own` is what the 32 rows have that look at others,
// `others` what the block's rows have that are looked at: queries at keys forward, and keys at queries backward.
struct CausalScratch {
    bf16* own;           // [2][feature_steps] left operand: features
    bf16* own_queries;   // likewise, of queries before they are turned
    float* kept;         // [2][feature_tiles] own features in fp32
    bf16* others;        // [2][feature_tiles] right operand over tokens: features
    bf16* others_over;   // [feature_steps][4] right operand over features
    bf16* across;        // [dim_steps][4] right operand over dims: values, or G
    bf16* grads_paired;  // [2][dim_tiles] right operand over tokens: G
    bf16* keys_turned;   // [feature_tiles][2] left operand: features by tokens
    bf16* mixing;        // [2][2] left operand: A, or its turn
    bf16* grad_mixing;   // [2][2] left operand: B, or its turn
    bf16* rows;          // [SPAN][dim] values from their centre
    float* tiles;        // [2][4] results
    float *states, *sums;  // of heads that go side by side: of the blocks before, or behind, and its column of ones
    float* centres;      // [heads][dim]
    Operands operands;   // of one state
};

// 32 rows with 32 others, 2 x 2 results in `tiles` (16 rows `next` numbers apart), as one step of a left operand of
// two steps; without what is beyond the diagonal, where rows meet themselves. `by_rows` or `by_columns`, where not null, is
// added before.
static inline void keep_pairs(const float* tiles, std::size_t next, bool diagonal, bool lower, const float* by_rows,
                              const float* by_columns, bf16* out) {
    __m512 columns_a = _mm512_setzero_ps(), columns_b = columns_a;
    if (by_columns) {
        columns_a = _mm512_loadu_ps(by_columns);
        columns_b = _mm512_loadu_ps(by_columns + LANES);
    }
    for (int t = 0; t < SUB; ++t) {
        const float* row = tiles + t / LANES * next + t % LANES * LANES;
        const std::uint32_t seen = lower ? static_cast<std::uint32_t>((std::uint64_t{2} << t) - 1) : ~0u << t;
        const std::uint32_t kept = diagonal ? seen : ~0u;
        __m512 a = _mm512_loadu_ps(row), b = _mm512_loadu_ps(row + RESULT);
        if (by_rows) {
            const __m512 number = _mm512_set1_ps(by_rows[t]);
            a = _mm512_add_ps(a, number);
            b = _mm512_add_ps(b, number);
        } else if (by_columns) {
            a = _mm512_add_ps(a, columns_a);
            b = _mm512_add_ps(b, columns_b);
        }
        store(out + t / LANES * 2 * LEFT + t % LANES * STEP, _mm512_maskz_mov_epi16(kept, round_pair(a, b)));
    }
}

// Features that pad the last step, as zeros: where features meet features, there are no zeros of a state. `paired` and
// `kept` may be null.
static inline void drop_padding(const Sizes& sizes, bf16* left, bf16* paired, float* kept) {
    const int step = sizes.feature_steps - 1, there = sizes.rows - step * STEP;
    for (int half = 0; half < 2; ++half)
        for (int t = 0; t < LANES; ++t) {
            bf16* row = left + (half * sizes.feature_steps + step) * LEFT + t * STEP;
            store(row, _mm512_maskz_mov_epi16((1u << there) - 1, load(row)));
        }
    for (int tile = 0; tile < 2; ++tile) {
        const __mmask16 seen = lanes(there - tile * LANES);
        for (int pair = 0; pair < LANES && paired; ++pair) {
            bf16* row = paired + (2 * step + tile) * LEFT + pair * STEP;
            store(row, _mm512_maskz_mov_epi32(seen, load(row)));
        }
        for (int t = 0; t < SUB && kept; ++t) {
            float* row = kept + (t / LANES * sizes.feature_tiles + 2 * step + tile) * RESULT + t % LANES * LANES;
            _mm512_storeu_ps(row, _mm512_maskz_loadu_ps(seen, row));
        }
    }
}

}  // namespace favor
