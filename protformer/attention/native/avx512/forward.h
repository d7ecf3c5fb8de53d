// The pass over keys that makes a segment's state, and the pass over queries that reads it.
//
//     S = f_k^T [v, 1]        [numerator, denominator] = f_q S        out = numerator / denominator
//
// Features are formed turned, 8 features by 32 tokens: so a key's weight, a query's denominator are vectors beside them.

#pragma once

#include <cmath>

#include "../states.h"
#include "features.h"

namespace favor {

// What a state is read with. Values count from their mean under the state, as in the bf16 engine: gradients of features
// then are no small difference of large terms where all rows see nearly the same.
struct State {
    float* values;   // [features][width]
    float* panels;   // [features / 8][dim][8], the same as left operand (backward only)
    float* sums;     // [features] the column of ones
    float* centre;   // [width]
    float* largest;  // the log weight that keys' weights are relative to
};

// Keys' log weights of a block from the turned keys in scratch.x.
static inline void weigh_keys(const Sizes& sizes, const Head& head, int count, const Scratch& scratch, float* out) {
    for (int part = 0; part < token_vectors(count); ++part) {
        __m512 squares = _mm512_setzero_ps(), tilted = squares;
        for (int d = 0; d < sizes.dim; ++d) {
            const __m512 x = _mm512_load_ps(scratch.x + d * BLOCK + part * LANES);
            squares = _mm512_fmadd_ps(x, x, squares);
            if (head.tilt) tilted = _mm512_fmadd_ps(x, _mm512_set1_ps(head.tilt[d]), tilted);
        }
        _mm512_store_ps(out + part * LANES, _mm512_fmadd_ps(squares, _mm512_set1_ps(head.norm), tilted));
    }
}

// Log weights as shifts, relative to one of them; rows from `count` on weigh nothing.
template <class Family>
static inline void make_shifts(float* weights, int count, float reference) {
    for (int t = 0; t < BLOCK; t += LANES) {
        const __m512 x = _mm512_sub_ps(_mm512_load_ps(weights + t), _mm512_set1_ps(reference));
        const __m512 shift = _mm512_mul_ps(x, _mm512_set1_ps(Family::PER_UNIT));
        _mm512_store_ps(weights + t, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), lanes(count - t), shift));
    }
}

// `count` rows of one head, one behind another, and zeros beyond `dim`.
static inline void gather(const Sizes& sizes, const float* x, int count, float* out) {
    for (int t = 0; t < count; ++t)
        for (int d = 0; d < sizes.width; d += LANES)
            _mm512_store_ps(out + t * sizes.width + d,
                            _mm512_maskz_loadu_ps(lanes(sizes.dim - d), x + t * sizes.stride + d));
}

// Adds a block of up to BLOCK keys to a state; `first` starts the state.
template <class Family>
static inline void add_keys(const Sizes& sizes, const Head& head, const float* key, const float* value, int count,
                            float epsilon, float* state, float& largest, bool first, float*,
                            Scratch& scratch, FeatureRange& range) {
    turn(sizes, key, sizes.stride, count, head.key_scale, nullptr, scratch.x);
    gather(sizes, value, count, scratch.values);
    const bool weighted = Family::stabilised && head.weighted();
    if (Family::stabilised) {
        float here = 0;
        if (weighted) {
            weigh_keys(sizes, head, count, scratch, scratch.shifts);
            here = scratch.shifts[0];
            for (int t = 0; t < count; ++t) here = std::fmax(here, scratch.shifts[t]);
        }
        if (first) {
            largest = here;
        } else if (here > largest + 8) {  // (smaller steps stay far within range and save passes over the state)
            const __m512 factor = _mm512_set1_ps(std::exp(largest - here));
            for (std::size_t i = 0; i < sizes.state_floats(); i += LANES)
                _mm512_store_ps(state + i, _mm512_mul_ps(_mm512_load_ps(state + i), factor));
            largest = here;
        }
        if (weighted) make_shifts<Family>(scratch.shifts, count, largest);
    }
    const __m512 added = _mm512_set1_ps(epsilon);
    const std::size_t ones = static_cast<std::size_t>(sizes.features) * sizes.width;
    for (int panel = 0; panel * ROWS < sizes.features; ++panel) {
        float* sums = state + ones + panel * ROWS * LANES;
        for (int column = 0; column < token_vectors(count); column += 2) {
            __m512 c[2 * ROWS];
            FeatureRange seen = range;
            form_features<Family>(sizes, head, panel, scratch.x + column * LANES,
                                  weighted ? scratch.shifts + column * LANES : nullptr, added, c, seen);
            range = seen;
            for (int i = 0; i < 4; ++i) scratch.ahead.fetch();
            const __mmask16 low = lanes(count - column * LANES), high = lanes(count - (column + 1) * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                float* row = scratch.features + i * BLOCK + column * LANES;
                _mm512_store_ps(row, c[2 * i]);
                _mm512_store_ps(row + LANES, c[2 * i + 1]);
                const __m512 both =
                    _mm512_add_ps(_mm512_maskz_mov_ps(low, c[2 * i]), _mm512_maskz_mov_ps(high, c[2 * i + 1]));
                float* sum = sums + i * LANES;
                _mm512_store_ps(sum, first && column == 0 ? both : _mm512_add_ps(_mm512_load_ps(sum), both));
            }
        }
        add_product<BLOCK, 1>(state + static_cast<std::size_t>(panel) * ROWS * sizes.width, first, scratch.features,
                              scratch.values, sizes.width, sizes.vectors, count);
    }
}

