// What a call and its workers keep, and where it lies.

#pragma once

#include "../memory.h"
#include "causal.h"

namespace favor {

// What finished states of one segment and head are kept in.
struct Operands {
    State state;
    GradState grads;
};

// `kept`: where the state lies that the backward reads, or null.
static inline Operands take_operands(const Sizes& sizes, bool backward, Layout& layout, float* kept) {
    const std::size_t size = static_cast<std::size_t>(sizes.features) * sizes.width;
    if (!kept) kept = layout.take<float>(sizes.kept_floats());
    Operands x{};
    x.state.values = kept;
    x.state.sums = kept + size;
    x.state.centre = x.state.sums + sizes.features;
    x.state.largest = x.state.centre + sizes.width;
    if (!backward) return x;
    x.state.panels = layout.take<float>(size);
    x.grads.values = layout.take<float>(size);
    x.grads.panels = layout.take<float>(size);
    x.grads.sums = layout.take<float>(sizes.features);
    x.grads.centre = layout.take<float>(sizes.width);
    return x;
}

static inline Scratch take_scratch(const Sizes& sizes, bool backward, int states, Layout& layout) {
    const bool causal = states > 0;
    const std::size_t rows = static_cast<std::size_t>(BLOCK) * sizes.width;
    Scratch x{};
    x.x = layout.take<float>(rows);
    x.values = layout.take<float>(rows);
    x.features = layout.take<float>(GROUP * BLOCK);
    x.joint = layout.take<float>(rows);
    x.shifts = layout.take<float>(BLOCK);
    x.sums = layout.take<float>(BLOCK);
    if (causal) {
        const std::size_t features = static_cast<std::size_t>(sizes.features) * BLOCK;
        x.query_features = layout.take<float>(features);
        x.key_features = layout.take<float>(features);
        x.mixing = layout.take<float>(BLOCK * BLOCK);
        x.state = layout.take<float>(static_cast<std::size_t>(sizes.features) * sizes.width);
        x.state_sums = layout.take<float>(sizes.features);
        x.centre = layout.take<float>(sizes.width);
    }
    if (causal && backward) {
        x.logit_grads = layout.take<float>(static_cast<std::size_t>(sizes.features) * BLOCK);
        x.turned_grads = layout.take<float>(rows);
        x.grad_rows = layout.take<float>(rows);
        x.grad_mixing = layout.take<float>(BLOCK * BLOCK);
    }
    if (!backward) return x;
    x.turned = layout.take<float>(rows);
    x.grads = layout.take<float>(GROUP * BLOCK);
    x.others = layout.take<float>(rows);
    x.last = layout.take<float>(BLOCK);
    return x;
}

// W of one head as its two operands.
struct Projection {
    float *panels, *weight;
    float reach;
};

static inline Projection take_projection(const Sizes& sizes, Layout& layout) {
    const std::size_t size = static_cast<std::size_t>(sizes.features) * sizes.width;
    return {layout.take<float>(size), layout.take<float>(size), 0};
}

static inline Head make_head(const Projection& projection, float norm, const float* tilt, const float* offset,
                             const float* query_scale, const float* key_scale) {
    // (what is added to logits may be most of them: |q| then says nothing)
    const float reach = offset ? 0 : projection.reach;
    return {projection.panels, projection.weight, norm, tilt, offset, query_scale, key_scale, reach};
}

// Always true: every number is taken as it is.
template <class Family>
static inline bool pack_projection(const Sizes& sizes, const float* weight, Projection& out) {
    out.reach = reach_of(weight, sizes.rows, sizes.dim);
    for (int row = 0; row < sizes.features; ++row)
        for (int d = 0; d < sizes.width; ++d)
            out.weight[static_cast<std::size_t>(row) * sizes.width + d] =
                row < sizes.rows && d < sizes.dim ? weight[static_cast<std::size_t>(row) * sizes.dim + d] : 0;
    pack_panels(sizes, out.weight, Family::PER_UNIT, out.panels);
    return true;
}

}  // namespace favor
