"""Causal attention, backward: dq walks a split forwards with the keys' state, dk and dv walk it backwards.

With L the log denominator, E[t, s] = exp(a_t + b_s - L_t) for s <= t, and f_q, f_k the features over exp(a_t), exp(b_s)
(see `causal_pairs`), a block's own share is
    dlq = f_q (H f_k),  dlk = f_k (H^T f_q),  dv = (E f_q f_k^T)^T d_out,   H[t, s] = E[t, s] (d_out_t . v_s - delta_t)
after a first walk over the features for a_t, b_s, the product E f_q f_k^T and with it delta. Rows whose E would pass
e^46 are the forward's faint rows: theirs is exact, feature by feature, exp(lq + lk - L) <= 1.

Backwards each key meets the state of later queries, f = exp(lq - L) over exp(N), N_i the maximum over later rows: for a
key before them lk + N <= 0, because their denominators count it. The state of `states`, on the other side of time.
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
    key_gradient,
    key_weights,
    load_projection,
    load_rows,
    load_state,
    product,
    scale_of,
    scaled,
    store_rows,
)
from protformer.attention.triton.causal_pairs import (
    decay_of,
    exact_gradient,
    exact_weights,
    mix,
    pair_features,
    pair_logits,
)
from protformer.attention.triton.states import join


@triton.jit
@no_type_check
def _past(
    query_logits, query_features, grad, known, maxima, sums, states, base, first,
    FAMILY: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr, G_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """One block of features of queries that meet the state of earlier keys: features, d_out . S and z."""
    live = first + tl.arange(0, BLOCK_F) < ROWS
    maximum, sum_, state = load_state(
        maxima + base, sums + base, states + base * DIM, first, live, True, DIM, BLOCK_F, BLOCK_D
    )
    nothing = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
    along = product(grad, tl.trans(state), nothing, G_TERMS, OWN_TERMS)
    features = query_features
    if FAMILY == EXPONENTIAL:
        features = tl.exp(query_logits + maximum[None, :] - known[:, None])
    return features, along, sum_


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def causal_query_gradient_kernel(
    q, q_stride, q_head, k, k_stride, k_head, v, v_stride, v_head, grad_out, grad_out_stride, grad_out_head,
    grad_q, grad_q_stride, grad_q_head, saved, deltas, query_scales, key_scales,
    projection, projection_head, record, record_segment, record_head,
    cu_seqlens, slot_segment, slot_start, maxima, sums, states, slots, total, split, norm_factor, epsilon, first_head,
    FAMILY: tl.constexpr, ADAPTED: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
    Q_TERMS: tl.constexpr, K_TERMS: tl.constexpr, V_TERMS: tl.constexpr, G_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """dq and delta; and for the keys' pass a_t and b_s (exponential), or r_t as query_scales (signed families)."""
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    slot = tl.program_id(0)
    segment = tl.load(slot_segment + slot)
    if segment < 0:
        return
    begin = tl.load(cu_seqlens + segment)
    start = tl.load(slot_start + slot)
    stop = tl.minimum(start + split, tl.load(cu_seqlens + segment + 1))
    local_head = tl.program_id(1)
    head = (local_head + first_head).to(tl.int64)
    q += head * q_head
    k += head * k_head
    v += head * v_head
    grad_out += head * grad_out_head
    grad_q += head * grad_q_head
    projection += head * projection_head
    record += segment.to(tl.int64) * record_segment + head * record_head
    slot_features = (local_head.to(tl.int64) * slots + slot) * (PARTS * ROWS)
    order = tl.arange(0, BLOCK_T)
    for t in range(start, stop, BLOCK_T):
        rows = t + order
        valid = rows < stop
        has_past = t > begin
        x = scaled(load_rows(q, q_stride, rows, valid, DIM, BLOCK_D), record, 0, SCALED, DIM, BLOCK_D)
        y = scaled(load_rows(k, k_stride, rows, valid, DIM, BLOCK_D), record, 1, SCALED, DIM, BLOCK_D)
        grad = load_rows(grad_out, grad_out_stride, rows, valid, DIM, BLOCK_D)
        known = tl.load(saved + head * total + rows, mask=valid, other=-NOTHING)
        log_weight = key_weights(y, valid, record, norm_factor, FAMILY, ADAPTED, ROWS, DIM, BLOCK_D)
        seen = (order[None, :] <= order[:, None]) & valid[None, :]
        query_scale = tl.full([BLOCK_T], NOTHING, tl.float32)
        key_scale = tl.full([BLOCK_T], NOTHING, tl.float32)
        mixing = tl.full([BLOCK_T, BLOCK_T], 0.0, tl.float32)
        delta = tl.full([BLOCK_T], 0.0, tl.float32)
        den = tl.full([BLOCK_T], 0.0, tl.float32)
        for block in range(PARTS * BLOCKS):
            phase = block // BLOCKS
            first = (block % BLOCKS) * BLOCK_F
            weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
            query_logits, key_logits = pair_logits(
                x, y, log_weight, weights, record, first, ADAPTED, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F, Q_TERMS,
                K_TERMS, OWN_TERMS,
            )  # fmt: skip
            query_features, query_scale, key_scale, mixing = mix(
                query_logits, key_logits, query_scale, key_scale, mixing, first, phase, epsilon, FAMILY, ROWS,
                BLOCK_F, OWN_TERMS,
            )  # fmt: skip
            if has_past:
                past_features, along, sum_ = _past(
                    query_logits, query_features, grad, known, maxima, sums, states, slot_features + phase * ROWS,
                    first, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F, BLOCK_D, G_TERMS, OWN_TERMS,
                )  # fmt: skip
                delta += tl.sum(past_features * along, 1)
                den += tl.sum(past_features * sum_[None, :], 1)
        past_factor = tl.full([BLOCK_T], 1.0, tl.float32)
        if FAMILY == EXPONENTIAL:
            tl.store(query_scales + head * total + rows, query_scale, mask=valid)
            tl.store(key_scales + head * total + rows, key_scale, mask=valid)
        elif FAMILY < RELU:
            past_scale = tl.load(maxima + slot_features, mask=has_past, other=NOTHING)
            scale = tl.maximum(past_scale, tl.max(tl.where(seen, log_weight[None, :], NOTHING), 1))
            tl.store(query_scales + head * total + rows, scale, mask=valid)
            query_scale = -scale
            key_scale = log_weight
            past_factor = tl.exp(past_scale - scale) / known
        else:
            past_factor = 1.0 / known
        decay, faint = decay_of(query_scale, key_scale, known, seen, valid, FAMILY, BLOCK_T)
        mixing *= decay
        any_faint = tl.max(faint.to(tl.int32), 0) > 0
        if any_faint:
            mixing += exact_weights(
                x, y, log_weight, known, faint, projection, record, ADAPTED, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F,
                BLOCK_D, Q_TERMS, K_TERMS, OWN_TERMS,
            )  # fmt: skip
        values = load_rows(v, v_stride, rows, valid, DIM, BLOCK_D)
        square = tl.full([BLOCK_T, BLOCK_T], 0.0, tl.float32)
        along_values = product(grad, tl.trans(values), square, G_TERMS, V_TERMS)
        delta = delta * past_factor + tl.sum(mixing * along_values, 1)
        if FAMILY == EXPONENTIAL:
            # 1 up to the rounding of its logarithm: dividing by it makes delta exact
            den = tl.where(valid, den + tl.sum(mixing, 1), 1.0)
            delta /= den
        tl.store(deltas + head * total + rows, delta, mask=valid)
        weighted = decay * (along_values - delta[:, None])
        grad_x = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
        for block in range(PARTS * BLOCKS):
            phase = block // BLOCKS
            first = (block % BLOCKS) * BLOCK_F
            weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
            query_logits, key_logits = pair_logits(
                x, y, log_weight, weights, record, first, ADAPTED, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F, Q_TERMS,
                K_TERMS, OWN_TERMS,
            )  # fmt: skip
            query_features, key_features = pair_features(
                query_logits, key_logits, query_scale, key_scale, first, phase, epsilon, FAMILY, ROWS, BLOCK_F
            )
            nothing = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
            grad_logits = product(weighted, key_features, nothing, OWN_TERMS, OWN_TERMS)
            if FAMILY == EXPONENTIAL:
                grad_logits *= query_features
            if has_past:
                past_features, along, sum_ = _past(
                    query_logits, query_features, grad, known, maxima, sums, states, slot_features + phase * ROWS,
                    first, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F, BLOCK_D, G_TERMS, OWN_TERMS,
                )  # fmt: skip
                along -= delta[:, None] * sum_[None, :]
                if FAMILY == EXPONENTIAL:
                    grad_logits += past_features * along
                else:
                    grad_logits += past_factor[:, None] * along
            if FAMILY != EXPONENTIAL:
                grad_logits *= derivative(query_logits, phase, FAMILY)
            grad_x = product(grad_logits, weights, grad_x, OWN_TERMS, 1)
        if any_faint:
            exact, _ = exact_gradient(
                x, y, values, grad, delta, log_weight, known, faint, projection, record, 1, ADAPTED, FAMILY, ROWS, DIM,
                BLOCK_T, BLOCK_F, BLOCK_D, Q_TERMS, K_TERMS, V_TERMS, G_TERMS, OWN_TERMS,
            )  # fmt: skip
            grad_x += exact
        if FAMILY == EXPONENTIAL:
            grad_x /= den[:, None]
        if SCALED:
            grad_x *= scale_of(record, 0, DIM, BLOCK_D)[None, :]
        store_rows(grad_q, grad_q_stride, rows, valid, grad_x, DIM, BLOCK_D)
        if t + BLOCK_T < stop:
            tl.debug_barrier()  # all threads have read the state
            join(
                y, values, log_weight, log_weight, log_weight, projection, record, maxima + slot_features,
                sums + slot_features, states + slot_features * DIM, has_past, epsilon, True, FAMILY, ADAPTED, ROWS,
                PARTS, DIM, BLOCK_T, BLOCK_J, BLOCK_D, K_TERMS, V_TERMS, OWN_TERMS,
            )  # fmt: skip
            tl.debug_barrier()  # and the next block reads what was written


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def causal_key_gradient_kernel(
    q, q_stride, q_head, k, k_stride, k_head, v, v_stride, v_head, grad_out, grad_out_stride, grad_out_head,
    grad_k, grad_k_stride, grad_k_head, grad_v, grad_v_stride, grad_v_head, saved, deltas, query_scales, key_scales,
    projection, projection_head, record, record_segment, record_head,
    cu_seqlens, slot_segment, slot_start, maxima, sums, states, slots, total, split, norm_factor, epsilon, first_head,
    FAMILY: tl.constexpr, ADAPTED: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
    Q_TERMS: tl.constexpr, K_TERMS: tl.constexpr, V_TERMS: tl.constexpr, G_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """dk and dv, from the last block of the split to the first, with the state of later queries in the slot."""
    BLOCKS: tl.constexpr = (ROWS + BLOCK_F - 1) // BLOCK_F
    slot = tl.program_id(0)
    segment = tl.load(slot_segment + slot)
    if segment < 0:
        return
    end = tl.load(cu_seqlens + segment + 1)
    start = tl.load(slot_start + slot)
    stop = tl.minimum(start + split, end)
    local_head = tl.program_id(1)
    head = (local_head + first_head).to(tl.int64)
    q += head * q_head
    k += head * k_head
    v += head * v_head
    grad_out += head * grad_out_head
    grad_k += head * grad_k_head
    grad_v += head * grad_v_head
    projection += head * projection_head
    record += segment.to(tl.int64) * record_segment + head * record_head
    slot_features = (local_head.to(tl.int64) * slots + slot) * (PARTS * ROWS)
    order = tl.arange(0, BLOCK_T)
    steps = (stop - start + BLOCK_T - 1) // BLOCK_T
    for step in range(steps):
        t = start + (steps - 1 - step) * BLOCK_T
        rows = t + order
        valid = rows < stop
        has_later = t + BLOCK_T < end
        x = scaled(load_rows(q, q_stride, rows, valid, DIM, BLOCK_D), record, 0, SCALED, DIM, BLOCK_D)
        y = scaled(load_rows(k, k_stride, rows, valid, DIM, BLOCK_D), record, 1, SCALED, DIM, BLOCK_D)
        grad = load_rows(grad_out, grad_out_stride, rows, valid, DIM, BLOCK_D)
        known = tl.load(saved + head * total + rows, mask=valid, other=-NOTHING)
        delta = tl.load(deltas + head * total + rows, mask=valid, other=0.0)
        log_weight = key_weights(y, valid, record, norm_factor, FAMILY, ADAPTED, ROWS, DIM, BLOCK_D)
        seen = (order[None, :] <= order[:, None]) & valid[None, :] & valid[:, None]
        query_scale = tl.full([BLOCK_T], 0.0, tl.float32)
        key_scale = log_weight
        if FAMILY == EXPONENTIAL:
            query_scale = tl.load(query_scales + head * total + rows, mask=valid, other=-NOTHING)
            key_scale = tl.load(key_scales + head * total + rows, mask=valid, other=-NOTHING)
        elif FAMILY < RELU:
            query_scale = -tl.load(query_scales + head * total + rows, mask=valid, other=-NOTHING)
        decay, faint = decay_of(query_scale, key_scale, known, seen, valid, FAMILY, BLOCK_T)
        any_faint = tl.max(faint.to(tl.int32), 0) > 0
        mixing = tl.full([BLOCK_T, BLOCK_T], 0.0, tl.float32)
        grad_values = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
        for block in range(PARTS * BLOCKS):
            phase = block // BLOCKS
            first = (block % BLOCKS) * BLOCK_F
            weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
            query_logits, key_logits = pair_logits(
                x, y, log_weight, weights, record, first, ADAPTED, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F, Q_TERMS,
                K_TERMS, OWN_TERMS,
            )  # fmt: skip
            query_features, key_features = pair_features(
                query_logits, key_logits, query_scale, key_scale, first, phase, epsilon, FAMILY, ROWS, BLOCK_F
            )
            mixing = product(query_features, tl.trans(key_features), mixing, OWN_TERMS, OWN_TERMS)
            if has_later:
                live = first + tl.arange(0, BLOCK_F) < ROWS
                base = slot_features + phase * ROWS
                maximum, _, state = load_state(
                    maxima + base, sums + base, states + base * DIM, first, live, True, DIM, BLOCK_F, BLOCK_D
                )
                if FAMILY == EXPONENTIAL:
                    later_features = tl.exp(key_logits + maximum[None, :])
                else:
                    later_features = key_features * tl.exp(log_weight + tl.load(maxima + slot_features))[:, None]
                grad_values = product(later_features, state, grad_values, OWN_TERMS, OWN_TERMS)
        mixing *= decay
        if any_faint:
            mixing += exact_weights(
                x, y, log_weight, known, faint, projection, record, ADAPTED, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F,
                BLOCK_D, Q_TERMS, K_TERMS, OWN_TERMS,
            )  # fmt: skip
        grad_values = product(tl.trans(mixing), grad, grad_values, OWN_TERMS, G_TERMS)
        store_rows(grad_v, grad_v_stride, rows, valid, grad_values, DIM, BLOCK_D)
        values = load_rows(v, v_stride, rows, valid, DIM, BLOCK_D)
        square = tl.full([BLOCK_T, BLOCK_T], 0.0, tl.float32)
        along_values = product(grad, tl.trans(values), square, G_TERMS, V_TERMS) - delta[:, None]
        weighted = tl.trans(decay * along_values)
        grad_weight = tl.full([BLOCK_T], 0.0, tl.float32)
        grad_y = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
        for block in range(PARTS * BLOCKS):
            phase = block // BLOCKS
            first = (block % BLOCKS) * BLOCK_F
            weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
            query_logits, key_logits = pair_logits(
                x, y, log_weight, weights, record, first, ADAPTED, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F, Q_TERMS,
                K_TERMS, OWN_TERMS,
            )  # fmt: skip
            query_features, key_features = pair_features(
                query_logits, key_logits, query_scale, key_scale, first, phase, epsilon, FAMILY, ROWS, BLOCK_F
            )
            nothing = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
            grad_features = product(weighted, query_features, nothing, OWN_TERMS, OWN_TERMS)
            if FAMILY == EXPONENTIAL:
                grad_features *= key_features
            if has_later:
                live = first + tl.arange(0, BLOCK_F) < ROWS
                base = slot_features + phase * ROWS
                maximum, sum_, state = load_state(
                    maxima + base, sums + base, states + base * DIM, first, live, True, DIM, BLOCK_F, BLOCK_D
                )
                later = product(values, tl.trans(state), nothing, V_TERMS, OWN_TERMS) + sum_[None, :]
                if FAMILY == EXPONENTIAL:
                    grad_features += tl.exp(key_logits + maximum[None, :]) * later
                else:
                    grad_features += tl.exp(log_weight + tl.load(maxima + slot_features))[:, None] * later
            if FAMILY == EXPONENTIAL:
                grad_weight += tl.sum(grad_features, 1)
            else:
                grad_weight += tl.sum(key_features * grad_features, 1)
                grad_features *= derivative(key_logits, phase, FAMILY)
            grad_y = product(grad_features, weights, grad_y, OWN_TERMS, 1)
        if any_faint:
            exact, exact_weight = exact_gradient(
                x, y, values, grad, delta, log_weight, known, faint, projection, record, 0, ADAPTED, FAMILY, ROWS, DIM,
                BLOCK_T, BLOCK_F, BLOCK_D, Q_TERMS, K_TERMS, V_TERMS, G_TERMS, OWN_TERMS,
            )  # fmt: skip
            grad_y += exact
            grad_weight += exact_weight
        y = scaled(load_rows(k, k_stride, rows, valid, DIM, BLOCK_D), record, 1, SCALED, DIM, BLOCK_D)
        grad_y = key_gradient(grad_y, y, grad_weight, record, norm_factor, FAMILY, ADAPTED, SCALED, ROWS, DIM, BLOCK_D)
        store_rows(grad_k, grad_k_stride, rows, valid, grad_y, DIM, BLOCK_D)
        if t > start:
            tl.debug_barrier()  # all threads have read the state
            if FAMILY == EXPONENTIAL:
                query_weight = -known
            elif FAMILY < RELU:
                query_weight = query_scale
            else:
                query_weight = tl.where(valid, 0.0, NOTHING)
            join(
                x, grad, query_weight, known, delta, projection, record, maxima + slot_features, sums + slot_features,
                states + slot_features * DIM, has_later, epsilon, False, FAMILY, ADAPTED, ROWS, PARTS, DIM, BLOCK_T,
                BLOCK_J, BLOCK_D, Q_TERMS, G_TERMS, OWN_TERMS,
            )  # fmt: skip
            tl.debug_barrier()  # and the next block reads what was written
