// The pass over keys that makes a segment's state, and the pass over queries that reads it.
//
//     S = f_k^T [v, 1]        [numerator, denominator] = f_q S        out = numerator / denominator
//
// Keys' features are formed turned, features by tokens, because so they are the left operand of the state as they are;
// queries' are formed tokens by features, and so they are the left operand of the reading.

#pragma once

#include <cmath>

#include "../states.h"
#include "features.h"

namespace favor {

// What a state is read with. Values count from their mean under the state: roundings then are relative to deviations.
struct State {
    bf16* over_features;  // right operand [feature_steps][dim_tiles + 1] of numerators; the last tile's first two
                          // columns are the denominators' sums and what their rounding left of them
    bf16* over_dims;      // right operand [dim_steps][feature_tiles] of grad_out S^T (backward only)
    float* sums;          // [features] the column of ones
    float* centre;        // [dim]
    float* largest;       // the log weight that keys' weights are relative to
};

// Keys' log weights of a block, from the rows in `x`; tokens beyond `count` weigh nothing.
template <class Family>
static inline void turn_keys(const Sizes& sizes, const Head& head, Rows keys, int count, Scratch& scratch,
                             __m512* weights) {
    for (int part = 0; part * LANES < count || part % 2; ++part) {
        __m512 even = _mm512_setzero_ps(), odd = even, tilted = even;
        for (int step = 0; step < sizes.dim_steps; ++step) {
            __m512i x[16];
            for (int t = 0; t < LANES; ++t) x[t] = load(keys.at + (part * LANES + t) * keys.stride + step * STEP);
            transpose(x);
            bf16* tile = scratch.keys + (step * 8 + part) * LEFT;
            for (int r = 0; r < LANES; ++r) store(tile + r * STEP, x[r]);
            if (!Family::stabilised) continue;
            if (head.norm != 0)
                for (int r = 0; r < LANES; r += 2) {
                    even = _mm512_dpbf16_ps(even, (__m512bh)x[r], (__m512bh)x[r]);
                    odd = _mm512_dpbf16_ps(odd, (__m512bh)x[r + 1], (__m512bh)x[r + 1]);
                }
            if (head.tilt)
                for (int r = 0; r < LANES; ++r) {
                    const float* tilt = head.tilt + step * STEP + 2 * r;
                    const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(x[r], 16));
                    const __m512 high = _mm512_castsi512_ps(_mm512_and_epi32(x[r], _mm512_set1_epi32(~0xffff)));
                    tilted = _mm512_fmadd_ps(low, _mm512_set1_ps(tilt[0]), tilted);
                    tilted = _mm512_fmadd_ps(high, _mm512_set1_ps(tilt[1]), tilted);
                }
        }
        const int left = count - part * LANES;
        const __mmask16 there = lanes(left);
        const __m512 weight = _mm512_fmadd_ps(_mm512_add_ps(even, odd), _mm512_set1_ps(head.norm), tilted);
        weights[part] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), there, weight);
    }
}

// [v, 1] of a block as right operands over tokens; rows beyond `count` are zero in `values` and get a zero here.
static inline void pair_values(const Sizes& sizes, Rows values, int count, Scratch& scratch) {
    for (int t = 0; t < count; t += 2) {
        bf16* tile = scratch.values + (t / STEP * sizes.joint_tiles()) * LEFT + t % STEP / 2 * STEP;
        const bf16* row = values.at + t * values.stride;
        for (int step = 0; step < sizes.dim_steps; ++step, tile += 2 * LEFT, row += STEP)
            interleave_rows(load(row), load(row + values.stride), tile, tile + LEFT);
    }
    const int end = (count + SUB - 1) / SUB * SUB;
    for (int t = (count + 1) / 2 * 2; t < end; t += 2) {
        bf16* tile = scratch.values + (t / STEP * sizes.joint_tiles()) * LEFT + t % STEP / 2 * STEP;
        for (int column = 0; column < sizes.dim_tiles; ++column) store(tile + column * LEFT, _mm512_setzero_si512());
    }
    if (scratch.ones == count) return;
    for (int pair = 0; pair < BLOCK / 2; ++pair) {
        const int one = 0x3f80, two = one | one << 16;
        const int there = 2 * pair + 1 < count ? two : 2 * pair < count ? one : 0;
        bf16* row = scratch.values + (pair / 16 * sizes.joint_tiles() + sizes.dim_tiles) * LEFT + pair % 16 * STEP;
        store(row, _mm512_maskz_set1_epi32(1, there));
    }
    scratch.ones = count;
}

