// The causal Performer in bf16, one segment and head after another in blocks of 32 rows: as `avx512/causal.h`, whose
// formulas hold here, in tiles.

#pragma once

#include <algorithm>

#include "causal_scratch.h"

namespace favor {

template <class Family>
class Causal {
  public:
    Causal(const Sizes& sizes, const Head& head, const Sequence& rows, float epsilon, Scratch& scratch)
        : z_(sizes), head_(head), rows_(rows), s_(scratch), c_(*scratch.causal), epsilon_(epsilon) {
        weighted_ = Family::stabilised && head.weighted();
    }

    // Both return whether logits and weights were in range.
    bool forward() {
        begin_walk(0);
        for (long at = 0; at < rows_.length; at += SUB) {
            begin(at, at + SUB);
            form_queries(nullptr, nullptr);
            form_keys(nullptr);
            form_values(of(rows_.value), z_.stride);
            answer();
            for (int t = 0; t < count_; ++t) {
                const float* joint = s_.joint + t / LANES * z_.joint_tiles() * RESULT + t % LANES * LANES;
                const __m512 reciprocal = _mm512_set1_ps(reciprocals_[t]);
                for (int d = 0; d < z_.dim; d += 32, joint += 2 * RESULT)
                    store(of(rows_.out) + t * z_.stride + d,
                          round_pair(_mm512_mul_ps(_mm512_loadu_ps(joint), reciprocal),
                                     _mm512_mul_ps(_mm512_loadu_ps(joint + RESULT), reciprocal)));
            }
            grow_state();
        }
        return in_range();
    }

    bool backward() {
        backward_ = true;
        begin_walk(1024);
        for (long at = 0; at < rows_.length; at += SUB) {
            begin(at, at + SUB);
            form_queries(c_.query_kept, nullptr);
            form_keys(nullptr);
            form_centred_values();
            answer();
            form_grads(z_, whole_rows(z_, of(rows_.grad_out), count_, s_.tails[1]), reciprocals_, 0, s_, last_);
            for (int t = 0; t < count_; ++t) {
                rows_.spare[2 * (at + t)] = reciprocals_[t];
                rows_.spare[2 * (at + t) + 1] = last_[t];
            }
            mix_grads(false);
            grade_queries(at > 0);
            grade_inputs(z_, head_, of(rows_.grad_query), count_, s_);
            grow_state();
        }
        if (!in_range()) return false;
        const std::size_t floats = z_.state_floats();
        std::fill(c_.state, c_.state + floats, 0.0f);
        std::fill(c_.nothing, c_.nothing + z_.dim, 0.0f);
        const long end = (rows_.length - 1) / SUB * SUB;
        for (long at = end; at >= 0; at -= SUB) {
            begin(at, at - SUB);
            form_queries(nullptr, c_.queries_paired);
            form_keys(c_.key_kept);
            form_centred_values();
            for (int t = 0; t < SUB; ++t) {
                reciprocals_[t] = t < count_ ? rows_.spare[2 * (at + t)] : 0;
                last_[t] = t < count_ ? rows_.spare[2 * (at + t) + 1] : 0;
            }
            form_grads(z_, whole_rows(z_, of(rows_.grad_out), count_, s_.tails[1]), reciprocals_, 0, s_, last_, true);
            mix(true);
            mix_grads(true);
            if (at < end) finish_grad_state(z_, c_.state, 0, 1, c_.nothing, c_.operands.grads);
            grade_values(at < end);
            grade_keys(at < end);
            grow_grad_state();
        }
        return true;
    }

  private:
    static constexpr float RANGE = 20;  // logits: a row's denominator is a sum over its own past alone

    bool in_range() const { return !range_.left(RANGE) && !weights_.spread(); }

    template <class T>
    T* of(T* x) const {
        return x + at_ * static_cast<long>(z_.stride);
    }

    // `next` is the block that comes after.
    void begin(long at, long next) {
        at_ = at;
        rows_.fetch(next, SUB, z_.stride, z_.dim, backward_);
        count_ = static_cast<int>(std::min<long>(SUB, rows_.length - at));
    }

