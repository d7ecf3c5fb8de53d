"""States of splits of segments, and their sums over a segment: what both directions of attention stand on.

A state is S_i = sum_t f_i(t) u_t with its sum z_i = sum_t f_i(t) c_t, over exp(M_i) for a maximum M_i of its own, so
that no factor exceeds 1. Forwards the rows are keys, u = v and c = 1. Backwards they are queries over their
denominators, u = d_out and c = -(d_out . out): f = exp(logit - L) with the log denominator L as a log weight. Both are
one pass of flash attention whose queries are the rows of the projection.

A long segment goes in splits of `split` rows, one program a split (and head, and block of features), so that one long
protein fills a GPU; the number of splits does not grow with the length, and with it neither does the memory. The grid
is an upper bound that needs no look at the offsets, total // split + segments; programs beyond the work list leave.
"""
# ruff: noqa: N803, N806, SIM102, SIM108 (a kernel's constants in capitals; ifs that are decided at compile time)

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from protformer.attention.triton.arithmetic import (
    EXPONENTIAL,
    NOTHING,
    RELU,
    VARYING,
    feature,
    key_weights,
    load_projection,
    load_rows,
    load_state,
    offset_of,
    only_if,
    product,
    scaled,
    store_state,
)

# Which split of a segment needs no state: none, or (causal) the last one of keys, the first one of queries.
SKIP_NONE = tl.constexpr(0)
SKIP_LAST = tl.constexpr(1)
SKIP_FIRST = tl.constexpr(2)
# What becomes of a segment's states: their sum in the first slot, or in each slot the sum of those before or after it.
SUM = tl.constexpr(0)
BEFORE = tl.constexpr(1)
AFTER = tl.constexpr(2)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def work_list_kernel(
    cu_seqlens, segments, slots, length, slot_segment, slot_start, segment_slot, BLOCK: tl.constexpr
):  # fmt: skip
    """Cuts segments into pieces of `length` rows: the segment and the first row of each piece, in order.

    slot_segment, slot_start `[slots]` (segment -1 beyond the last piece); segment_slot `[segments + 1]`, each segment's
    first piece. Each program counts the pieces of all segments and finds its own: no scan across programs.
    """
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.full([BLOCK], -1, tl.int32)
    start = tl.full([BLOCK], 0, tl.int32)
    counted = 0
    for first in range(0, segments, BLOCK):
        segment = first + tl.arange(0, BLOCK)
        there = segment < segments
        begin = tl.load(cu_seqlens + segment, mask=there, other=0)
        end = tl.load(cu_seqlens + segment + 1, mask=there, other=0)
        pieces = (end - begin + length - 1) // length
        stop_slot = counted + tl.cumsum(pieces, 0)
        start_slot = stop_slot - pieces
        hit = (start_slot[None, :] <= slot[:, None]) & (slot[:, None] < stop_slot[None, :])
        row = begin[None, :] + (slot[:, None] - start_slot[None, :]) * length
        found = tl.maximum(found, tl.max(tl.where(hit, segment[None, :], -1), 1))
        start = tl.maximum(start, tl.max(tl.where(hit, row, 0), 1))
        if tl.program_id(0) == 0:
            tl.store(segment_slot + segment, start_slot, mask=there)
        counted += tl.sum(pieces, 0)
    if tl.program_id(0) == 0:
        tl.store(segment_slot + segments, counted)
    tl.store(slot_segment + slot, found, mask=slot < slots)
    tl.store(slot_start + slot, start, mask=slot < slots)


