// Where a call's operands, states and buffers lie.

#pragma once

#include <cstdlib>

#include "backward.h"

namespace favor {

// Memory that is laid out twice: once to learn its size, once for good.
class Layout {
  public:
    explicit Layout(char* base) : base_(base) {}
    template <class T>
    T* take(std::size_t count) {
        const std::size_t at = size_;
        size_ += (count * sizeof(T) + 63) / 64 * 64;
        return reinterpret_cast<T*>(base_ + at);
    }
    std::size_t size() const { return size_; }

  private:
    char* base_;
    std::size_t size_ = 0;
};

// The calling thread's memory, kept from call to call while it is small: fresh pages cost more than what is done here.
class Memory {
  public:
    ~Memory() { std::free(at_); }
    char* get(std::size_t size) {
        if (size > size_) {
            std::free(at_);
            at_ = static_cast<char*>(std::aligned_alloc(64, size));
            size_ = at_ ? size : 0;
        }
        return at_;
    }
    void done() {
        if (size_ <= KEPT) return;
        std::free(at_);
        at_ = nullptr;
        size_ = 0;
    }

  private:
    static constexpr std::size_t KEPT = std::size_t{64} << 20;
    char* at_ = nullptr;
    std::size_t size_ = 0;
};

// What finished states of one segment and head are kept in.
struct Operands {
    State state;
    GradState grads;
};

static inline Operands take_operands(const Sizes& sizes, bool backward, Layout& layout) {
    const std::size_t steps = sizes.feature_steps, plain = std::size_t(sizes.dim_steps) * sizes.feature_tiles * LEFT;
    Operands x{};
    x.state.over_features = layout.take<bf16>(steps * sizes.joint_tiles() * LEFT);
    x.state.sums = layout.take<float>(sizes.features);
    x.state.centre = layout.take<float>(sizes.dim);
    x.state.largest = layout.take<float>(1);
    if (!backward) return x;
    x.state.over_dims = layout.take<bf16>(plain);
    x.grads.over_features = layout.take<bf16>(steps * sizes.dim_tiles * LEFT);
    x.grads.over_dims = layout.take<bf16>(plain);
    x.grads.added = layout.take<float>(sizes.features);
    return x;
}

static inline Scratch take_scratch(const Sizes& sizes, bool backward, Layout& layout) {
    const std::size_t dims = sizes.dim_steps, steps = sizes.feature_steps, width = sizes.joint_tiles();
    Scratch x{};
    x.keys = layout.take<bf16>(dims * 8 * LEFT);
    x.values = layout.take<bf16>(4 * width * LEFT);
    x.key_features = layout.take<bf16>(2 * 4 * LEFT);
    x.features = layout.take<bf16>(2 * steps * LEFT);
    for (bf16*& tail : x.tails) tail = layout.take<bf16>(std::size_t(BLOCK) * sizes.dim);
    x.logits = layout.take<float>(8 * RESULT);
    x.joint = layout.take<float>(2 * width * RESULT);
    x.starts = layout.take<float>(2 * steps * 4 * RESULT);
    x.ones = -1;
    if (!backward) return x;
    x.paired = layout.take<bf16>(4 * 2 * steps * LEFT);
    x.grads = layout.take<bf16>(2 * dims * LEFT);
    x.turned = layout.take<bf16>(width * 4 * LEFT);
    x.grad_logits = layout.take<bf16>(2 * steps * LEFT);
    x.kept = layout.take<float>(2 * 2 * steps * RESULT);
    return x;
}

// W of one head as its three operands; false where an entry is no bf16 number.
static inline bool pack_projection(const Sizes& sizes, const float* weight, bf16* left, bf16* over_dims,
                                   bf16* over_features) {
    __mmask16 inexact = 0;
    for (int tile = 0; tile < sizes.feature_tiles; ++tile)
        for (int step = 0; step < sizes.dim_steps; ++step) {
            __m512i x[16];
            bf16* rows = left + (tile * sizes.dim_steps + step) * LEFT;
            for (int i = 0; i < LANES; ++i) {
                const int row = tile * LANES + i;
                const float* at = weight + static_cast<std::size_t>(row) * sizes.dim + step * STEP;
                const bool there = row < sizes.rows;
                const __m512 a = there ? _mm512_loadu_ps(at) : _mm512_setzero_ps();
                const __m512 b = there ? _mm512_loadu_ps(at + LANES) : _mm512_setzero_ps();
                const __m512i any = _mm512_or_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b));
                inexact |= _mm512_test_epi32_mask(any, _mm512_set1_epi32(0xffff));
                x[i] = round_pair(a, b);
                store(rows + i * STEP, x[i]);
            }
            bf16* pairs = over_features + (tile / 2 * sizes.dim_tiles + 2 * step) * LEFT + tile % 2 * 8 * STEP;
            for (int i = 0; i < LANES; i += 2)
                interleave_rows(x[i], x[i + 1], pairs + i / 2 * STEP, pairs + LEFT + i / 2 * STEP);
            transpose(x);
            bf16* turned = over_dims + (step * sizes.feature_tiles + tile) * LEFT;
            for (int r = 0; r < LANES; ++r) store(turned + r * STEP, x[r]);
        }
    return inexact == 0;
}

}  // namespace favor