// Adds a block of up to BLOCK keys to a state [feature_tiles][dim_tiles + 1]; `first` starts the state.
template <class Family>
static inline void add_keys(const Sizes& sizes, const Head& head, const bf16* key, const bf16* value, int count,
                            float epsilon, float* state, float& largest, bool first, float* log_weights,
                            Scratch& scratch, FeatureRange& range) {
    const int steps = (count + SUB - 1) / SUB;
    __m512 shifts[BLOCK / LANES];
    turn_keys<Family>(sizes, head, whole_rows(sizes, key, count, scratch.tails[0]), count, scratch, shifts);
    pair_values(sizes, whole_rows(sizes, value, count, scratch.tails[1]), count, scratch);
    if (Family::stabilised) {
        __m512 most = shifts[0];
        for (int part = 1; part < 2 * steps; ++part) most = _mm512_max_ps(shifts[part], most);
        const float here = _mm512_reduce_max_ps(most);
        if (first) {
            largest = here;
        } else if (here > largest + 8) {  // (smaller steps stay far within range and save passes over the state)
            const __m512 factor = _mm512_set1_ps(std::exp(largest - here));
            for (std::size_t i = 0; i < sizes.state_floats(); i += LANES)
                _mm512_storeu_ps(state + i, _mm512_mul_ps(_mm512_loadu_ps(state + i), factor));
            largest = here;
        }
        for (int part = 0; part < 2 * steps; ++part) {
            const int left = count - part * LANES;
            const __mmask16 there = lanes(left);
            _mm512_mask_storeu_ps(log_weights + part * LANES, there, shifts[part]);
            const __m512 shift = _mm512_sub_ps(shifts[part], _mm512_set1_ps(largest));
            shifts[part] = _mm512_mul_ps(shift, _mm512_set1_ps(LOG2E));
        }
    }
    const __m512 added = _mm512_set1_ps(epsilon);
    const float* starts = head.offset ? scratch.starts : nullptr;
    const int blocks = sizes.feature_steps * steps;
    const auto project = [&](int block) __attribute__((always_inline)) {
        const int group = block / steps, step = block % steps;
        const Result logits{scratch.logits + block % 2 * 4 * RESULT, RESULT, 2 * RESULT};
        const std::size_t next = static_cast<std::size_t>(sizes.dim_steps) * LEFT;
        multiply<2, 2>(logits, starts ? starts + group * 4 * RESULT : nullptr,
                       left_tiles(head.left + 2 * group * next, next, LEFT),
                       Right{scratch.keys + 2 * step * LEFT, LEFT, 8 * LEFT}, sizes.dim_steps);
    };
    project(0);
    for (int block = 0; block < blocks; ++block) {
        if (block + 1 < blocks) project(block + 1);
        const int group = block / steps, step = block % steps;
        const float* logits = scratch.logits + block % 2 * 4 * RESULT;
        const __m512 low = shifts[2 * step], high = shifts[2 * step + 1];
        FeatureRange seen = range;  // (in registers: a sum through memory is slower than all the rest)
        Ahead ahead = scratch.ahead;
        for (int half = 0; half < 2; ++half, logits += 2 * RESULT) {
            bf16* out = scratch.key_features + (half * 4 + step) * LEFT;
            for (int row = 0; row < LANES; row += 4) {
                const __m512 shift[8] = {low, high, low, high, low, high, low, high};
                __m512 x[8];
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i)  // four features of 32 tokens
                    x[i] = _mm512_loadu_ps(logits + i % 2 * RESULT + (row + i / 2) * LANES);
                for (int i = 0; i < 4; ++i) ahead.fetch();
                Family::form(x, shift, added);
                if (Family::stabilised) seen.features(x);
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) store(out + (row + i) * STEP, round_pair(x[2 * i], x[2 * i + 1]));
            }
        }
        scratch.ahead = ahead;
        range = seen;
        if (step + 1 < steps) continue;
        const Result result{state + 2 * group * sizes.joint_tiles() * RESULT, RESULT, sizes.joint_tiles() * RESULT};
        multiply_rows(result, first ? nullptr : result.at, left_tiles(scratch.key_features, 4 * LEFT, LEFT),
                      Right{scratch.values, LEFT, sizes.joint_tiles() * LEFT}, sizes.joint_tiles(), steps);
    }
}

