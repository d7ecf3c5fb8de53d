// The causal Performer in bf16, in blocks of 64 rows: as `avx512/causal.h`, whose formulas hold here, in tiles.
//
// Within a block 32 rows at a time look at those before them, themselves among them: the off-diagonal half of A costs a
// product, but a state is packed and grown once for 64 rows. Backward the walk is from the end, and keys look at
// queries: so A and B are formed turned, and nothing of them is transposed. Heads of a segment go side by side, a block
// of each in turn: their rows share pages, and alone each head would have to wait for all of them again.

#pragma once

#include <algorithm>
#include <vector>

#include "causal_scratch.h"

namespace favor {

template <class Family>
class Causal {
  public:
    Causal(const Sizes& sizes, const std::vector<Head>& heads, const std::vector<Sequence>& rows, float epsilon,
           Scratch& scratch)
        : z_(sizes), heads_(heads), all_rows_(rows), s_(scratch), c_(*scratch.causal), epsilon_(epsilon),
          length_(rows[0].length), first_weights_(heads.size()) {}

    // Both return whether features and denominators were in range.
    bool forward() {
        const Sequence& x = all_rows_[0];
        walk({{x.query, x.key, x.value, nullptr}, {x.out, nullptr}}, false, [&] {
            pair_values(z_, whole_rows(z_, of(rows_->value), count_, s_.tails[1]), count_, s_);
            look_back([&](int sub) {
                answer(sub, nullptr);
                for (int t = 0; t < here(sub); ++t) {
                    const float* joint = s_.joint + t / LANES * z_.joint_tiles() * RESULT + t % LANES * LANES;
                    const __m512 reciprocal = _mm512_set1_ps(reciprocals_[t]);
                    for (int d = 0; d < z_.dim; d += 32, joint += 2 * RESULT)
                        store(of(rows_->out, sub) + t * z_.stride + d,
                              round_pair(_mm512_mul_ps(_mm512_loadu_ps(joint), reciprocal),
                                         _mm512_mul_ps(_mm512_loadu_ps(joint + RESULT), reciprocal)));
                }
            });
        });
        return in_range();
    }

    bool backward() {
        set_centres();
        const Sequence& x = all_rows_[0];
        const Ahead queries{{x.query, x.key, x.value, x.grad_out}, {x.grad_query, nullptr}};
        walk(queries, false, [&] {
            form_centred_values();
            pair_values(z_, {c_.rows, static_cast<std::size_t>(z_.dim)}, count_, s_);
            for (int sub = 0; sub < subs_; ++sub)
                for (int step = 0; step < z_.dim_steps; ++step)
                    for (int half = 0; half < 2; ++half)
                        turn_tile(c_.rows + (sub * SUB + half * LANES) * z_.dim + step * STEP,
                                  c_.across + (4 * step + 2 * sub + half) * LEFT, z_.dim);
            look_back([&](int sub) {
                answer(sub, c_.kept);
                form_grads(z_, whole_rows(z_, of(rows_->grad_out, sub), here(sub), s_.tails[1]), reciprocals_, s_,
                           last_);
                float* spare = rows_->spare + 2 * (at_ + sub * SUB);
                for (int t = 0; t < here(sub); ++t) {
                    spare[2 * t] = reciprocals_[t];
                    spare[2 * t + 1] = last_[t];
                }
                grade_queries(sub);
                grade_inputs(z_, *head_, of(rows_->grad_query, sub), here(sub), s_);
            });
        });
        if (!in_range()) return false;
        const Ahead keys{{x.query, x.key, x.value, x.grad_out}, {x.grad_key, x.grad_value}};
        walk(keys, true, [&] {
            form_centred_values();
            const bool future = at_ + SPAN < length_;
            if (future)
                pack_grad_state(z_, state_, nullptr, c_.operands.grads);
            else
                std::fill(c_.operands.grads.added, c_.operands.grads.added + z_.features, 0.0f);
            for (int sub = subs_ - 1; sub >= 0; --sub) {
                show_queries(sub);
                form_keys(sub, c_.kept, nullptr);
                grade_values(sub, future);
                grade_keys(sub, future);
            }
            if (at_ > 0) add_grads(z_, s_, c_.others, subs_, !future, state_);
        });
        return true;
    }

  private:
    bool in_range() const {
        return !key_range_.left(KEY_MOST * heads_[0].room()) && !query_range_.left(QUERY_MOST);
    }

    // The block's rows, or 32 of them, of a tensor.
    template <class T>
    T* of(T* x, int sub = 0) const {
        return x + (at_ + sub * SUB) * static_cast<long>(z_.stride);
    }
    int here(int sub) const { return std::min(SUB, count_ - sub * SUB); }