    // The centre is the mean of the first values, up to `most` of them.
    void begin_walk(long most) {
        std::fill(c_.state, c_.state + z_.state_floats(), 0.0f);
        std::fill(c_.operands.state.sums, c_.operands.state.sums + z_.features, 0.0f);
        const long count = std::min(most, rows_.length);
        const __m512 factor = _mm512_set1_ps(1 / static_cast<float>(std::max(count, 1L)));
        for (int d = 0; d < z_.dim; d += LANES) {
            __m512 sum = _mm512_setzero_ps();
            for (long t = 0; t < count; ++t) sum = _mm512_add_ps(sum, load_bf16(rows_.value + t * z_.stride + d));
            _mm512_storeu_ps(c_.centre + d, _mm512_mul_ps(sum, factor));
        }
    }

    void form_queries(float* kept, bf16* paired) {
        const Rows rows = whole_rows(z_, of(rows_.query), count_, s_.tails[0]);
        s_.features = c_.queries;
        row_features<Family>(z_, head_, left_in_place(rows.at, rows.stride), nullptr, epsilon_, s_, kept, paired, range_);
    }

    void form_keys(float* kept) {
        keys_ = whole_rows(z_, of(rows_.key), count_, s_.tails[0]);
        alignas(64) float shifts[SUB] = {};
        if (weighted_)
            for (int t = 0; t < count_; ++t) {
                const float weight = weigh(keys_.at + t * keys_.stride);
                if (at_ + t == 0) weights_.first = weight;
                weights_.see(weight);
                shifts[t] = (weight - weights_.first) * LOG2E;
            }
        s_.features = c_.keys;
        row_features<Family>(z_, head_, left_in_place(keys_.at, keys_.stride), weighted_ ? shifts : nullptr, epsilon_, s_,
                             kept, c_.keys_paired, range_);
        if (z_.rows < z_.features) drop_padding(kept);  // here features meet features, and no zeros of a state
        for (int step = 0; step < z_.feature_steps; ++step)
            for (int half = 0; half < 2; ++half)
                turn_tile(c_.keys + (half * z_.feature_steps + step) * LEFT, c_.keys_over + (2 * step + half) * LEFT);
    }

    float weigh(const bf16* key) const {
        __m512 squares = _mm512_setzero_ps(), tilted = squares;
        for (int d = 0; d < z_.dim; d += LANES) {
            const __m512 x = load_bf16(key + d);
            squares = _mm512_fmadd_ps(x, x, squares);
            if (head_.tilt) tilted = _mm512_fmadd_ps(x, _mm512_loadu_ps(head_.tilt + d), tilted);
        }
        return _mm512_reduce_add_ps(_mm512_fmadd_ps(squares, _mm512_set1_ps(head_.norm), tilted));
    }

    void drop_padding(float* kept) {
        const int step = z_.feature_steps - 1, there = z_.rows - step * STEP;
        for (int half = 0; half < 2; ++half)
            for (int t = 0; t < LANES; ++t) {
                bf16* row = c_.keys + (half * z_.feature_steps + step) * LEFT + t * STEP;
                store(row, _mm512_maskz_mov_epi16((1u << there) - 1, load(row)));
            }
        for (int tile = 0; tile < 2; ++tile)
            for (int pair = 0; pair < LANES; ++pair) {
                bf16* row = c_.keys_paired + (2 * step + tile) * LEFT + pair * STEP;
                store(row, _mm512_maskz_mov_epi32(lanes(there - tile * LANES), load(row)));
            }
        for (int half = 0; half < 2 && kept; ++half)
            for (int tile = 0; tile < 2; ++tile)
                for (int t = 0; t < LANES; ++t) {
                    float* row = kept + (half * z_.feature_tiles + 2 * step + tile) * RESULT + t * LANES;
                    _mm512_storeu_ps(row, _mm512_maskz_loadu_ps(lanes(there - tile * LANES), row));
                }
    }

    // A left operand's tile as a right operand's, or the reverse.
    static void turn_tile(const bf16* from, bf16* to) {
        __m512i x[16];
        for (int i = 0; i < LANES; ++i) x[i] = load(from + i * STEP);
        transpose(x);
        for (int i = 0; i < LANES; ++i) store(to + i * STEP, x[i]);
    }

