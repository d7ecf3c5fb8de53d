// Gradients: a pass over queries, which makes the state's gradient, and a pass over keys and values, which reads it.
//
//     G = [d_out, -(d_out . out)] / denominator        dS = f_q^T G        d f_q = G S^T        d f_k = [v, 1] dS^T
//     dv = f_k dS (without its last column)            dq = d lq W         dk = d lk W + 2 norm k d weight
// Values and outputs count from the values' mean under the state (see `State`).

#pragma once

#include "forward.h"

namespace favor {

// What keys read of dS.
struct GradState {
    float* values;  // [features][width]
    float* panels;  // [features / 8][dim][8], the same as left operand
    float* sums;    // [features] what d f_k has of the ones
    float* centre;  // [width]
};

// G of a block: rows, and the last column, which is zero beyond `count`.
static inline void form_grads(const Sizes& sizes, const float* grad_out, const float* out, const float* denominators,
                              const float* centre, int count, float* rows, float* last) {
    for (int t = 0; t < BLOCK; t += LANES) _mm512_store_ps(last + t, _mm512_setzero_ps());
    for (int t = 0; t < count; ++t) {
        const float reciprocal = 1 / denominators[t];
        __m512 inner = _mm512_setzero_ps();
        for (int d = 0; d < sizes.width; d += LANES) {
            const __mmask16 there = lanes(sizes.dim - d);
            const __m512 grad = _mm512_maskz_loadu_ps(there, grad_out + t * sizes.stride + d);
            const __m512 beside = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, out + t * sizes.stride + d),
                                                _mm512_maskz_loadu_ps(there, centre + d));
            inner = _mm512_fmadd_ps(grad, beside, inner);
            _mm512_store_ps(rows + t * sizes.width + d, _mm512_mul_ps(grad, _mm512_set1_ps(reciprocal)));
        }
        last[t] = -_mm512_reduce_add_ps(inner) * reciprocal;
    }
}

// Rows of queries' gradients from scratch.joint.
static inline void store_query_gradients(const Sizes& sizes, const Head& head, int count, const Scratch& scratch,
                                         float* grad_query) {
    for (int t = 0; t < count; ++t)
        for (int d = 0; d < sizes.width; d += LANES) {
            const __mmask16 there = lanes(sizes.dim - d);
            __m512 row = _mm512_load_ps(scratch.joint + t * sizes.width + d);
            if (head.query_scale) row = _mm512_mul_ps(row, _mm512_maskz_loadu_ps(there, head.query_scale + d));
            _mm512_mask_storeu_ps(grad_query + t * sizes.stride + d, there, row);
        }
}

// Rows of keys' and values' gradients from scratch.joint, from scratch.sums where keys have weights, and scratch.others.
static inline void store_key_gradients(const Sizes& sizes, const Head& head, const float* key, int count, bool weighted,
                                       const Scratch& scratch, float* grad_key, float* grad_value) {
    for (int t = 0; t < count; ++t) {
        const __m512 share = _mm512_set1_ps(weighted ? scratch.sums[t] : 0);
        for (int d = 0; d < sizes.width; d += LANES) {
            const __mmask16 there = lanes(sizes.dim - d);
            const __m512 scale =
                head.key_scale ? _mm512_maskz_loadu_ps(there, head.key_scale + d) : _mm512_set1_ps(1);
            __m512 row = _mm512_load_ps(scratch.joint + t * sizes.width + d);
            if (weighted) {
                const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, key + t * sizes.stride + d), scale);
                const __m512 tilt = head.tilt ? _mm512_maskz_loadu_ps(there, head.tilt + d) : _mm512_setzero_ps();
                row = _mm512_fmadd_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(2 * head.norm), tilt), share, row);
            }
            _mm512_mask_storeu_ps(grad_key + t * sizes.stride + d, there, _mm512_mul_ps(row, scale));
            _mm512_mask_storeu_ps(grad_value + t * sizes.stride + d, there,
                                  _mm512_load_ps(scratch.others + t * sizes.width + d));
        }
    }
}