    // body() for each block, heads in turn, and the rows of the block that comes next on their way.
    template <class Body>
    void walk(Ahead ahead, bool reverse, const Body& body) {
        const long heads = static_cast<long>(heads_.size()), end = (length_ + SPAN - 1) / SPAN * SPAN;
        s_.ahead = ahead;
        for (long done = 0; done < end; done += SPAN) {
            at_ = reverse ? end - SPAN - done : done;
            count_ = static_cast<int>(std::min<long>(SPAN, length_ - at_));
            subs_ = (count_ + SUB - 1) / SUB;
            const long next = !reverse ? at_ + count_ : at_ > 0 ? at_ - SPAN : length_;  // or the next segment's first
            const long rows = std::min<long>(SPAN, all_rows_[0].left - next);
            for (long h = 0; h < heads; ++h) {
                enter(h);
                const long from = next + rows * h / heads, to = next + rows * (h + 1) / heads;
                s_.ahead.begin(from * z_.stride, heads * z_.dim, z_.stride, to - from);
                body();
                while (s_.ahead.left > 0) s_.ahead.fetch();
            }
        }
    }

    void enter(long h) {
        head_ = &heads_[h];
        rows_ = &all_rows_[h];
        first_weight_ = &first_weights_[h];
        weighted_ = Family::stabilised && head_->weighted();
        centre_ = c_.centres + h * z_.dim;
        const long slot = length_ > SPAN ? h : 0;  // (a single block leaves no state)
        state_ = c_.states + slot * z_.state_floats();
        c_.operands.state.sums = c_.sums + slot * z_.features;
        set_head(z_, *head_, s_);
    }

    // The means of the first values.
    void set_centres() {
        const long count = std::min(1024L, length_), numbers = static_cast<long>(heads_.size()) * z_.dim;
        std::fill(c_.centres, c_.centres + numbers, 0.0f);
        for (long t = 0; t < count; ++t)
            for (long i = 0; i < numbers; i += LANES)
                _mm512_storeu_ps(c_.centres + i, _mm512_add_ps(_mm512_loadu_ps(c_.centres + i),
                                                               load_bf16(all_rows_[0].value + t * z_.stride + i)));
        for (long i = 0; i < numbers; ++i) c_.centres[i] /= static_cast<float>(count);
    }

    // A block's queries, 32 at a time, and the state that its keys grow.
    template <class Body>
    void look_back(const Body& body) {
        if (at_ > 0)
            pack_state(z_, state_, c_.operands.state);
        else
            std::fill(c_.operands.state.sums, c_.operands.state.sums + z_.features, 0.0f);
        for (int sub = 0; sub < subs_; ++sub) {
            bf16* paired = c_.others + sub * z_.feature_tiles * LEFT;
            form_keys(sub, nullptr, paired);
            show_features(sub, c_.own);
            for (int tile = 0; tile < z_.feature_tiles; ++tile)
                turn_tile(paired + tile * LEFT, c_.keys_turned + (2 * tile + sub) * LEFT);
            body(sub);
        }
        if (at_ + SPAN < length_) grow_state();
    }

    void form_queries(int sub, bf16* out, float* kept, bf16* paired) {
        const Rows rows = whole_rows(z_, of(rows_->query, sub), here(sub), s_.tails[0]);
        s_.features = out;
        float shifts[SUB];
        row_features<Family>(z_, *head_, left_in_place(rows.at, rows.stride),
                             query_shifts<Family>(z_, *head_, rows, shifts), epsilon_, s_, kept, paired, query_range_);
    }

    void form_keys(int sub, float* kept, bf16* paired) {
        keys_ = whole_rows(z_, of(rows_->key, sub), here(sub), s_.tails[0]);
        alignas(64) float shifts[SUB] = {};
        if (weighted_)
            for (int t = 0; t < here(sub); ++t) {
                const float weight = weigh(keys_.at + t * keys_.stride);
                if (at_ + sub * SUB + t == 0) *first_weight_ = weight;
                shifts[t] = (weight - *first_weight_) * LOG2E;
            }
        s_.features = c_.own;
        row_features<Family>(z_, *head_, left_in_place(keys_.at, keys_.stride), weighted_ ? shifts : nullptr, epsilon_,
                             s_, kept, paired, key_range_);
        if (z_.rows < z_.features) drop_padding(z_, c_.own, paired, kept);
    }

    float weigh(const bf16* key) const {
        __m512 squares = _mm512_setzero_ps(), tilted = squares;
        for (int d = 0; d < z_.dim; d += LANES) {
            const __m512 x = load_bf16(key + d);
            squares = _mm512_fmadd_ps(x, x, squares);
            if (head_->tilt) tilted = _mm512_fmadd_ps(x, _mm512_loadu_ps(head_->tilt + d), tilted);
        }
        return _mm512_reduce_add_ps(_mm512_fmadd_ps(squares, _mm512_set1_ps(head_->norm), tilted));
    }