    void form_values(const bf16* values, std::size_t stride) {
        s_.ones = -1;
        if (stride == z_.stride)
            pair_values(z_, whole_rows(z_, values, count_, s_.tails[1]), count_, s_);
        else
            pair_values(z_, {values, stride}, count_, s_);
    }

    void form_centred_values() {
        for (int t = 0; t < SUB; ++t)
            for (int d = 0; d < z_.dim; d += 32) {
                bf16* out = c_.rows + t * z_.dim + d;
                if (t >= count_) {
                    store(out, _mm512_setzero_si512());
                    continue;
                }
                const bf16* row = of(rows_.value) + t * z_.stride + d;
                store(out, round_pair(_mm512_sub_ps(load_bf16(row), _mm512_loadu_ps(c_.centre + d)),
                                      _mm512_sub_ps(load_bf16(row + LANES), _mm512_loadu_ps(c_.centre + d + LANES))));
            }
        form_values(c_.rows, z_.dim);
        for (int step = 0; step < z_.dim_steps; ++step)
            for (int half = 0; half < 2; ++half) {
                __m512i x[16];
                for (int i = 0; i < LANES; ++i) x[i] = load(c_.rows + (half * LANES + i) * z_.dim + step * STEP);
                transpose(x);
                bf16* tile = c_.values_over + (2 * step + half) * LEFT;
                for (int i = 0; i < LANES; ++i) store(tile + i * STEP, x[i]);
            }
    }

    // The 2 x 2 results as a left operand, without what is beyond the diagonal; turned, the sum then is over rows.
    void keep_lower(bf16* out, bool turned) {
        for (int t = 0; t < SUB; ++t)
            for (int half = 0; half < 2; ++half) {
                float* row = c_.tiles + (t / LANES * 2 + half) * RESULT + t % LANES * LANES;
                _mm512_storeu_ps(row, _mm512_maskz_loadu_ps(lanes(t + 1 - half * LANES), row));
            }
        if (turned)
            for (int i = 0; i < 4; ++i) {
                __m512i x[16];
                for (int t = 0; t < LANES; ++t) x[t] = load(c_.tiles + i * RESULT + t * LANES);
                transpose(x);
                for (int t = 0; t < LANES; ++t) store(c_.tiles + i * RESULT + t * LANES, x[t]);
            }
        for (int t = 0; t < SUB; ++t) {
            const int half = t / LANES, place = t % LANES * LANES;
            const float* first = c_.tiles + (turned ? half : 2 * half) * RESULT + place;
            const float* second = c_.tiles + (turned ? 2 + half : 2 * half + 1) * RESULT + place;
            store(out + half * LEFT + t % LANES * STEP, round_pair(_mm512_loadu_ps(first), _mm512_loadu_ps(second)));
        }
    }

    void mix(bool turned) {
        multiply<2, 2>({c_.tiles, RESULT, 2 * RESULT}, nullptr, left_tiles(c_.queries, z_.feature_steps * LEFT, LEFT),
                       {c_.keys_over, LEFT, 2 * LEFT}, z_.feature_steps);
        keep_lower(c_.mixing, turned);
    }

    void mix_grads(bool turned) {
        multiply<2, 2>({c_.tiles, RESULT, 2 * RESULT}, nullptr, left_tiles(s_.grads, z_.dim_steps * LEFT, LEFT),
                       {c_.values_over, LEFT, 2 * LEFT}, z_.dim_steps);
        for (int t = 0; t < SUB; ++t)
            for (int half = 0; half < 2; ++half) {
                float* row = c_.tiles + (t / LANES * 2 + half) * RESULT + t % LANES * LANES;
                _mm512_storeu_ps(row, _mm512_add_ps(_mm512_loadu_ps(row), _mm512_set1_ps(last_[t])));
            }
        keep_lower(c_.grad_mixing, turned);
    }

