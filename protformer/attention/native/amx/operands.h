// What a call and its workers keep, and where it lies.

#pragma once

#include <new>

#include "../memory.h"
#include "causal.h"

namespace favor {

// `kept`: where the state lies that the backward reads, or null.
static inline Operands take_operands(const Sizes& sizes, bool backward, Layout& layout, float* kept) {
    const std::size_t plain = std::size_t(sizes.dim_steps) * sizes.feature_tiles * LEFT;
    const bool whole = backward || kept;
    if (!kept) kept = layout.take<float>(sizes.kept_floats());
    Operands x{};
    x.state.sums = kept;
    x.state.centre = x.state.sums + sizes.features;
    x.state.largest = x.state.centre + sizes.dim;
    x.state.over_features = reinterpret_cast<bf16*>(x.state.largest + LANES);
    if (whole) x.state.over_dims = x.state.over_features + sizes.feature_steps * sizes.joint_tiles() * LEFT;
    if (!backward) return x;
    x.grads.over_features = layout.take<bf16>(std::size_t(sizes.feature_steps) * sizes.dim_tiles * LEFT);
    x.grads.over_dims = layout.take<bf16>(plain);
    x.grads.added = layout.take<float>(sizes.features);
    return x;
}

// `states`: of heads that go side by side.
static inline void take_causal(const Sizes& sizes, bool backward, int states, Layout& layout, Scratch& scratch) {
    const std::size_t dims = sizes.dim_steps, steps = sizes.feature_steps;
    scratch.causal = layout.take<CausalScratch>(1);
    CausalScratch x{};
    for (bf16** tiles : {&x.own, &x.own_queries}) *tiles = layout.take<bf16>(2 * steps * LEFT);
    for (bf16** tiles : {&x.others, &x.others_over, &x.keys_turned}) *tiles = layout.take<bf16>(4 * steps * LEFT);
    for (bf16** tiles : {&x.mixing, &x.grad_mixing}) *tiles = layout.take<bf16>(4 * LEFT);
    for (bf16** tiles : {&x.rows, &x.across, &x.grads_paired}) *tiles = layout.take<bf16>(4 * dims * LEFT);
    x.kept = layout.take<float>(4 * steps * RESULT);
    x.tiles = layout.take<float>(8 * RESULT);
    x.states = layout.take<float>(states * sizes.state_floats());
    x.sums = layout.take<float>(std::size_t(states) * sizes.features);
    x.centres = layout.take<float>(std::size_t(sizes.heads) * sizes.dim);
    x.operands = take_operands(sizes, backward, layout, nullptr);
    if (layout.real()) new (scratch.causal) CausalScratch(x);
}

// `states`: how many heads' causal states there may be at once; none where attention is two-way.
static inline Scratch take_scratch(const Sizes& sizes, bool backward, int states, Layout& layout) {
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
    if (states > 0) take_causal(sizes, backward, states, layout, x);
    if (!backward) return x;
    x.paired = layout.take<bf16>(4 * 2 * steps * LEFT);
    x.grads = layout.take<bf16>(2 * dims * LEFT);
    x.turned = layout.take<bf16>(width * 4 * LEFT);
    x.grad_logits = layout.take<bf16>(2 * steps * LEFT);
    x.kept = layout.take<float>(2 * 2 * steps * RESULT);
    return x;
}

// W of one head as its three operands.
struct Projection {
    bf16 *left, *over_dims, *over_features;
    float reach;
};

static inline Projection take_projection(const Sizes& sizes, Layout& layout) {
    const std::size_t size = std::size_t(sizes.dim_steps) * sizes.feature_tiles * LEFT;
    return {layout.take<bf16>(size), layout.take<bf16>(size), layout.take<bf16>(size), 0};
}

// (inputs that are scaled are no bf16 numbers: the door keeps them out)
static inline Head make_head(const Projection& projection, float norm, const float* tilt, const float* offset,
                             const float*, const float*) {
    // (what is added to logits may be most of them: |q| then says nothing)
    const float reach = offset ? 0 : projection.reach;
    return {projection.left, projection.over_dims, projection.over_features, norm, tilt, offset, reach};
}

// False where an entry is no bf16 number.
template <class Family>
static inline bool pack_projection(const Sizes& sizes, const float* weight, Projection& out) {
    __mmask16 inexact = 0;
    out.reach = reach_of(weight, sizes.rows, sizes.dim);
    for (int tile = 0; tile < sizes.feature_tiles; ++tile)
        for (int step = 0; step < sizes.dim_steps; ++step) {
            __m512i x[16];
            bf16* rows = out.left + (tile * sizes.dim_steps + step) * LEFT;
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
            bf16* pairs = out.over_features + (tile / 2 * sizes.dim_tiles + 2 * step) * LEFT + tile % 2 * 8 * STEP;
            for (int i = 0; i < LANES; i += 2)
                interleave_rows(x[i], x[i + 1], pairs + i / 2 * STEP, pairs + LEFT + i / 2 * STEP);
            transpose(x);
            bf16* turned = out.over_dims + (step * sizes.feature_tiles + tile) * LEFT;
            for (int r = 0; r < LANES; ++r) store(turned + r * STEP, x[r]);
        }
    return inexact == 0;
}

}  // namespace favor