// A left operand [features / 8][dim][8] from rows [features][width].
static inline void pack_panels(const Sizes& sizes, const float* rows, float factor, float* out) {
    for (int first = 0; first < sizes.features; first += ROWS)
        for (int d = 0; d < sizes.dim; ++d)
            for (int i = 0; i < ROWS; ++i) 
                *out++ = factor * rows[static_cast<std::size_t>(first + i) * sizes.width + d];
}

// The state of a segment from those of its parts, `next` floats apart, as operands. The first part's is overwritten.
static inline void finish_state(const Sizes& sizes, float* parts, std::size_t next, const float* largest,
                                std::size_t next_largest, int count, const State& out) {
    *out.largest = combine_states(parts, next, sizes.state_floats(), largest, next_largest, count);
    const float* ones = parts + static_cast<std::size_t>(sizes.features) * sizes.width;
    float total = 0;
    for (int i = 0; i < sizes.features; ++i) {
        out.sums[i] = i < sizes.rows ? _mm512_reduce_add_ps(_mm512_load_ps(ones + i * LANES)) : 0;
        total += out.sums[i];
    }
    for (int d = 0; d < sizes.width; d += LANES) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < sizes.rows; ++i) sum = _mm512_add_ps(sum, _mm512_load_ps(parts + i * sizes.width + d));
        // (relu features without epsilon may all be zero)
        const __m512 centre = total > 0 ? _mm512_div_ps(sum, _mm512_set1_ps(total)) : _mm512_setzero_ps();
        _mm512_store_ps(out.centre + d, centre);
        for (int i = 0; i < sizes.features; ++i) {
            const __m512 x =
                _mm512_fnmadd_ps(_mm512_set1_ps(out.sums[i]), centre, _mm512_load_ps(parts + i * sizes.width + d));
            _mm512_store_ps(out.values + i * sizes.width + d, i < sizes.rows ? x : _mm512_setzero_ps());
        }
    }
    if (out.panels) pack_panels(sizes, out.values, 1, out.panels);
}

// What of a state only the backward needs.
static inline void reopen_state(const Sizes& sizes, const State& state) {
    pack_panels(sizes, state.values, 1, state.panels);
}

// Numerators, counted from the centre, into scratch.joint, and denominators into scratch.sums, of the turned queries.
template <class Family>
static inline void read_state(const Sizes& sizes, const Head& head, int count, float epsilon, const State& state,
                              Scratch& scratch, FeatureRange& range) {
    const __m512 added = _mm512_set1_ps(epsilon);
    const float* const shifts = query_shifts<Family>(sizes, head, count, scratch);
    for (int t = 0; t < BLOCK; t += LANES) _mm512_store_ps(scratch.sums + t, _mm512_setzero_ps());
    for (int group = 0; group < sizes.features; group += GROUP) {
        const int size = sizes.features - group < GROUP ? sizes.features - group : GROUP;
        for (int first = 0; first < size; first += ROWS)
            for (int column = 0; column < token_vectors(count); column += 2) {
                __m512 c[2 * ROWS];
                FeatureRange seen = range;
                form_features<Family>(sizes, head, (group + first) / ROWS, scratch.x + column * LANES,
                                      shifts ? shifts + column * LANES : nullptr, added, c, seen);
                range = seen;
                for (int i = 0; i < 4; ++i) scratch.ahead.fetch();
                __m512 low = _mm512_load_ps(scratch.sums + column * LANES);
                __m512 high = _mm512_load_ps(scratch.sums + (column + 1) * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; ++i) {
                    float* row = scratch.features + (first + i) * BLOCK + column * LANES;
                    _mm512_store_ps(row, c[2 * i]);
                    _mm512_store_ps(row + LANES, c[2 * i + 1]);
                    const __m512 sum = _mm512_set1_ps(state.sums[group + first + i]);
                    low = _mm512_fmadd_ps(c[2 * i], sum, low);
                    high = _mm512_fmadd_ps(c[2 * i + 1], sum, high);
                }
                _mm512_store_ps(scratch.sums + column * LANES, low);
                _mm512_store_ps(scratch.sums + (column + 1) * LANES, high);
            }
        for (int t = 0; t < count; t += ROWS)
            add_product<1, BLOCK>(scratch.joint + t * sizes.width, group == 0, scratch.features + t,
                                  state.values + static_cast<std::size_t>(group) * sizes.width, sizes.width, sizes.vectors, size);
    }
    const __m512 least = _mm512_set1_ps(1.17549435e-38f);
    for (int t = 0; t < BLOCK; t += LANES)  // (in this order NaN stays NaN)
        _mm512_store_ps(scratch.sums + t, _mm512_max_ps(least, _mm512_load_ps(scratch.sums + t)));
}

// Output rows of up to BLOCK queries, and their denominators.
template <class Family>
static inline void answer_queries(const Sizes& sizes, const Head& head, const float* query, int count, float epsilon,
                                  const State& state, float* out, float* denominators, Scratch& scratch, FeatureRange& range) {
    turn(sizes, query, sizes.stride, count, head.query_scale, nullptr, scratch.x);
    read_state<Family>(sizes, head, count, epsilon, state, scratch, range);
    for (int t = 0; t < count; ++t) {
        denominators[t] = scratch.sums[t];
        if (Family::stabilised) range.denominator(denominators[t]);
        const __m512 reciprocal = _mm512_set1_ps(1 / scratch.sums[t]);
        for (int d = 0; d < sizes.width; d += LANES) {
            const __m512 row = _mm512_fmadd_ps(_mm512_load_ps(scratch.joint + t * sizes.width + d), reciprocal,
                                               _mm512_load_ps(state.centre + d));
            _mm512_mask_storeu_ps(out + t * sizes.stride + d, lanes(sizes.dim - d), row);
        }
    }
}

}  // namespace favor
