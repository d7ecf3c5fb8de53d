// Gradients: a pass over queries, which makes the state's gradient, and a pass over keys and values, which reads it.
//
//     G = [d_out, -(d_out . out)] / denominator        dS = f_q^T G        d f_q = G S^T        d f_k = [v, 1] dS^T
//     dv = f_k dS (without its last column)            dq = d lq W         dk = d lk W + 2 norm k d weight
// Values count from their mean under the state (see `State`), so that d f_q is no small difference of large terms where
// all rows see nearly the same.

#pragma once

#include "forward.h"

namespace favor {

// What keys read of dS, which is summed turned: [dim_tiles + 1][feature_tiles] results.
struct GradState {
    bf16* over_features;  // right operand [feature_steps][dim_tiles] of dv
    bf16* over_dims;      // right operand [dim_steps][feature_tiles] of d f_k
    float* added;         // [features] what d f_k has of the ones and of the centre
};

// The tiles of a product of 32 columns as rows of bf16, `count` of 32.
static inline void store_rows(const Sizes& sizes, const float* tiles, bf16* out, int count) {
    for (int t = 0; t < count; ++t) {
        const float* row = tiles + t / LANES * 2 * RESULT + t % LANES * LANES;
        store(out + t * sizes.stride, round_pair(_mm512_loadu_ps(row), _mm512_loadu_ps(row + RESULT)));
    }
}

// Rows of gradients of queries, or of keys without weights, from those of logits.
static inline void grade_inputs(const Sizes& sizes, const Head& head, bf16* out, int count, Scratch& scratch) {
    for (int pair = 0; pair < sizes.dim_steps; ++pair) {
        float* tiles = scratch.joint + pair * 4 * RESULT;
        multiply<2, 2>({tiles, RESULT, 2 * RESULT}, nullptr,
                       left_tiles(scratch.grad_logits, sizes.feature_steps * LEFT, LEFT),
                       {head.over_features + 2 * pair * LEFT, LEFT, static_cast<std::size_t>(sizes.dim_tiles) * LEFT},
                       sizes.feature_steps);
        store_rows(sizes, tiles, out + pair * STEP, count);
    }
}

// Rows of gradients of keys; `totals`: of their log weights, still to be summed over the lanes.
static inline void grade_weighted(const Sizes& sizes, const Head& head, Rows keys, const __m512 (&totals)[2][LANES],
                                  bool weighted, bf16* grad_key, int count, Scratch& scratch) {
    if (!weighted) return grade_inputs(sizes, head, grad_key, count, scratch);
    alignas(64) float grad_weights[SUB];
    for (int half = 0; half < 2; ++half) _mm512_store_ps(grad_weights + half * LANES, lane_sums(totals[half]));
    for (int pair = 0; pair < sizes.dim_steps; ++pair) {
        float* tiles = scratch.joint + pair * 4 * RESULT;
        multiply<2, 2>({tiles, RESULT, 2 * RESULT}, nullptr,
                       left_tiles(scratch.grad_logits, sizes.feature_steps * LEFT, LEFT),
                       {head.over_features + 2 * pair * LEFT, LEFT, static_cast<std::size_t>(sizes.dim_tiles) * LEFT},
                       sizes.feature_steps);
        __m512 tilt_a = _mm512_setzero_ps(), tilt_b = tilt_a;
        if (head.tilt) {
            tilt_a = _mm512_loadu_ps(head.tilt + pair * STEP);
            tilt_b = _mm512_loadu_ps(head.tilt + pair * STEP + LANES);
        }
        const __m512 doubled = _mm512_set1_ps(2 * head.norm);
        for (int t = 0; t < count; ++t) {
            const float* row = tiles + t / LANES * 2 * RESULT + t % LANES * LANES;
            const bf16* x = keys.at + t * keys.stride + pair * STEP;
            const __m512 share = _mm512_set1_ps(grad_weights[t]);
            const __m512 a = _mm512_fmadd_ps(load_bf16(x), doubled, tilt_a);
            const __m512 b = _mm512_fmadd_ps(load_bf16(x + LANES), doubled, tilt_b);
            store(grad_key + t * sizes.stride + pair * STEP,
                  round_pair(_mm512_fmadd_ps(a, share, _mm512_loadu_ps(row)),
                             _mm512_fmadd_ps(b, share, _mm512_loadu_ps(row + RESULT))));
        }
    }
}

// G of 32 rows as the left operand `grads`, and its last column, which is formed from the numerators in `joint` or,
// `known`, taken as it is.
static inline void form_grads(const Sizes& sizes, Rows grad_out, const float* reciprocals, Scratch& scratch, float* last,
                              bool known = false) {
    const std::size_t width = sizes.joint_tiles();
    for (int half = 0; half < 2; ++half) {
        __m512 inner[16];
        for (int t = 0; t < LANES; ++t) inner[t] = _mm512_setzero_ps();
        for (int pair = 0; pair < sizes.dim_steps; ++pair) {
            bf16* tile = scratch.grads + (half * sizes.dim_steps + pair) * LEFT;
            for (int t = 0; t < LANES; ++t) {
                const int row = half * LANES + t;
                const bf16* grad = grad_out.at + row * grad_out.stride + pair * STEP;
                const float* joint = scratch.joint + (half * width + 2 * pair) * RESULT + t * LANES;
                const __m512 reciprocal = _mm512_set1_ps(reciprocals[row]);
                const __m512 a = _mm512_mul_ps(load_bf16(grad), reciprocal);
                const __m512 b = _mm512_mul_ps(load_bf16(grad + LANES), reciprocal);
                inner[t] = _mm512_fmadd_ps(a, _mm512_loadu_ps(joint), inner[t]);
                inner[t] = _mm512_fmadd_ps(b, _mm512_loadu_ps(joint + RESULT), inner[t]);
                store(tile + t * STEP, round_pair(a, b));
            }
        }
        const __m512 sums = _mm512_mul_ps(lane_sums(inner), _mm512_loadu_ps(reciprocals + half * LANES));
        if (!known) _mm512_storeu_ps(last + half * LANES, _mm512_sub_ps(_mm512_setzero_ps(), sums));
    }
}

// `turned`, step `step` of a block, from the 32 rows in `grads` and their last column; and without that the right
// operand `paired` [dim_tiles] over tokens, where not null.
static inline void turn_grads(const Sizes& sizes, int step, Scratch& scratch, const float* last, bf16* paired) {
    for (int pair = 0; pair < sizes.dim_steps; ++pair) {
        __m512i low[16], high[16];
        for (int r = 0; r < LANES; ++r) {
            const bf16* tile = scratch.grads + (r / 8 * sizes.dim_steps + pair) * LEFT + r % 8 * 2 * STEP;
            alignas(64) bf16 both[2][32];
            interleave_rows(load(tile), load(tile + STEP), both[0], both[1]);
            low[r] = load(both[0]);
            high[r] = load(both[1]);
            if (!paired) continue;
            store(paired + 2 * pair * LEFT + r * STEP, low[r]);
            store(paired + (2 * pair + 1) * LEFT + r * STEP, high[r]);
        }
        transpose(low);
        transpose(high);
        bf16* tile = scratch.turned + (2 * pair * 4 + step) * LEFT;
        for (int d = 0; d < LANES; ++d) {
            store(tile + d * STEP, low[d]);
            store(tile + 4 * LEFT + d * STEP, high[d]);
        }
    }
    // the last column as two rows, its rounding and what that left
    bf16* tile = scratch.turned + (sizes.dim_tiles * 4 + step) * LEFT;
    const __m512 a = _mm512_loadu_ps(last), b = _mm512_loadu_ps(last + LANES);
    const __m512i rounded = round_pair(a, b);
    store(tile, rounded);
    store(tile + STEP, round_pair(_mm512_sub_ps(a, widen(_mm512_castsi512_si256(rounded))),
                                  _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64(rounded, 1)))));
    for (int r = 2; r < LANES; ++r) store(tile + r * STEP, _mm512_setzero_si512());
}