    // Features of 32 rows as others look at them.
    void show_features(int sub, const bf16* features) {
        for (int step = 0; step < z_.feature_steps; ++step)
            for (int half = 0; half < 2; ++half)
                turn_tile(features + (half * z_.feature_steps + step) * LEFT,
                          c_.others_over + (4 * step + 2 * sub + half) * LEFT);
    }

    // Queries and G of 32 rows as keys look at them.
    void show_queries(int sub) {
        form_queries(sub, c_.own_queries, nullptr, c_.others + sub * z_.feature_tiles * LEFT);
        show_features(sub, c_.own_queries);
        const float* spare = rows_->spare + 2 * (at_ + sub * SUB);
        float* last = last_ + sub * SUB;
        for (int t = 0; t < SUB; ++t) {
            reciprocals_[t] = t < here(sub) ? spare[2 * t] : 0;
            last[t] = t < here(sub) ? spare[2 * t + 1] : 0;
        }
        form_grads(z_, whole_rows(z_, of(rows_->grad_out, sub), here(sub), s_.tails[1]), reciprocals_, s_, last, true);
        turn_grads(z_, sub, s_, last, c_.grads_paired + sub * z_.dim_tiles * LEFT);
        for (int step = 0; step < z_.dim_steps; ++step)
            for (int half = 0; half < 2; ++half)
                turn_tile(s_.grads + (half * z_.dim_steps + step) * LEFT,
                          c_.across + (4 * step + 2 * sub + half) * LEFT);
    }

    void form_centred_values() {
        for (int t = 0; t < subs_ * SUB; ++t)
            for (int d = 0; d < z_.dim; d += 32) {
                bf16* out = c_.rows + t * z_.dim + d;
                if (t >= count_) {
                    store(out, _mm512_setzero_si512());
                    continue;
                }
                const bf16* row = of(rows_->value) + t * z_.stride + d;
                store(out, round_pair(_mm512_sub_ps(load_bf16(row), _mm512_loadu_ps(centre_ + d)),
                                      _mm512_sub_ps(load_bf16(row + LANES), _mm512_loadu_ps(centre_ + d + LANES))));
            }
    }

    // Products of 32 rows with those before, `lower`, or with those behind, as the left operand `out`.
    void mix(int sub, bool lower, Left left, const bf16* others, int steps, const float* by_rows,
             const float* by_columns, bf16* out) {
        const int from = lower ? 0 : sub, to = lower ? sub + 1 : subs_;
        multiply_rows({c_.tiles, RESULT, 4 * RESULT}, nullptr, left, {others + 2 * from * LEFT, LEFT, 4 * LEFT},
                      2 * (to - from), steps);
        for (int other = from; other < to; ++other)
            keep_pairs(c_.tiles + 2 * (other - from) * RESULT, 4 * RESULT, other == sub, lower, by_rows,
                       by_columns ? by_columns + other * SUB : nullptr, out + other * LEFT);
    }

    Left own_features() const { return left_tiles(c_.own, z_.feature_steps * LEFT, LEFT); }
    Left own_rows(int sub) const { return left_in_place(c_.rows + sub * SUB * z_.dim, z_.dim); }

    // Numerators and the reciprocals of denominators.
    void answer(int sub, float* kept) {
        form_queries(sub, c_.own, kept, nullptr);
        mix(sub, true, own_features(), c_.others_over, z_.feature_steps, nullptr, nullptr, c_.mixing);
        const std::size_t width = z_.joint_tiles();
        multiply_rows({s_.joint, RESULT, width * RESULT}, nullptr, static_cast<int>(width),
                      Product{left_tiles(c_.mixing, 2 * LEFT, LEFT), {s_.values, LEFT, width * LEFT}, sub + 1},
                      Product{own_features(),
                              {c_.operands.state.over_features, LEFT, width * LEFT},
                              at_ > 0 ? z_.feature_steps : 0});
        invert_sums(z_, s_, reciprocals_);
        for (int t = 0; t < here(sub) && Family::stabilised; ++t)
            query_range_.denominator(1 / reciprocals_[t], head_->room());
    }

    void grow_state() {
        const std::size_t width = z_.joint_tiles();
        for (int group = 0; group < z_.feature_steps; ++group) {
            const Result result{state_ + 2 * group * width * RESULT, RESULT, width * RESULT};
            multiply_rows(result, at_ > 0 ? result.at : nullptr,
                          left_tiles(c_.keys_turned + 4 * group * LEFT, 2 * LEFT, LEFT),
                          {s_.values, LEFT, width * LEFT}, static_cast<int>(width), subs_);
        }
        for (int i = 0; i < z_.rows; ++i)
            c_.operands.state.sums[i] = state_[(i / LANES * width + z_.dim_tiles) * RESULT + i % LANES * LANES];
        std::fill(c_.operands.state.sums + z_.rows, c_.operands.state.sums + z_.features, 0.0f);
    }