// Gradients of up to BLOCK queries, and their share of dS.
template <class Family>
static inline void grade_queries(const Sizes& sizes, const Head& head, const float* query, const float* grad_out,
                                 int count, float epsilon, const State& state, const float* out,
                                 const float* denominators, float* grad_query, float* grad_state, bool first_block,
                                 Scratch& scratch, FeatureRange& range) {
    turn(sizes, query, sizes.stride, count, head.query_scale, nullptr, scratch.x);
    form_grads(sizes, grad_out, out, denominators, state.centre, count, scratch.values, scratch.last);
    for (int t = 0; t < count && Family::stabilised; ++t) range.denominator(denominators[t]);
    turn(sizes, scratch.values, sizes.width, count, nullptr, nullptr, scratch.turned);
    const __m512 added = _mm512_set1_ps(epsilon);
    const float* const shifts = query_shifts<Family>(sizes, head, count, scratch);
    float* const ones = grad_state + static_cast<std::size_t>(sizes.features) * sizes.width;
    for (int group = 0; group < sizes.features; group += GROUP) {
        const int size = sizes.features - group < GROUP ? sizes.features - group : GROUP;
        for (int first = 0; first < size; first += ROWS) {
            const std::size_t feature = group + first;
            for (int column = 0; column < token_vectors(count); column += 2) {
                __m512 c[2 * ROWS];
                FeatureRange seen = range;
                form_features<Family>(sizes, head, static_cast<int>(feature / ROWS), scratch.x + column * LANES,
                                      shifts ? shifts + column * LANES : nullptr, added, c, seen);
                range = seen;
                for (int i = 0; i < 4; ++i) scratch.ahead.fetch();
                float* const features = scratch.features + first * BLOCK + column * LANES;
                const __m512 low = _mm512_load_ps(scratch.last + column * LANES);
                const __m512 high = _mm512_load_ps(scratch.last + (column + 1) * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; ++i) {
                    _mm512_store_ps(features + i * BLOCK, c[2 * i]);
                    _mm512_store_ps(features + i * BLOCK + LANES, c[2 * i + 1]);
                    const __m512 both = _mm512_fmadd_ps(c[2 * i], low, _mm512_mul_ps(c[2 * i + 1], high));
                    float* sum = ones + (feature + i) * LANES;
                    _mm512_store_ps(sum, first_block && column == 0 ? both : _mm512_add_ps(_mm512_load_ps(sum), both));
                    const __m512 of_ones = _mm512_set1_ps(state.sums[feature + i]);
                    c[2 * i] = _mm512_mul_ps(low, of_ones);
                    c[2 * i + 1] = _mm512_mul_ps(high, of_ones);
                }
                multiply<2, 1, ROWS>(c, state.panels + feature * sizes.dim, scratch.turned + column * LANES, BLOCK,
                                     sizes.dim);
                float* const grads = scratch.grads + first * BLOCK + column * LANES;
#pragma GCC unroll 16
                for (int i = 0; i < 2 * ROWS; ++i) {
                    const int at = i / 2 * BLOCK + i % 2 * LANES;
                    _mm512_store_ps(grads + at, Family::vjp(c[i], _mm512_load_ps(features + at), added));
                }
            }
            add_product<BLOCK, 1>(grad_state + feature * sizes.width, first_block, scratch.features + first * BLOCK,
                                  scratch.values, sizes.width, sizes.vectors, count);
        }
        for (int t = 0; t < count; t += ROWS)
            add_product<1, BLOCK>(scratch.joint + t * sizes.width, group == 0, scratch.grads + t,
                                  head.weight + static_cast<std::size_t>(group) * sizes.width, sizes.width, sizes.vectors, size);
    }
    store_query_gradients(sizes, head, count, scratch, grad_query);
}

// dS of a segment from those of its parts as operands.
static inline void finish_grad_state(const Sizes& sizes, float* parts, std::size_t next, int count, const float* centre,
                                     const GradState& out) {
    add_states(parts, next, sizes.state_floats(), count);
    const std::size_t floats = static_cast<std::size_t>(sizes.features) * sizes.width;
    const std::size_t there = static_cast<std::size_t>(sizes.rows) * sizes.width;
    for (std::size_t i = 0; i < floats; i += LANES)
        _mm512_store_ps(out.values + i, i < there ? _mm512_load_ps(parts + i) : _mm512_setzero_ps());
    for (int i = 0; i < sizes.features; ++i)
        out.sums[i] = i < sizes.rows ? _mm512_reduce_add_ps(_mm512_load_ps(parts + floats + i * LANES)) : 0;
    for (int d = 0; d < sizes.width; d += LANES) _mm512_store_ps(out.centre + d, _mm512_load_ps(centre + d));
    pack_panels(sizes, out.values, 1, out.panels);
}