// Gradients of features of 32 rows as those of logits, into `grad_logits`. `product(group, result)` makes those of 32
// features in tiles; `column` [features], times each row's factor where there are `factors`, is added to them.
// `totals`, where not null, gets each row's sums.
template <class Family, class Multiply>
static inline __attribute__((always_inline)) void grade_logits(const Sizes& sizes, const float* kept, float epsilon,
                                                               const float* column, const float* factors,
                                                               __m512 (*totals)[LANES], Scratch& scratch,
                                                               const Multiply& product) {
    const __m512 added = _mm512_set1_ps(epsilon);
    const auto tiles = [&](int group) { return scratch.logits + group % 2 * 4 * RESULT; };
    product(0, Result{tiles(0), RESULT, 2 * RESULT});
    for (int group = 0; group < sizes.feature_steps; ++group) {
        if (group + 1 < sizes.feature_steps) product(group + 1, Result{tiles(group + 1), RESULT, 2 * RESULT});
        const __m512 column_a = _mm512_loadu_ps(column + group * 32);
        const __m512 column_b = _mm512_loadu_ps(column + group * 32 + LANES);
        for (int t = 0; t < SUB; ++t) {
            const float* grad = tiles(group) + t / LANES * 2 * RESULT + t % LANES * LANES;
            const float* features = kept + (t / LANES * sizes.feature_tiles + 2 * group) * RESULT + t % LANES * LANES;
            const __m512 factor = _mm512_set1_ps(factors ? factors[t] : 1.0f);
            __m512 a = _mm512_fmadd_ps(factor, column_a, _mm512_loadu_ps(grad));
            __m512 b = _mm512_fmadd_ps(factor, column_b, _mm512_loadu_ps(grad + RESULT));
            a = Family::vjp(a, _mm512_loadu_ps(features), added);
            b = Family::vjp(b, _mm512_loadu_ps(features + RESULT), added);
            store(scratch.grad_logits + (t / LANES * sizes.feature_steps + group) * LEFT + t % LANES * STEP,
                  round_pair(a, b));
            if (!totals) continue;
            __m512& total = totals[t / LANES][t % LANES];
            total = _mm512_add_ps(total, _mm512_add_ps(a, b));
        }
    }
}

