// The causal Performer, one segment and head after another, block by block, as in protformer/attention/favor_causal.py.
//
// With A = tril(f_q f_k^T) within a block and P = sum of f_k^T [v, 1] over earlier ones,
//     [numerator, denominator] = A [v, 1] + f_q P
// and backward, with G = [d_out, -(d_out . out)] / denominator, B = tril(G [v, 1]^T), R = sum of f_q^T G over later ones,
//     d f_q = B f_k + G P^T        d f_k = B^T f_q + [v, 1] R^T        dv = A^T G + f_k R (without its last column)
// In the backward values count from one vector, the mean of many: any one gives the same gradients, a near one better
// rounded. In the forward it is zero: what is not finite must not reach the rows before it.

#pragma once

#include <vector>

#include "backward.h"

namespace favor {

template <class Family>
class Causal {
  public:
    Causal(const Sizes& sizes, const Head& head, const Sequence& rows, float epsilon, Scratch& scratch)
        : sizes_(sizes), head_(head), rows_(rows), s_(scratch), epsilon_(epsilon) {
        weighted_ = Family::stabilised && head.weighted();
    }

    // Both return whether features and denominators were in range.
    bool forward() {
        clear_state();
        set_centre(0);
        for (long at = 0; at < rows_.length; at += BLOCK) {
            begin(at, at + BLOCK);
            form_keys(at == 0);
            form_queries();
            gather_values();
            mix();
            for (int column = 0; column < columns_; ++column) denominators(column);
            for (int t = 0; t < count_; t += ROWS) {
                float* joint = s_.joint + t * sizes_.width;
                add_product<1, BLOCK>(joint, true, s_.mixing + t, s_.values, sizes_.width, sizes_.vectors,
                                      std::min(t + ROWS, count_));
                if (at > 0)
                    add_product<1, BLOCK>(joint, false, s_.query_features + t, s_.state, sizes_.width, sizes_.vectors,
                                          sizes_.rows);
            }
            for (int t = 0; t < count_; ++t) {
                rows_.row_numbers[at + t] = s_.sums[t];
                if (Family::stabilised) query_range_.denominator(s_.sums[t], head_.room());
                const __m512 reciprocal = _mm512_set1_ps(1 / s_.sums[t]);
                for (int d = 0; d < sizes_.width; d += LANES) {
                    const __mmask16 there = lanes(sizes_.dim - d);
                    const __m512 row = _mm512_load_ps(s_.joint + t * sizes_.width + d);
                    _mm512_mask_storeu_ps(of(rows_.out) + t * sizes_.stride + d, there, _mm512_mul_ps(row, reciprocal));
                }
            }
            grow_state(s_.key_features, s_.values, nullptr);
        }
        return in_range();
    }

    bool backward() {
        backward_ = true;
        clear_state();
        set_centre(1024);
        for (long at = 0; at < rows_.length; at += BLOCK) {
            begin(at, at + BLOCK);
            form_keys(at == 0);
            form_queries();
            form_values_and_grads();
            mix_grads_turned();
            grade_query_logits(at > 0);
            for (int t = 0; t < count_; t += ROWS)
                add_product<1, BLOCK>(s_.joint + t * sizes_.width, true, s_.logit_grads + t, head_.weight, sizes_.width,
                                      sizes_.vectors, sizes_.rows);
            store_query_gradients(sizes_, head_, count_, s_, of(rows_.grad_query));
            grow_state(s_.key_features, s_.values, nullptr);
        }
        if (!in_range()) return false;
        clear_state();
        const long last = (rows_.length - 1) / BLOCK * BLOCK;
        for (long at = last; at >= 0; at -= BLOCK) {
            begin(at, at - BLOCK);
            form_keys(false);
            form_queries();
            form_values_and_grads();
            mix();
            mix_grads();
            grade_key_logits(at < last);
            for (int row = 0; row < count_; row += ROWS) {
                float* others = s_.others + row * sizes_.width;
                add_product<BLOCK, 1>(others, true, s_.mixing + row * BLOCK + row, s_.grad_rows + row * sizes_.width,
                                      sizes_.width, sizes_.vectors, count_ - row);
                if (at < last)
                    add_product<1, BLOCK>(others, false, s_.key_features + row, s_.state, sizes_.width, sizes_.vectors,
                                          sizes_.rows);
                add_product<1, BLOCK>(s_.joint + row * sizes_.width, true, s_.logit_grads + row, head_.weight,
                                      sizes_.width, sizes_.vectors, sizes_.rows);
            }
            store_key_gradients(sizes_, head_, of(rows_.key), count_, weighted_, s_, of(rows_.grad_key),
                                of(rows_.grad_value));
            grow_state(s_.query_features, s_.grad_rows, s_.last);
        }
        return true;
    }