// Operands of a state [feature_tiles][dim_tiles + 1] with the sums of `out`.
static inline void pack_state(const Sizes& sizes, const float* state, const State& out) {
    const auto row_of = [&](int i, int column) __attribute__((always_inline)) {
        return state + (i / LANES * sizes.joint_tiles() + column) * RESULT + i % LANES * LANES;
    };
    alignas(64) bf16 high[MOST_FEATURES], low[MOST_FEATURES];
    for (int i = 0; i < sizes.features; i += 32) {
        const __m512 a = _mm512_loadu_ps(out.sums + i), b = _mm512_loadu_ps(out.sums + i + LANES);
        const __m512i rounded = round_pair(a, b);
        store(high + i, rounded);
        store(low + i, round_pair(_mm512_sub_ps(a, widen(_mm512_castsi512_si256(rounded))),
                                  _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64(rounded, 1)))));
    }
    for (int i = 0; i < sizes.features; i += 2) {
        bf16* tile = out.over_features + i / STEP * sizes.joint_tiles() * LEFT + i % STEP / 2 * STEP;
        for (int column = 0; column < sizes.dim_tiles; ++column, tile += LEFT) {
            const __m512 a = _mm512_loadu_ps(row_of(i, column)), b = _mm512_loadu_ps(row_of(i + 1, column));
            store(tile, interleave(round_pair(a, b)));
        }
        store(tile, _mm512_setzero_si512());
        std::uint32_t pair[2];  // what bf16 numbers hold of two sums, and what of the rest the next ones hold
        __builtin_memcpy(&pair[0], high + i, 4);
        __builtin_memcpy(&pair[1], low + i, 4);
        __builtin_memcpy(tile, pair, 8);
    }
    if (!out.over_dims) return;
    for (int row = 0; row < sizes.feature_tiles; ++row)
        for (int step = 0; step < sizes.dim_steps; ++step) {
            __m512i x[16];
            for (int i = 0; i < LANES; ++i) {
                const float* pair = row_of(row * LANES + i, 2 * step);
                x[i] = round_pair(_mm512_loadu_ps(pair), _mm512_loadu_ps(pair + RESULT));
            }
            transpose(x);
            bf16* tile = out.over_dims + (step * sizes.feature_tiles + row) * LEFT;
            for (int r = 0; r < LANES; ++r) store(tile + r * STEP, x[r]);
        }
}

// The state of a segment from those of its parts, `next` floats apart, as operands. The first part's is overwritten.
static inline void finish_state(const Sizes& sizes, float* parts, std::size_t next, const float* largest,
                                std::size_t next_largest, int count, const State& out) {
    *out.largest = combine_states(parts, next, sizes.state_floats(), largest, next_largest, count);
    const auto row_of = [&](int i, int column) __attribute__((always_inline)) {
        return parts + (i / LANES * sizes.joint_tiles() + column) * RESULT + i % LANES * LANES;
    };
    float total = 0;
    for (int i = 0; i < sizes.features; ++i) {
        out.sums[i] = i < sizes.rows ? *row_of(i, sizes.dim_tiles) : 0;
        total += out.sums[i];
    }
    for (int column = 0; column < sizes.dim_tiles; ++column) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < sizes.rows; ++i) sum = _mm512_add_ps(sum, _mm512_loadu_ps(row_of(i, column)));
        // (relu features without epsilon may all be zero)
        const __m512 centre = total > 0 ? _mm512_div_ps(sum, _mm512_set1_ps(total)) : _mm512_setzero_ps();
        _mm512_storeu_ps(out.centre + column * LANES, centre);
        for (int i = 0; i < sizes.features; ++i) {
            float* row = row_of(i, column);
            const __m512 x = _mm512_fnmadd_ps(_mm512_set1_ps(out.sums[i]), centre, _mm512_loadu_ps(row));
            _mm512_storeu_ps(row, i < sizes.rows ? x : _mm512_setzero_ps());
        }
    }
    pack_state(sizes, parts, out);
}