// Adds f_q^T G of a block, turned, to dS.
static inline void add_grads(const Sizes& sizes, const Scratch& scratch, const bf16* paired, int steps, bool first,
                             float* grad_state) {
    const std::size_t next = static_cast<std::size_t>(sizes.feature_tiles);
    const Right features{paired, LEFT, next * LEFT};
    for (int row = 0; row < static_cast<int>(sizes.joint_tiles()); row += 2) {
        const Result result{grad_state + row * next * RESULT, RESULT, next * RESULT};
        const Left grads = left_tiles(scratch.turned + row * 4 * LEFT, 4 * LEFT, LEFT);
        const float* start = first ? nullptr : result.at;
        if (row + 1 < static_cast<int>(sizes.joint_tiles())) {
            multiply_rows(result, start, grads, features, sizes.feature_tiles, steps);
            continue;
        }
        for (int column = 0; column < sizes.feature_tiles; column += 2)
            multiply<1, 2>({result.at + column * RESULT, RESULT, 0}, start ? start + column * RESULT : nullptr, grads,
                           {features.at + column * LEFT, LEFT, next * LEFT}, steps);
    }
}

// Gradients of up to BLOCK queries, and their share of dS.
template <class Family>
static inline void grade_queries(const Sizes& sizes, const Head& head, const bf16* query, const bf16* grad_out,
                                 int count, float epsilon, const State& state, const bf16*, const float*, bf16* grad_query,
                                 float* grad_state, bool first, Scratch& scratch, FeatureRange& range) {
    const int steps = (count + SUB - 1) / SUB;
    for (int step = 0; step < steps; ++step) {
        const int here = count - step * SUB < SUB ? count - step * SUB : SUB;
        const Rows rows = whole_rows(sizes, query + step * SUB * sizes.stride, here, scratch.tails[0]);
        bf16* paired = scratch.paired + step * sizes.feature_tiles * LEFT;
        float shifts[SUB], reciprocals[SUB], last[SUB];
        row_features<Family>(sizes, head, left_in_place(rows.at, rows.stride),
                             query_shifts<Family>(sizes, head, rows, shifts), epsilon, scratch, scratch.kept, paired,
                             range);
        read_state(sizes, state, scratch, reciprocals);
        for (int t = 0; t < here && Family::stabilised; ++t) range.denominator(1 / reciprocals[t]);
        form_grads(sizes, whole_rows(sizes, grad_out + step * SUB * sizes.stride, here, scratch.tails[1]), reciprocals,
                   scratch, last);
        turn_grads(sizes, step, scratch, last, nullptr);
        grade_logits<Family>(
            sizes, scratch.kept, epsilon, state.sums, last, nullptr, scratch,
            [&](int group, Result result) __attribute__((always_inline)) {
                multiply<2, 2>(
                    result, nullptr, left_tiles(scratch.grads, sizes.dim_steps * LEFT, LEFT),
                    {state.over_dims + 2 * group * LEFT, LEFT, static_cast<std::size_t>(sizes.feature_tiles) * LEFT},
                    sizes.dim_steps);
            });
        grade_inputs(sizes, head, grad_query + step * SUB * sizes.stride, here, scratch);
    }
    add_grads(sizes, scratch, scratch.paired, steps, first, grad_state);
}