// Gradients of up to BLOCK keys and their values.
template <class Family>
static inline void grade_keys(const Sizes& sizes, const Head& head, const float* key, const float* value, int count,
                              float epsilon, const float*, float largest, const GradState& state,
                              float* grad_key, float* grad_value, Scratch& scratch, FeatureRange& range) {
    turn(sizes, key, sizes.stride, count, head.key_scale, nullptr, scratch.x);
    turn(sizes, value, sizes.stride, count, nullptr, state.centre, scratch.turned);
    const __m512 added = _mm512_set1_ps(epsilon);
    const bool weighted = Family::stabilised && head.weighted();
    if (weighted) {
        weigh_keys(sizes, head, count, scratch, scratch.shifts);
        make_shifts<Family>(scratch.shifts, count, largest);
    }
    for (int t = 0; t < BLOCK; t += LANES) _mm512_store_ps(scratch.sums + t, _mm512_setzero_ps());
    for (int group = 0; group < sizes.features; group += GROUP) {
        const int size = sizes.features - group < GROUP ? sizes.features - group : GROUP;
        for (int first = 0; first < size; first += ROWS) {
            const std::size_t feature = group + first;
            for (int column = 0; column < token_vectors(count); column += 2) {
                __m512 c[2 * ROWS];
                FeatureRange seen = range;
                form_features<Family>(sizes, head, static_cast<int>(feature / ROWS), scratch.x + column * LANES,
                                      weighted ? scratch.shifts + column * LANES : nullptr, added, c, seen);
                range = seen;
                for (int i = 0; i < 4; ++i) scratch.ahead.fetch();
                float* const features = scratch.features + first * BLOCK + column * LANES;
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; ++i) {
                    _mm512_store_ps(features + i * BLOCK, c[2 * i]);
                    _mm512_store_ps(features + i * BLOCK + LANES, c[2 * i + 1]);
                    c[2 * i] = c[2 * i + 1] = _mm512_set1_ps(state.sums[feature + i]);
                }
                multiply<2, 1, ROWS>(c, state.panels + feature * sizes.dim, scratch.turned + column * LANES, BLOCK,
                                     sizes.dim);
                float* const grads = scratch.grads + first * BLOCK + column * LANES;
                __m512 low = _mm512_load_ps(scratch.sums + column * LANES);
                __m512 high = _mm512_load_ps(scratch.sums + (column + 1) * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; ++i) {
                    const __m512 a = Family::vjp(c[2 * i], _mm512_load_ps(features + i * BLOCK), added);
                    const __m512 b = Family::vjp(c[2 * i + 1], _mm512_load_ps(features + i * BLOCK + LANES), added);
                    _mm512_store_ps(grads + i * BLOCK, a);
                    _mm512_store_ps(grads + i * BLOCK + LANES, b);
                    low = _mm512_add_ps(low, a);
                    high = _mm512_add_ps(high, b);
                }
                _mm512_store_ps(scratch.sums + column * LANES, low);
                _mm512_store_ps(scratch.sums + (column + 1) * LANES, high);
            }
        }
        for (int t = 0; t < count; t += ROWS) {
            add_product<1, BLOCK>(scratch.others + t * sizes.width, group == 0, scratch.features + t,
                                  state.values + static_cast<std::size_t>(group) * sizes.width, sizes.width, sizes.vectors, size);
            add_product<1, BLOCK>(scratch.joint + t * sizes.width, group == 0, scratch.grads + t,
                                  head.weight + static_cast<std::size_t>(group) * sizes.width, sizes.width, sizes.vectors, size);
        }
    }
    store_key_gradients(sizes, head, key, count, weighted, scratch, grad_key, grad_value);
}

}  // namespace favor