  private:
    bool in_range() const { return !key_range_.left(KEY_MOST * head_.room()) && !query_range_.left(QUERY_MOST); }

    // `next` is the block that comes after.
    void begin(long at, long next) {
        at_ = at;
        rows_.fetch(next, BLOCK, sizes_.stride, sizes_.dim, backward_);
        count_ = static_cast<int>(std::min<long>(BLOCK, rows_.length - at));
        columns_ = token_vectors(count_);
    }
    template <class T>
    T* of(T* x) const {
        return x + at_ * static_cast<long>(sizes_.stride);
    }

    void clear_state() {
        std::fill(s_.state, s_.state + static_cast<std::size_t>(sizes_.features) * sizes_.width, 0.0f);
        std::fill(s_.state_sums, s_.state_sums + sizes_.features, 0.0f);
    }

    // The mean of the first values, up to `most` of them.
    void set_centre(long most) {
        const long count = std::min(most, rows_.length);
        for (int d = 0; d < sizes_.width; d += LANES) {
            __m512 sum = _mm512_setzero_ps();
            for (long t = 0; t < count; ++t)
                sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes(sizes_.dim - d), rows_.value + t * sizes_.stride + d));
            _mm512_store_ps(s_.centre + d, _mm512_div_ps(sum, _mm512_set1_ps(static_cast<float>(std::max(count, 1L)))));
        }
    }

    void form_all(const float* shifts, float* out, FeatureRange& range) {
        const __m512 added = _mm512_set1_ps(epsilon_);
        for (int first = 0; first < sizes_.features; first += ROWS)
            for (int column = 0; column < columns_; column += 2) {
                __m512 c[2 * ROWS];
                FeatureRange seen = range;
                form_features<Family>(sizes_, head_, first / ROWS, s_.x + column * LANES,
                                      shifts ? shifts + column * LANES : nullptr, added, c, seen);
                range = seen;
#pragma GCC unroll 16
                for (int i = 0; i < 2 * ROWS; ++i)
                    _mm512_store_ps(out + (first + i / 2) * BLOCK + (column + i % 2) * LANES, c[i]);
            }
        // (here features meet features, and no zeros of a state)
        std::fill(out + sizes_.rows * BLOCK, out + sizes_.features * BLOCK, 0.0f);
    }

    void form_keys(bool first) {
        turn(sizes_, of(rows_.key), sizes_.stride, count_, head_.key_scale, nullptr, s_.x);
        if (weighted_) {
            weigh_keys(sizes_, head_, count_, s_, s_.shifts);
            if (first) first_weight_ = s_.shifts[0];
            make_shifts<Family>(s_.shifts, count_, first_weight_);
        }
        form_all(weighted_ ? s_.shifts : nullptr, s_.key_features, key_range_);
        for (int column = count_ / LANES; column < columns_; ++column)  // rows that are not there weigh nothing
            for (int i = 0; i < sizes_.features; ++i) {
                float* at = s_.key_features + i * BLOCK + column * LANES;
                _mm512_store_ps(at, _mm512_maskz_load_ps(lanes(count_ - column * LANES), at));
            }
    }

    void form_queries() {
        turn(sizes_, of(rows_.query), sizes_.stride, count_, head_.query_scale, nullptr, s_.x);
        form_all(query_shifts<Family>(sizes_, head_, count_, s_), s_.query_features, query_range_);
    }

    void gather_values() {
        for (int t = 0; t < count_; ++t)
            for (int d = 0; d < sizes_.width; d += LANES) {
                const __mmask16 there = lanes(sizes_.dim - d);
                const __m512 row = _mm512_maskz_loadu_ps(there, of(rows_.value) + t * sizes_.stride + d);
                _mm512_store_ps(s_.values + t * sizes_.width + d,
                                _mm512_sub_ps(row, _mm512_load_ps(s_.centre + d)));
            }
    }

    void form_values_and_grads() {
        for (int t = 0; t < count_ && Family::stabilised; ++t)
            query_range_.denominator(rows_.row_numbers[at_ + t], head_.room());
        form_grads(sizes_, of(rows_.grad_out), of(rows_.out), rows_.row_numbers + at_, s_.centre, count_, s_.grad_rows,
                   s_.last);
        turn(sizes_, s_.grad_rows, sizes_.width, count_, nullptr, nullptr, s_.turned_grads);
        turn(sizes_, of(rows_.value), sizes_.stride, count_, nullptr, s_.centre, s_.turned);
        gather_values();
    }

    // Row s of `mixing` is A's column s: zero before s. Vectors of columns wholly before a row's 32 are never read.
    void mix() {
        for (int row = 0; row < count_; row += ROWS) {
            const int from = row / (2 * LANES) * 2;
            add_product<1, BLOCK>(s_.mixing + row * BLOCK + from * LANES, true, s_.key_features + row,
                                  s_.query_features + from * LANES, BLOCK, columns_ - from, sizes_.rows);
        }
        keep_upper(s_.mixing);
    }

    // Likewise B's columns, into `grad_mixing`.
    void mix_grads_turned() {
        for (int row = 0; row < count_; row += ROWS)
            for (int column = row / (2 * LANES) * 2; column < columns_; column += 2) {
                __m512 c[2 * ROWS];
#pragma GCC unroll 16
                for (int i = 0; i < 2 * ROWS; ++i) c[i] = _mm512_load_ps(s_.last + (column + i % 2) * LANES);
                multiply<2, 1, BLOCK>(c, s_.turned + row, s_.turned_grads + column * LANES, BLOCK, sizes_.dim);
#pragma GCC unroll 16
                for (int i = 0; i < 2 * ROWS; ++i)
                    _mm512_store_ps(s_.grad_mixing + (row + i / 2) * BLOCK + (column + i % 2) * LANES, c[i]);
            }
        keep_upper(s_.grad_mixing);
    }

    // Row t of `grad_mixing` is B's row t: zero behind t. Vectors of columns wholly behind a row's 32 are never read.
    void mix_grads() {
        for (int row = 0; row < count_; row += ROWS)
            for (int column = 0; column <= row / (2 * LANES) * 2; column += 2) {
                __m512 c[2 * ROWS];
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; ++i) c[2 * i] = c[2 * i + 1] = _mm512_set1_ps(s_.last[row + i]);
                multiply<2, 1, BLOCK>(c, s_.turned_grads + row, s_.turned + column * LANES, BLOCK, sizes_.dim);
#pragma GCC unroll 16
                for (int i = 0; i < 2 * ROWS; ++i) {
                    const int t = row + i / 2, place = (column + i % 2) * LANES;
                    _mm512_store_ps(s_.grad_mixing + t * BLOCK + place, _mm512_maskz_mov_ps(lanes(t + 1 - place), c[i]));
                }
            }
    }

    void keep_upper(float* x) const {
        for (int row = 0; row < count_; ++row)
            for (int place = row / (2 * LANES) * 2 * LANES; place < row; place += LANES) {
                const __mmask16 there = static_cast<__mmask16>(~lanes(row - place));
                _mm512_store_ps(x + row * BLOCK + place, _mm512_maskz_load_ps(there, x + row * BLOCK + place));
            }
    }

    void denominators(int column) {
        const int place = column * LANES, end = std::min(count_, place + LANES);
        __m512 sum = _mm512_setzero_ps();
        for (int row = 0; row < end; ++row) sum = _mm512_add_ps(sum, _mm512_load_ps(s_.mixing + row * BLOCK + place));
        for (int i = 0; i < sizes_.rows; ++i)
            sum = _mm512_fmadd_ps(_mm512_load_ps(s_.query_features + i * BLOCK + place),
                                  _mm512_set1_ps(s_.state_sums[i]), sum);
        // (in this order NaN stays NaN)
        _mm512_store_ps(s_.sums + place, _mm512_max_ps(_mm512_set1_ps(1.17549435e-38f), sum));
    }

    // The state and its sums take in a block: features^T [rows, numbers], ones where `numbers` is null.
    void grow_state(const float* features, const float* rows, const float* numbers) {
        for (int i = 0; i < sizes_.features; i += ROWS)
            add_product<BLOCK, 1>(s_.state + static_cast<std::size_t>(i) * sizes_.width, false, features + i * BLOCK, rows,
                                  sizes_.width, sizes_.vectors, count_);
        for (int i = 0; i < sizes_.features; ++i) {
            __m512 sum = _mm512_setzero_ps();
            for (int place = 0; place < count_; place += LANES) {
                const __m512 weight = numbers ? _mm512_load_ps(numbers + place) : _mm512_set1_ps(1);
                const __m512 x = _mm512_maskz_load_ps(lanes(count_ - place), features + i * BLOCK + place);
                sum = _mm512_fmadd_ps(x, weight, sum);
            }
            s_.state_sums[i] += _mm512_reduce_add_ps(sum);
        }
    }

    void grade_query_logits(bool past) {
        const __m512 added = _mm512_set1_ps(epsilon_);
        for (int first = 0; first < sizes_.features; first += ROWS)
            for (int column = 0; column < columns_; column += 2) {
                __m512 c[2 * ROWS];
#pragma GCC unroll 16
                for (int i = 0; i < 2 * ROWS; ++i)
                    c[i] = _mm512_mul_ps(_mm512_set1_ps(s_.state_sums[first + i / 2]),
                                         _mm512_load_ps(s_.last + (column + i % 2) * LANES));
                if (past)
                    multiply_rows(c, s_.state + static_cast<std::size_t>(first) * sizes_.width, sizes_.width,
                                  s_.turned_grads + column * LANES, BLOCK, sizes_.dim);
                multiply<2, BLOCK, 1>(c, s_.key_features + first * BLOCK, s_.grad_mixing + column * LANES, BLOCK,
                                      std::min(count_, (column + 2) * LANES));
                store_logit_grads(c, first, column, s_.query_features, added);
            }
    }

    void grade_key_logits(bool future) {
        const __m512 added = _mm512_set1_ps(epsilon_);
        for (int t = 0; t < BLOCK; t += LANES) _mm512_store_ps(s_.sums + t, _mm512_setzero_ps());
        for (int first = 0; first < sizes_.features; first += ROWS)
            for (int column = 0; column < columns_; column += 2) {
                const int place = column * LANES;
                __m512 c[2 * ROWS];
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; ++i) c[2 * i] = c[2 * i + 1] = _mm512_set1_ps(s_.state_sums[first + i]);
                if (future)
                    multiply_rows(c, s_.state + static_cast<std::size_t>(first) * sizes_.width, sizes_.width,
                                  s_.turned + place, BLOCK, sizes_.dim);
                multiply<2, BLOCK, 1>(c, s_.query_features + first * BLOCK + place, s_.grad_mixing + place * BLOCK + place,
                                      BLOCK, count_ - place);
                store_logit_grads(c, first, column, s_.key_features, added);
                for (int j = 0; j < 2; ++j) {
                    float* at = s_.sums + place + j * LANES;
                    __m512 sum = _mm512_load_ps(at);
#pragma GCC unroll 8
                    for (int i = 0; i < ROWS; ++i) sum = _mm512_add_ps(sum, c[2 * i + j]);
                    _mm512_store_ps(at, sum);
                }
            }
    }

    void store_logit_grads(__m512 (&c)[2 * ROWS], int first, int column, const float* features, __m512 added) const {
#pragma GCC unroll 16
        for (int i = 0; i < 2 * ROWS; ++i) {
            const int at = (first + i / 2) * BLOCK + (column + i % 2) * LANES;
            c[i] = Family::vjp(c[i], _mm512_load_ps(features + at), added);
            _mm512_store_ps(s_.logit_grads + at, c[i]);
        }
    }

    const Sizes& sizes_;
    const Head& head_;
    const Sequence& rows_;
    Scratch& s_;
    const float epsilon_;
    bool weighted_, backward_ = false;
    FeatureRange key_range_, query_range_;
    float first_weight_ = 0;  // what keys' weights are relative to
    long at_ = 0;
    int count_ = 0, columns_ = 0;
};

// Whether features and denominators of a segment's heads were in range.
template <class Family>
static inline bool serve_causal(const Sizes& sizes, const std::vector<Head>& heads, const std::vector<Sequence>& rows,
                                float epsilon, bool backward, Scratch& scratch) {
    bool in_range = true;
    for (std::size_t h = 0; h < heads.size(); ++h) {
        Causal<Family> causal(sizes, heads[h], rows[h], epsilon, scratch);
        in_range &= backward ? causal.backward() : causal.forward();
    }
    return in_range;
}

}  // namespace favor
