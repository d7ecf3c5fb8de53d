"""Queries and keys that meet the state of their whole segment: one program a block of rows (and head).

The stabiliser of the exponential family is per feature, M_i the maximum of the segment's keys, so that
exp(logit + M_i - max_i'(logit + M_i')) meets sums of which the largest is at least 1: a denominator is never below 1.
The maximum over i' is kept as flash attention keeps it over keys.

Backwards with G = [d_out, -delta] / den, delta = d_out . out:
    dlq_i = f_q,i (d_out . S_i - delta z_i) / den
but delta = sum_i f_q,i (d_out . S_i) / den is only known once all features have been seen, and the rounded `out` is no
substitute (it loses the gradients of queries of small norm): the features are walked twice.
"""
# ruff: noqa: N803, N806 (a kernel's constants in capitals; ifs that are decided at compile time)

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from protformer.attention.triton.arithmetic import (
    EXPONENTIAL,
    NOTHING,
    RELU,
    VARYING,
    derivative,
    feature,
    floored,
    key_gradient,
    key_weights,
    load_projection,
    load_rows,
    load_state,
    offset_of,
    product,
    scale_of,
    scaled,
    store_rows,
)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def query_kernel(
    q, q_stride, q_head, out, out_stride, out_head, saved, projection, projection_head,
    record, record_segment, record_head, cu_seqlens, block_segment, block_start, segment_slot, maxima, sums, states,
    slots, total, epsilon, first_head,
    FAMILY: tl.constexpr, ADAPTED: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, Q_TERMS: tl.constexpr,
    OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """out, and what the backward needs of a row: the log denominator (exponential), or the denominator in its scale."""
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    segment = tl.load(block_segment + tl.program_id(0))
    if segment < 0:
        return
    start = tl.load(block_start + tl.program_id(0))
    rows = start + tl.arange(0, BLOCK_T)
    valid = rows < tl.load(cu_seqlens + segment + 1)
    local_head = tl.program_id(1)
    head = (local_head + first_head).to(tl.int64)
    record += segment.to(tl.int64) * record_segment + head * record_head
    y = load_rows(q + head * q_head, q_stride, rows, valid, DIM, BLOCK_D)
    y = scaled(y, record, 0, SCALED, DIM, BLOCK_D)
    slot_features = (local_head.to(tl.int64) * slots + tl.load(segment_slot + segment)) * (PARTS * ROWS)
    scale = tl.full([BLOCK_T], NOTHING, tl.float32)
    den = tl.full([BLOCK_T], 0.0, tl.float32)
    num = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
    for block in range(PARTS * BLOCKS):
        phase = block // BLOCKS
        first = (block % BLOCKS) * BLOCK_F
        live = first + tl.arange(0, BLOCK_F) < ROWS
        weights = load_projection(projection + head * projection_head, first, ROWS, DIM, BLOCK_F, BLOCK_D)
        base = slot_features + phase * ROWS
        maximum, sum_, state = load_state(
            maxima + base, sums + base, states + base * DIM, first, live, True, DIM, BLOCK_F, BLOCK_D
        )
        nothing = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
        logits = product(y, tl.trans(weights), nothing, Q_TERMS, 1)
        if ADAPTED:
            logits += offset_of(record, first, ROWS, DIM, BLOCK_F)[None, :]
        if FAMILY == EXPONENTIAL:
            logits += maximum[None, :]
            new = tl.maximum(scale, tl.max(logits, 1))
            features = tl.exp(logits - new[:, None])
            kept = tl.exp(scale - new)
            scale = new
            den *= kept
            num *= kept[:, None]
        else:
            features = feature(logits, phase, epsilon, FAMILY)
        den += tl.sum(features * sum_[None, :], 1)
        num = product(features, state, num, OWN_TERMS, OWN_TERMS)
    if FAMILY == EXPONENTIAL:
        keep = scale + tl.log(den)
    else:
        den = floored(den, FAMILY, ROWS)
        keep = den
    store_rows(out + head * out_head, out_stride, rows, valid, num / den[:, None], DIM, BLOCK_D)
    tl.store(saved + head * total + rows, keep, mask=valid)


@triton.jit
@no_type_check
def _meet(
    y, grad, known, projection, record, maxima, sums, states, slot_features, block, epsilon,
    FAMILY: tl.constexpr, ADAPTED: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, Q_TERMS: tl.constexpr, G_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """One block of features of queries, of which the state is known: logits, features, d_out . S, z and the weights."""
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    phase = block // BLOCKS
    first = (block % BLOCKS) * BLOCK_F
    live = first + tl.arange(0, BLOCK_F) < ROWS
    weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
    base = slot_features + phase * ROWS
    maximum, sum_, state = load_state(
        maxima + base, sums + base, states + base * DIM, first, live, True, DIM, BLOCK_F, BLOCK_D
    )
    nothing = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
    logits = product(y, tl.trans(weights), nothing, Q_TERMS, 1)
    if ADAPTED:
        logits += offset_of(record, first, ROWS, DIM, BLOCK_F)[None, :]
    along = product(grad, tl.trans(state), nothing, G_TERMS, OWN_TERMS)
    if FAMILY == EXPONENTIAL:
        features = tl.exp(logits + maximum[None, :] - known[:, None])
    else:
        features = feature(logits, phase, epsilon, FAMILY)
    return logits, features, along, sum_, weights


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def query_gradient_kernel(
    q, q_stride, q_head, grad_out, grad_out_stride, grad_out_head, grad_q, grad_q_stride, grad_q_head,
    saved, deltas, query_scales, projection, projection_head, record, record_segment, record_head,
    cu_seqlens, block_segment, block_start, segment_slot, maxima, sums, states, slots, total, epsilon, first_head,
    FAMILY: tl.constexpr, ADAPTED: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, Q_TERMS: tl.constexpr,
    G_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """dq, delta, and (signed families) the log scale of each row, which here is its segment's maximum."""
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    segment = tl.load(block_segment + tl.program_id(0))
    if segment < 0:
        return
    start = tl.load(block_start + tl.program_id(0))
    rows = start + tl.arange(0, BLOCK_T)
    valid = rows < tl.load(cu_seqlens + segment + 1)
    local_head = tl.program_id(1)
    head = (local_head + first_head).to(tl.int64)
    record += segment.to(tl.int64) * record_segment + head * record_head
    y = load_rows(q + head * q_head, q_stride, rows, valid, DIM, BLOCK_D)
    y = scaled(y, record, 0, SCALED, DIM, BLOCK_D)
    grad = load_rows(grad_out + head * grad_out_head, grad_out_stride, rows, valid, DIM, BLOCK_D)
    projection += head * projection_head
    slot_features = (local_head.to(tl.int64) * slots + tl.load(segment_slot + segment)) * (PARTS * ROWS)
    known = tl.load(saved + head * total + rows, mask=valid, other=-NOTHING)
    delta = tl.full([BLOCK_T], 0.0, tl.float32)
    den = tl.full([BLOCK_T], 0.0, tl.float32)
    for block in range(PARTS * BLOCKS):
        _, features, along, sum_, _ = _meet(
            y, grad, known, projection, record, maxima, sums, states, slot_features, block, epsilon, FAMILY, ADAPTED,
            ROWS, DIM, BLOCK_T, BLOCK_F, BLOCK_D, Q_TERMS, G_TERMS, OWN_TERMS,
        )  # fmt: skip
        delta += tl.sum(features * along, 1)
        den += tl.sum(features * sum_[None, :], 1)
    if FAMILY != EXPONENTIAL:
        den = known
    # (the exponential's `den` is 1 up to the rounding of its logarithm: dividing by it makes delta exact)
    den = tl.where(valid, den, 1.0)
    delta /= den
    grad_y = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
    for block in range(PARTS * BLOCKS):
        logits, features, along, sum_, weights = _meet(
            y, grad, known, projection, record, maxima, sums, states, slot_features, block, epsilon, FAMILY, ADAPTED,
            ROWS, DIM, BLOCK_T, BLOCK_F, BLOCK_D, Q_TERMS, G_TERMS, OWN_TERMS,
        )  # fmt: skip
        slope = features
        if FAMILY != EXPONENTIAL:
            slope = derivative(logits, block // BLOCKS, FAMILY)
        grad_logits = slope * (along - delta[:, None] * sum_[None, :])
        grad_y = product(grad_logits, weights, grad_y, OWN_TERMS, 1)
    grad_y /= den[:, None]
    if SCALED:
        grad_y *= scale_of(record, 0, DIM, BLOCK_D)[None, :]
    store_rows(grad_q + head * grad_q_head, grad_q_stride, rows, valid, grad_y, DIM, BLOCK_D)
    tl.store(deltas + head * total + rows, delta, mask=valid)
    if (FAMILY != EXPONENTIAL) & (FAMILY < RELU):
        log_scale = tl.full([BLOCK_T], 0.0, tl.float32) + tl.load(maxima + slot_features)
        tl.store(query_scales + head * total + rows, log_scale, mask=valid)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def key_gradient_kernel(
    k, k_stride, k_head, v, v_stride, v_head, grad_k, grad_k_stride, grad_k_head, grad_v, grad_v_stride, grad_v_head,
    projection, projection_head, record, record_segment, record_head,
    cu_seqlens, block_segment, block_start, segment_slot, maxima, sums, states, slots, norm_factor, epsilon, first_head,
    FAMILY: tl.constexpr, ADAPTED: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, K_TERMS: tl.constexpr,
    V_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """dk (axis 2 of the grid: 0) and dv (1), which share little but would share registers, from the queries' state.

    That is R_i = sum_t f_q,i d_out / den over exp(N_i), with the sums of -delta / den beside it. Every query's
    denominator counts this key, so that no exponent here is above 0.
    """
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    segment = tl.load(block_segment + tl.program_id(0))
    if segment < 0:
        return
    start = tl.load(block_start + tl.program_id(0))
    rows = start + tl.arange(0, BLOCK_T)
    valid = rows < tl.load(cu_seqlens + segment + 1)
    local_head = tl.program_id(1)
    head = (local_head + first_head).to(tl.int64)
    record += segment.to(tl.int64) * record_segment + head * record_head
    projection += head * projection_head
    y = load_rows(k + head * k_head, k_stride, rows, valid, DIM, BLOCK_D)
    y = scaled(y, record, 1, SCALED, DIM, BLOCK_D)
    log_weight = key_weights(y, valid, record, norm_factor, FAMILY, ADAPTED, ROWS, DIM, BLOCK_D)
    slot_features = (local_head.to(tl.int64) * slots + tl.load(segment_slot + segment)) * (PARTS * ROWS)
    if tl.program_id(2) == 0:
        values = load_rows(v + head * v_head, v_stride, rows, valid, DIM, BLOCK_D)
        grad_weight = tl.full([BLOCK_T], 0.0, tl.float32)
        grad_y = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
        for block in range(PARTS * BLOCKS):
            logits, features, factor, sum_, state, weights = _key_features(
                y, log_weight, projection, record, maxima, sums, states, slot_features, block, epsilon, FAMILY, ADAPTED,
                ROWS, DIM, BLOCK_T, BLOCK_F, BLOCK_D, K_TERMS, OWN_TERMS,
            )  # fmt: skip
            nothing = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
            grad_features = product(values, tl.trans(state), nothing, V_TERMS, OWN_TERMS) + sum_[None, :]
            grad_weight += tl.sum(features * grad_features, 1)
            slope = features
            if FAMILY != EXPONENTIAL:
                slope = derivative(logits, block // BLOCKS, FAMILY) * factor[:, None]
            grad_y = product(slope * grad_features, weights, grad_y, OWN_TERMS, 1)
        grad_y = key_gradient(grad_y, y, grad_weight, record, norm_factor, FAMILY, ADAPTED, SCALED, ROWS, DIM, BLOCK_D)
        store_rows(grad_k + head * grad_k_head, grad_k_stride, rows, valid, grad_y, DIM, BLOCK_D)
    else:
        grad_values = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
        for block in range(PARTS * BLOCKS):
            _, features, _, _, state, _ = _key_features(
                y, log_weight, projection, record, maxima, sums, states, slot_features, block, epsilon, FAMILY, ADAPTED,
                ROWS, DIM, BLOCK_T, BLOCK_F, BLOCK_D, K_TERMS, OWN_TERMS,
            )  # fmt: skip
            grad_values = product(features, state, grad_values, OWN_TERMS, OWN_TERMS)
        store_rows(grad_v + head * grad_v_head, grad_v_stride, rows, valid, grad_values, DIM, BLOCK_D)


@triton.jit
@no_type_check
def _key_features(
    y, log_weight, projection, record, maxima, sums, states, slot_features, block, epsilon,
    FAMILY: tl.constexpr, ADAPTED: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, K_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """One block of features of keys that meet the queries' state: logits, features, their factor, z, S and weights."""
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    phase = block // BLOCKS
    first = (block % BLOCKS) * BLOCK_F
    live = first + tl.arange(0, BLOCK_F) < ROWS
    weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
    base = slot_features + phase * ROWS
    maximum, sum_, state = load_state(
        maxima + base, sums + base, states + base * DIM, first, live, True, DIM, BLOCK_F, BLOCK_D
    )
    nothing = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
    logits = product(y, tl.trans(weights), nothing, K_TERMS, 1)
    if ADAPTED:
        logits += offset_of(record, first, ROWS, DIM, BLOCK_F)[None, :]
    factor = log_weight
    if FAMILY == EXPONENTIAL:
        features = tl.exp(logits + log_weight[:, None] + maximum[None, :])
    else:
        factor = tl.exp(log_weight + tl.load(maxima + slot_features))
        features = feature(logits, phase, epsilon, FAMILY) * factor[:, None]
    return logits, features, factor, sum_, state, weights