    // d f_q = B f_k + G P^T, and from it gradients of logits.
    void grade_queries(int sub) {
        const Left grads = left_tiles(s_.grads, z_.dim_steps * LEFT, LEFT);
        mix(sub, true, grads, c_.across, z_.dim_steps, last_, nullptr, c_.grad_mixing);
        const std::size_t next = z_.feature_tiles * LEFT;
        grade_logits<Family>(
            z_, c_.kept, epsilon_, c_.operands.state.sums, last_, nullptr, s_,
            [&](int group, Result result) __attribute__((always_inline)) {
                multiply<2, 2>(result, nullptr,
                               Product{left_tiles(c_.grad_mixing, 2 * LEFT, LEFT),
                                       {c_.others + 2 * group * LEFT, LEFT, next},
                                       sub + 1},
                               Product{grads,
                                       {c_.operands.state.over_dims + 2 * group * LEFT, LEFT, next},
                                       at_ > 0 ? z_.dim_steps : 0});
            });
    }

    // dv = A^T G + f_k R
    void grade_values(int sub, bool future) {
        mix(sub, false, own_features(), c_.others_over, z_.feature_steps, nullptr, nullptr, c_.mixing);
        const std::size_t next = z_.dim_tiles * LEFT;
        for (int pair = 0; pair < z_.dim_steps; ++pair) {
            multiply<2, 2>({c_.tiles, RESULT, 2 * RESULT}, nullptr,
                           Product{left_tiles(c_.mixing + sub * LEFT, 2 * LEFT, LEFT),
                                   {c_.grads_paired + sub * next + 2 * pair * LEFT, LEFT, next},
                                   subs_ - sub},
                           Product{own_features(),
                                   {c_.operands.grads.over_features + 2 * pair * LEFT, LEFT, next},
                                   future ? z_.feature_steps : 0});
            store_rows(z_, c_.tiles, of(rows_->grad_value, sub) + pair * STEP, here(sub));
        }
    }

    // d f_k = B^T f_q + [v, 1] R^T, and from it gradients of logits, weights and keys.
    void grade_keys(int sub, bool future) {
        mix(sub, false, own_rows(sub), c_.across, z_.dim_steps, nullptr, last_, c_.grad_mixing);
        __m512 totals[2][LANES];
        for (int t = 0; t < SUB; ++t) totals[t / LANES][t % LANES] = _mm512_setzero_ps();
        const std::size_t next = z_.feature_tiles * LEFT;
        grade_logits<Family>(
            z_, c_.kept, epsilon_, c_.operands.grads.added, nullptr, weighted_ ? totals : nullptr, s_,
            [&](int group, Result result) __attribute__((always_inline)) {
                multiply<2, 2>(result, nullptr,
                               Product{left_tiles(c_.grad_mixing + sub * LEFT, 2 * LEFT, LEFT),
                                       {c_.others + sub * next + 2 * group * LEFT, LEFT, next},
                                       subs_ - sub},
                               Product{own_rows(sub),
                                       {c_.operands.grads.over_dims + 2 * group * LEFT, LEFT, next},
                                       future ? z_.dim_steps : 0});
            });
        grade_weighted(z_, *head_, keys_, totals, weighted_, of(rows_->grad_key, sub), here(sub), s_);
    }

    const Sizes& z_;
    const std::vector<Head>& heads_;
    const std::vector<Sequence>& all_rows_;
    Scratch& s_;
    CausalScratch& c_;
    const float epsilon_;
    const long length_;
    FeatureRange key_range_, query_range_;
    std::vector<float> first_weights_;  // of heads: what keys' weights are relative to
    // of the head and the block that are worked on
    const Head* head_ = nullptr;
    const Sequence* rows_ = nullptr;
    float *state_ = nullptr, *centre_ = nullptr, *first_weight_ = nullptr;
    bool weighted_ = false;
    Rows keys_{};
    float reciprocals_[SUB], last_[SPAN];
    long at_ = 0;
    int count_ = 0, subs_ = 0;
};

// Whether features and denominators of a segment's heads, neighbours in the tensors, were in range.
template <class Family>
static inline bool serve_causal(const Sizes& sizes, const std::vector<Head>& heads, const std::vector<Sequence>& rows,
                                float epsilon, bool backward, Scratch& scratch) {
    Causal<Family> causal(sizes, heads, rows, epsilon, scratch);
    return backward ? causal.backward() : causal.forward();
}

}  // namespace favor