// Operands of dS; `centre` is what values are counted from, null where they are taken as they come.
static inline void pack_grad_state(const Sizes& sizes, const float* state, const float* centre, const GradState& out) {
    const auto row_of = [&](int d, int column) __attribute__((always_inline)) {
        return state + (d / LANES * sizes.feature_tiles + column) * RESULT + d % LANES * LANES;
    };
    for (int column = 0; column < sizes.feature_tiles; ++column) {
        __m512 added =
            _mm512_add_ps(_mm512_loadu_ps(row_of(sizes.dim, column)), _mm512_loadu_ps(row_of(sizes.dim + 1, column)));
        const int left = sizes.rows - column * LANES;
        const __mmask16 there = lanes(left);
        for (int d = 0; d < sizes.dim; d += 2) {
            const __m512 a = _mm512_maskz_loadu_ps(there, row_of(d, column));
            const __m512 b = _mm512_maskz_loadu_ps(there, row_of(d + 1, column));
            const __m512i rounded = round_pair(a, b);
            store(out.over_dims + (d / STEP * sizes.feature_tiles + column) * LEFT + d % STEP / 2 * STEP,
                  interleave(rounded));
            if (!centre) continue;
            // what the operand will multiply is what has to be subtracted
            added = _mm512_fnmadd_ps(widen(_mm512_castsi512_si256(rounded)), _mm512_set1_ps(centre[d]), added);
            added =
                _mm512_fnmadd_ps(widen(_mm512_extracti64x4_epi64(rounded, 1)), _mm512_set1_ps(centre[d + 1]), added);
        }
        _mm512_storeu_ps(out.added + column * LANES, _mm512_maskz_mov_ps(there, added));
    }
    for (int step = 0; step < sizes.feature_steps; ++step)
        for (int row = 0; row < sizes.dim_tiles; ++row) {
            const int left = sizes.rows - step * STEP;
            const __mmask32 there = left >= STEP ? ~0u : (1u << left) - 1;
            __m512i x[16];
            for (int d = 0; d < LANES; ++d) {
                const float* pair = row_of(row * LANES + d, 2 * step);
                x[d] = _mm512_maskz_mov_epi16(there, round_pair(_mm512_loadu_ps(pair), _mm512_loadu_ps(pair + RESULT)));
            }
            transpose(x);
            bf16* tile = out.over_features + (step * sizes.dim_tiles + row) * LEFT;
            for (int r = 0; r < LANES; ++r) store(tile + r * STEP, x[r]);
        }
}

// dS of a segment from those of its parts as operands. The first part's is overwritten.
static inline void finish_grad_state(const Sizes& sizes, float* parts, std::size_t next, int count, const float* centre,
                                     const GradState& out) {
    add_states(parts, next, sizes.state_floats(), count);
    pack_grad_state(sizes, parts, centre, out);
}

// Gradients of up to 32 keys and their values.
template <class Family>
static inline void grade_keys(const Sizes& sizes, const Head& head, const bf16* key, const bf16* value, int count,
                              float epsilon, const float* log_weights, float largest, const GradState& state,
                              bf16* grad_key, bf16* grad_value, Scratch& scratch, FeatureRange& range) {
    const Rows keys = whole_rows(sizes, key, count, scratch.tails[0]);
    const Rows values = whole_rows(sizes, value, count, scratch.tails[1]);
    float shifts[SUB];
    const bool weighted = Family::stabilised && head.weighted();
    if (weighted)
        for (int t = 0; t < SUB; ++t) shifts[t] = t < count ? (log_weights[t] - largest) * LOG2E : 0;
    row_features<Family>(sizes, head, left_in_place(keys.at, keys.stride), weighted ? shifts : nullptr, epsilon,
                         scratch, scratch.kept, nullptr, range);
    for (int pair = 0; pair < sizes.dim_steps; ++pair) {
        float* tiles = scratch.joint + pair * 4 * RESULT;
        multiply<2, 2>({tiles, RESULT, 2 * RESULT}, nullptr,
                       left_tiles(scratch.features, sizes.feature_steps * LEFT, LEFT),
                       {state.over_features + 2 * pair * LEFT, LEFT, static_cast<std::size_t>(sizes.dim_tiles) * LEFT},
                       sizes.feature_steps);
        store_rows(sizes, tiles, grad_value + pair * STEP, count);
    }
    __m512 totals[2][LANES];
    for (int t = 0; t < SUB; ++t) totals[t / LANES][t % LANES] = _mm512_setzero_ps();
    grade_logits<Family>(
        sizes, scratch.kept, epsilon, state.added, nullptr, weighted ? totals : nullptr, scratch,
        [&](int group, Result result) __attribute__((always_inline)) {
            multiply<2, 2>(
                result, nullptr, left_in_place(values.at, values.stride),
                {state.over_dims + 2 * group * LEFT, LEFT, static_cast<std::size_t>(sizes.feature_tiles) * LEFT},
                sizes.dim_steps);
        });
    grade_weighted(sizes, head, keys, totals, weighted, grad_key, count, scratch);
}

// What finished states of one segment and head are kept in.
struct Operands {
    State state;
    GradState grads;
};

}  // namespace favor