    // Numerators and the reciprocals of denominators.
    void answer() {
        mix(false);
        const std::size_t width = z_.joint_tiles();
        const Result joint{s_.joint, RESULT, width * RESULT};
        multiply_rows(joint, nullptr, left_tiles(c_.mixing, LEFT, LEFT), {s_.values, LEFT, width * LEFT},
                      static_cast<int>(width), 1);
        if (at_ > 0) {
            pack_state(z_, c_.state, c_.operands.state);
            multiply_rows(joint, s_.joint, left_tiles(c_.queries, z_.feature_steps * LEFT, LEFT),
                          {c_.operands.state.over_features, LEFT, width * LEFT}, static_cast<int>(width),
                          z_.feature_steps);
        }
        for (int t = 0; t < SUB; ++t) {
            const float* row = s_.joint + (t / LANES * width + z_.dim_tiles) * RESULT + t % LANES * LANES;
            const float sum = row[0] + row[1];
            reciprocals_[t] = 1 / (sum < 1.17549435e-38f ? 1.17549435e-38f : sum);  // (so NaN stays NaN)
        }
    }

    void grow_state() {
        const int width = static_cast<int>(z_.joint_tiles());
        for (int tile = 0; tile < z_.feature_tiles; ++tile)
            turn_tile(c_.keys_paired + tile * LEFT, c_.keys_turned + tile * LEFT);
        for (int group = 0; group < z_.feature_steps; ++group) {
            const Result result{c_.state + 2 * group * width * RESULT, RESULT, static_cast<std::size_t>(width) * RESULT};
            multiply_rows(result, result.at, left_tiles(c_.keys_turned + 2 * group * LEFT, LEFT, LEFT),
                          {s_.values, LEFT, static_cast<std::size_t>(width) * LEFT}, width, 1);
        }
        for (int i = 0; i < z_.rows; ++i)
            c_.operands.state.sums[i] = c_.state[(i / LANES * width + z_.dim_tiles) * RESULT + i % LANES * LANES];
    }

    // d f_q = B f_k + G P^T, and from it gradients of logits.
    void grade_queries(bool past) {
        const __m512 added = _mm512_set1_ps(epsilon_);
        for (int group = 0; group < z_.feature_steps; ++group) {
            const Result result{c_.tiles, RESULT, 2 * RESULT};
            multiply<2, 2>(result, nullptr, left_tiles(c_.grad_mixing, LEFT, LEFT),
                           {c_.keys_paired + 2 * group * LEFT, LEFT, 0}, 1);
            if (past)
                multiply<2, 2>(result, c_.tiles, left_tiles(s_.grads, z_.dim_steps * LEFT, LEFT),
                               {c_.operands.state.over_dims + 2 * group * LEFT, LEFT,
                                static_cast<std::size_t>(z_.feature_tiles) * LEFT},
                               z_.dim_steps);
            const __m512 sum_a = _mm512_loadu_ps(c_.operands.state.sums + group * 32);
            const __m512 sum_b = _mm512_loadu_ps(c_.operands.state.sums + group * 32 + LANES);
            for (int t = 0; t < SUB; ++t) {
                const float* grad = c_.tiles + t / LANES * 2 * RESULT + t % LANES * LANES;
                const __m512 factor = _mm512_set1_ps(last_[t]);
                store_logit_grads(group, t, _mm512_fmadd_ps(factor, sum_a, _mm512_loadu_ps(grad)),
                                  _mm512_fmadd_ps(factor, sum_b, _mm512_loadu_ps(grad + RESULT)), c_.query_kept, added);
            }
        }
    }

    // Gradients of two vectors of features as those of logits, into `grad_logits`; their sum.
    __m512 store_logit_grads(int group, int t, __m512 a, __m512 b, const float* kept, __m512 added) {
        const float* features = kept + (t / LANES * z_.feature_tiles + 2 * group) * RESULT + t % LANES * LANES;
        a = Family::vjp(a, _mm512_loadu_ps(features), added);
        b = Family::vjp(b, _mm512_loadu_ps(features + RESULT), added);
        store(s_.grad_logits + (t / LANES * z_.feature_steps + group) * LEFT + t % LANES * STEP, round_pair(a, b));
        return _mm512_add_ps(a, b);
    }