@triton.jit
@no_type_check
def absorb(
    x, added, log_weight, den, delta, weights, record, first, phase, epsilon, maximum, sum_, state,
    OF_KEYS: tl.constexpr, FAMILY: tl.constexpr, ADAPTED: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, X_TERMS: tl.constexpr, U_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """The state of one block of features with a block of rows in it; `den` and `delta` are of queries."""
    # features down, rows across: the features are then the left operand of the second product, in registers
    nothing = tl.full([BLOCK_F, BLOCK_T], 0.0, tl.float32)
    logits = product(weights, tl.trans(x), nothing, 1, X_TERMS)
    if ADAPTED:
        logits += offset_of(record, first, ROWS, DIM, BLOCK_F)[:, None]
    if FAMILY == EXPONENTIAL:
        logits += log_weight[None, :]
        new = tl.maximum(maximum, tl.max(logits, 1))
        features = tl.exp(logits - new[:, None])
    else:
        features = feature(logits, phase, epsilon, FAMILY)
        if not OF_KEYS:
            features = features / den[None, :]
        new = maximum
        if FAMILY < RELU:
            new = tl.maximum(maximum, tl.max(log_weight, 0))
        features *= tl.exp(log_weight[None, :] - new[:, None])
    kept = tl.exp(maximum - new)
    if OF_KEYS:
        sum_ = sum_ * kept + tl.sum(features, 1)
    else:
        sum_ = sum_ * kept - tl.sum(features * delta[None, :], 1)
    state = product(features, added, state * kept[:, None], OWN_TERMS, U_TERMS)
    return new, sum_, state


@triton.jit
@no_type_check
def join(
    x, added, log_weight, den, delta, projection, record, maxima, sums, states, exists, epsilon,
    OF_KEYS: tl.constexpr, FAMILY: tl.constexpr, ADAPTED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, X_TERMS: tl.constexpr,
    U_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """A block of rows joins the state in a slot (of nothing, where none `exists` yet), over all its features."""
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    for block in range(PARTS * BLOCKS):
        phase = block // BLOCKS
        first = (block % BLOCKS) * BLOCK_F
        base = phase * ROWS
        live = first + tl.arange(0, BLOCK_F) < ROWS
        weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
        maximum, sum_, state = load_state(
            maxima + base, sums + base, states + base * DIM, first, live, exists, DIM, BLOCK_F, BLOCK_D
        )
        if FAMILY >= RELU:
            maximum = tl.full([BLOCK_F], 0.0, tl.float32)
        maximum, sum_, state = absorb(
            x, added, log_weight, den, delta, weights, record, first, phase, epsilon, maximum, sum_, state, OF_KEYS,
            FAMILY, ADAPTED, ROWS, DIM, BLOCK_T, BLOCK_F, X_TERMS, U_TERMS, OWN_TERMS,
        )  # fmt: skip
        tl.debug_barrier()  # all threads have read this block of the state before any writes it
        store_state(
            maxima + base, sums + base, states + base * DIM, first, live, maximum, sum_, state, DIM, BLOCK_F, BLOCK_D
        )


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def state_kernel(
    x, x_stride, x_head, u, u_stride, u_head, log_scales, denominators, deltas, projection, projection_head,
    record, record_segment, record_head, cu_seqlens, slot_segment, slot_start, maxima, sums, states,
    slots, total, split, norm_factor, epsilon, first_head,
    OF_KEYS: tl.constexpr, SKIP: tl.constexpr, FAMILY: tl.constexpr, ADAPTED: tl.constexpr, SCALED: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr, X_TERMS: tl.constexpr, U_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """The state of one split, head and block of features. The three `[heads, total]` are of queries."""
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    slot = tl.program_id(0) // (PARTS * BLOCKS)
    block = tl.program_id(0) % (PARTS * BLOCKS)
    phase = block // BLOCKS
    first = (block % BLOCKS) * BLOCK_F
    segment = tl.load(slot_segment + slot)
    if segment < 0:
        return
    begin = tl.load(cu_seqlens + segment)
    end = tl.load(cu_seqlens + segment + 1)
    start = tl.load(slot_start + slot)
    if SKIP == SKIP_LAST:
        if start + split >= end:
            return
    if SKIP == SKIP_FIRST:
        if start == begin:
            return
    stop = tl.minimum(start + split, end)
    local_head = tl.program_id(1)
    head = (local_head + first_head).to(tl.int64)
    x += head * x_head
    u += head * u_head
    record += segment.to(tl.int64) * record_segment + head * record_head
    weights = load_projection(projection + head * projection_head, first, ROWS, DIM, BLOCK_F, BLOCK_D)
    live = first + tl.arange(0, BLOCK_F) < ROWS
    maximum = tl.full([BLOCK_F], NOTHING, tl.float32)
    if FAMILY >= RELU:
        maximum = tl.full([BLOCK_F], 0.0, tl.float32)
    sum_ = tl.full([BLOCK_F], 0.0, tl.float32)
    state = tl.full([BLOCK_F, BLOCK_D], 0.0, tl.float32)
    for t in range(start, stop, BLOCK_T):
        rows = t + tl.arange(0, BLOCK_T)
        valid = rows < stop
        y = load_rows(x, x_stride, rows, valid, DIM, BLOCK_D)
        y = scaled(y, record, 1 if OF_KEYS else 0, SCALED, DIM, BLOCK_D)
        added = load_rows(u, u_stride, rows, valid, DIM, BLOCK_D)
        den = tl.full([BLOCK_T], 1.0, tl.float32)
        delta = tl.full([BLOCK_T], 0.0, tl.float32)
        if OF_KEYS:
            log_weight = key_weights(y, valid, record, norm_factor, FAMILY, ADAPTED, ROWS, DIM, BLOCK_D)
        else:
            delta = tl.load(deltas + head * total + rows, mask=valid, other=0.0)
            log_weight = tl.where(valid, 0.0, NOTHING)
            if FAMILY < RELU:
                log_weight = -tl.load(log_scales + head * total + rows, mask=valid, other=-NOTHING)
            if FAMILY != EXPONENTIAL:
                den = tl.load(denominators + head * total + rows, mask=valid, other=1.0)
        maximum, sum_, state = absorb(
            y, added, log_weight, den, delta, weights, record, first, phase, epsilon, maximum, sum_, state, OF_KEYS,
            FAMILY, ADAPTED, ROWS, DIM, BLOCK_T, BLOCK_F, X_TERMS, U_TERMS, OWN_TERMS,
        )  # fmt: skip
    slot_features = (local_head.to(tl.int64) * slots + slot) * (PARTS * ROWS) + phase * ROWS
    store_state(
        maxima + slot_features, sums + slot_features, states + slot_features * DIM, first, live, maximum, sum_, state,
        DIM, BLOCK_F, BLOCK_D,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def combine_kernel(
    segment_slot, maxima, sums, states, slots,
    HOW: tl.constexpr, FEATURES: tl.constexpr, DIM: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """In place: a segment's states summed into its first slot, or into each slot those of the slots before or after."""
    BLOCKS: tl.constexpr = (FEATURES + BLOCK_F - 1) // BLOCK_F
    segment = tl.program_id(0) // BLOCKS
    first = (tl.program_id(0) % BLOCKS) * BLOCK_F
    from_slot = tl.load(segment_slot + segment)
    count = tl.load(segment_slot + segment + 1) - from_slot
    if count <= 1:
        return
    live = first + tl.arange(0, BLOCK_F) < FEATURES
    maximum = tl.full([BLOCK_F], NOTHING, tl.float32)
    sum_ = tl.full([BLOCK_F], 0.0, tl.float32)
    state = tl.full([BLOCK_F, BLOCK_D], 0.0, tl.float32)
    for step in range(count):
        index = from_slot + step
        if HOW == AFTER:
            index = from_slot + (count - 1 - step)
        features = (tl.program_id(1).to(tl.int64) * slots + index) * FEATURES
        # the last split that an exclusive sum meets was never computed: nothing comes after it
        exists = (step + 1 < count) | (HOW == SUM)
        here, here_sum, here_state = load_state(
            maxima + features, sums + features, states + features * DIM, first, live, exists, DIM, BLOCK_F, BLOCK_D
        )
        if HOW != SUM:
            tl.debug_barrier()  # all threads have read the slot before any writes it
            store_state(
                maxima + features, sums + features, states + features * DIM, first, only_if(step > 0, live), maximum,
                sum_, state, DIM, BLOCK_F, BLOCK_D,
            )  # fmt: skip
        new = tl.maximum(maximum, here)
        kept = tl.exp(maximum - new)
        share = tl.exp(here - new)
        sum_ = sum_ * kept + here_sum * share
        state = state * kept[:, None] + here_state * share[:, None]
        maximum = new
    if HOW == SUM:
        features = (tl.program_id(1).to(tl.int64) * slots + from_slot) * FEATURES
        tl.debug_barrier()
        store_state(
            maxima + features, sums + features, states + features * DIM, first, live, maximum, sum_, state, DIM,
            BLOCK_F, BLOCK_D,
        )  # fmt: skip