// (a state is kept with all its operands)
static inline void reopen_state(const Sizes&, const State&) {}

// The reciprocals of the denominators that the last tile of `joint` has.
static inline void invert_sums(const Sizes& sizes, const Scratch& scratch, float* reciprocals) {
    const float* sums = scratch.joint + sizes.dim_tiles * RESULT;
    alignas(64) float both[SUB];
    for (int t = 0; t < SUB; ++t) {
        const float* row = sums + t / LANES * sizes.joint_tiles() * RESULT + t % LANES * LANES;
        both[t] = row[0] + row[1];
    }
    const __m512 least = _mm512_set1_ps(1.17549435e-38f);
    for (int half = 0; half < SUB; half += LANES) {
        const __m512 guarded = _mm512_max_ps(least, _mm512_load_ps(both + half));  // (in this order NaN stays NaN)
        _mm512_storeu_ps(reciprocals + half, _mm512_div_ps(_mm512_set1_ps(1), guarded));
    }
}

// Numerators, counted from the centre, and the reciprocals of denominators of 32 rows whose features are formed.
static inline void read_state(const Sizes& sizes, const State& state, Scratch& scratch, float (&reciprocals)[SUB]) {
    const std::size_t width = sizes.joint_tiles();
    const Left features = left_tiles(scratch.features, sizes.feature_steps * LEFT, LEFT);
    float* sums = scratch.joint + sizes.dim_tiles * RESULT;
    multiply<2, 1>({sums, RESULT, width * RESULT}, nullptr, features,
                   {state.over_features + sizes.dim_tiles * LEFT, LEFT, width * LEFT}, sizes.feature_steps);
    multiply_rows({scratch.joint, RESULT, width * RESULT}, nullptr, features, {state.over_features, LEFT, width * LEFT},
                  sizes.dim_tiles, sizes.feature_steps);
    invert_sums(sizes, scratch, reciprocals);
}

// Output rows of up to 32 queries.
template <class Family>
static inline void answer_queries(const Sizes& sizes, const Head& head, const bf16* query, int count, float epsilon,
                                  const State& state, bf16* out, float*, Scratch& scratch, FeatureRange& range) {
    const Rows rows = whole_rows(sizes, query, count, scratch.tails[0]);
    float shifts[SUB], reciprocals[SUB];
    row_features<Family>(sizes, head, left_in_place(rows.at, rows.stride),
                         query_shifts<Family>(sizes, head, rows, shifts), epsilon, scratch, nullptr, nullptr, range);
    read_state(sizes, state, scratch, reciprocals);
    for (int t = 0; t < count; ++t) {
        if (Family::stabilised) range.denominator(1 / reciprocals[t]);
        const float* joint = scratch.joint + t / LANES * sizes.joint_tiles() * RESULT + t % LANES * LANES;
        const __m512 reciprocal = _mm512_set1_ps(reciprocals[t]);
        for (int d = 0; d < sizes.dim; d += 32, joint += 2 * RESULT) {
            const __m512 a = _mm512_fmadd_ps(_mm512_loadu_ps(joint), reciprocal, _mm512_loadu_ps(state.centre + d));
            const __m512 b =
                _mm512_fmadd_ps(_mm512_loadu_ps(joint + RESULT), reciprocal, _mm512_loadu_ps(state.centre + d + LANES));
            store(out + t * sizes.stride + d, round_pair(a, b));
        }
    }
}

}  // namespace favor