    // dv = A^T G + f_k R
    void grade_values(bool future) {
        for (int tile = 0; tile < z_.dim_tiles; ++tile)
            turn_tile(s_.turned + tile * 4 * LEFT, c_.grads_paired + tile * LEFT);
        for (int pair = 0; pair < z_.dim_steps; ++pair) {
            multiply<2, 2>({c_.tiles, RESULT, 2 * RESULT}, nullptr, left_tiles(c_.mixing, LEFT, LEFT),
                           {c_.grads_paired + 2 * pair * LEFT, LEFT, 0}, 1);
            if (future)
                multiply<2, 2>({c_.tiles, RESULT, 2 * RESULT}, c_.tiles,
                               left_tiles(c_.keys, z_.feature_steps * LEFT, LEFT),
                               {c_.operands.grads.over_features + 2 * pair * LEFT, LEFT,
                                static_cast<std::size_t>(z_.dim_tiles) * LEFT},
                               z_.feature_steps);
            store_rows(z_, c_.tiles, of(rows_.grad_value) + pair * STEP, count_);
        }
    }

    // d f_k = B^T f_q + [v, 1] R^T, and from it gradients of logits, weights and keys.
    void grade_keys(bool future) {
        const __m512 added = _mm512_set1_ps(epsilon_);
        __m512 totals[2][LANES];
        for (int t = 0; t < SUB; ++t) totals[t / LANES][t % LANES] = _mm512_setzero_ps();
        for (int group = 0; group < z_.feature_steps; ++group) {
            const Result result{c_.tiles, RESULT, 2 * RESULT};
            multiply<2, 2>(result, nullptr, left_tiles(c_.grad_mixing, LEFT, LEFT),
                           {c_.queries_paired + 2 * group * LEFT, LEFT, 0}, 1);
            if (future)
                multiply<2, 2>(result, c_.tiles, left_in_place(c_.rows, z_.dim),
                               {c_.operands.grads.over_dims + 2 * group * LEFT, LEFT,
                                static_cast<std::size_t>(z_.feature_tiles) * LEFT},
                               z_.dim_steps);
            __m512 added_a = _mm512_setzero_ps(), added_b = added_a;
            if (future) {
                added_a = _mm512_loadu_ps(c_.operands.grads.added + group * 32);
                added_b = _mm512_loadu_ps(c_.operands.grads.added + group * 32 + LANES);
            }
            for (int t = 0; t < SUB; ++t) {
                const float* grad = c_.tiles + t / LANES * 2 * RESULT + t % LANES * LANES;
                const __m512 sum = store_logit_grads(group, t, _mm512_add_ps(_mm512_loadu_ps(grad), added_a),
                                                     _mm512_add_ps(_mm512_loadu_ps(grad + RESULT), added_b), c_.key_kept,
                                                     added);
                __m512& total = totals[t / LANES][t % LANES];
                total = _mm512_add_ps(total, sum);
            }
        }
        grade_weighted(z_, head_, keys_, totals, weighted_, of(rows_.grad_key), count_, s_);
    }

    // R, turned like dS of `grade_queries` in backward.h.
    void grow_grad_state() {
        const std::size_t next = static_cast<std::size_t>(z_.feature_tiles);
        const Right features{c_.queries_paired, LEFT, next * LEFT};
        for (int row = 0; row < static_cast<int>(z_.joint_tiles()); ++row) {
            float* at = c_.state + row * next * RESULT;
            const Left grads = left_tiles(s_.turned + row * 4 * LEFT, 4 * LEFT, LEFT);
            for (int column = 0; column < z_.feature_tiles; column += 2)
                multiply<1, 2>({at + column * RESULT, RESULT, 0}, at + column * RESULT, grads,
                               {features.at + column * LEFT, LEFT, next * LEFT}, 1);
        }
    }

    const Sizes& z_;
    const Head& head_;
    const Sequence& rows_;
    Scratch& s_;
    CausalScratch& c_;
    const float epsilon_;
    bool weighted_, backward_ = false;
    Range range_;
    Weights weights_;
    Rows keys_{};
    float reciprocals_[SUB], last_[SUB];
    long at_ = 0;
    int count_ = 0;
};

// Whether logits and weights were in range.
template <class Family>
static inline bool serve_causal(const Sizes& sizes, const Head& head, const Sequence& rows, float epsilon, bool backward,
                                Scratch& scratch) {
    Causal<Family> causal(sizes, head, rows, epsilon, scratch);
    return backward ? causal.backward() : causal.forward();
}

}  // namespace favor
