"""Causal attention, forward: a program walks one split of one head, with the state of all keys before in memory.

A block of rows meets the state of the earlier keys and its own keys (`causal_pairs`), then its keys join the state: its
slot, which stays in the cache. The state's stabiliser is per feature, so that what a row gets from it is at least 1
over the largest term: only within a block can a row be faint.
"""
# ruff: noqa: N803, N806 (a kernel's constants in capitals; ifs that are decided at compile time)

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from protformer.attention.triton.arithmetic import (
    EXPONENTIAL,
    FAINT_SUM,
    NOTHING,
    RELU,
    VARYING,
    floored,
    key_weights,
    load_projection,
    load_rows,
    load_state,
    product,
    scaled,
    store_rows,
)
from protformer.attention.triton.causal_pairs import (
    exact_mixing,
    mix,
    pair_logits,
)
from protformer.attention.triton.states import join


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def causal_kernel(
    q, q_stride, q_head, k, k_stride, k_head, v, v_stride, v_head, out, out_stride, out_head, saved,
    projection, projection_head, record, record_segment, record_head,
    cu_seqlens, slot_segment, slot_start, maxima, sums, states, slots, total, split, norm_factor, epsilon, first_head,
    FAMILY: tl.constexpr, ADAPTED: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
    Q_TERMS: tl.constexpr, K_TERMS: tl.constexpr, V_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """out, and of each row the log denominator (exponential), or the denominator in its scale."""
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
    out += head * out_head
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
        values = load_rows(v, v_stride, rows, valid, DIM, BLOCK_D)
        log_weight = key_weights(y, valid, record, norm_factor, FAMILY, ADAPTED, ROWS, DIM, BLOCK_D)
        past_scale = tl.full([BLOCK_T], NOTHING, tl.float32)
        if FAMILY != EXPONENTIAL:  # (one stabiliser for all features of the state)
            past_scale = tl.full([BLOCK_T], 0.0, tl.float32)
            past_scale += tl.load(maxima + slot_features, mask=has_past, other=NOTHING)
        query_scale = tl.full([BLOCK_T], NOTHING, tl.float32)
        key_scale = tl.full([BLOCK_T], NOTHING, tl.float32)
        mixing = tl.full([BLOCK_T, BLOCK_T], 0.0, tl.float32)
        den = tl.full([BLOCK_T], 0.0, tl.float32)
        num = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
        for block in range(PARTS * BLOCKS):
            phase = block // BLOCKS
            first = (block % BLOCKS) * BLOCK_F
            live = first + tl.arange(0, BLOCK_F) < ROWS
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
                base = slot_features + phase * ROWS
                maximum, sum_, state = load_state(
                    maxima + base, sums + base, states + base * DIM, first, live, True, DIM, BLOCK_F, BLOCK_D
                )
                if FAMILY == EXPONENTIAL:
                    past_logits = query_logits + maximum[None, :]
                    new_past_scale = tl.maximum(past_scale, tl.max(past_logits, 1))
                    past_features = tl.exp(past_logits - new_past_scale[:, None])
                    kept = tl.exp(past_scale - new_past_scale)
                    past_scale = new_past_scale
                    den *= kept
                    num *= kept[:, None]
                else:
                    past_features = query_features
                den += tl.sum(past_features * sum_[None, :], 1)
                num = product(past_features, state, num, OWN_TERMS, OWN_TERMS)
        seen = (order[None, :] <= order[:, None]) & valid[None, :]
        if FAMILY == EXPONENTIAL:
            own_scale = query_scale + tl.max(tl.where(seen, key_scale[None, :], NOTHING), 1)
            scale = tl.maximum(own_scale, past_scale)
            exponent = query_scale[:, None] + key_scale[None, :] - scale[:, None]
            mixing *= tl.exp(tl.where(seen, exponent, NOTHING))
            past_share = tl.exp(past_scale - scale)
            row_den = tl.sum(mixing, 1) + den * past_share
            faint = valid & (row_den < FAINT_SUM)
            if tl.max(faint.to(tl.int32), 0) > 0:
                exact, exact_scale = exact_mixing(
                    x, y, log_weight, seen, projection, record, ADAPTED, FAMILY, ROWS, DIM, BLOCK_T, BLOCK_F, BLOCK_D,
                    Q_TERMS, K_TERMS, OWN_TERMS,
                )  # fmt: skip
                joint_scale = tl.maximum(exact_scale, past_scale)
                exact *= tl.exp(exact_scale - joint_scale)[:, None]
                mixing = tl.where(faint[:, None], exact, mixing)
                scale = tl.where(faint, joint_scale, scale)
                past_share = tl.exp(past_scale - scale)
                row_den = tl.sum(mixing, 1) + den * past_share
            keep = scale + tl.log(row_den)
        else:
            if FAMILY < RELU:
                scale = tl.maximum(past_scale, tl.max(tl.where(seen, log_weight[None, :], NOTHING), 1))
                mixing *= tl.exp(tl.where(seen, log_weight[None, :] - scale[:, None], NOTHING))
                past_share = tl.exp(past_scale - scale)
            else:
                mixing = tl.where(seen, mixing, 0.0)
                past_share = tl.full([BLOCK_T], 1.0, tl.float32)
            row_den = floored(tl.sum(mixing, 1) + den * past_share, FAMILY, ROWS)
            keep = row_den
        num = product(mixing, values, num * past_share[:, None], OWN_TERMS, V_TERMS)
        store_rows(out, out_stride, rows, valid, num / row_den[:, None], DIM, BLOCK_D)
        tl.store(saved + head * total + rows, keep, mask=valid)
        if t + BLOCK_T < stop:
            tl.debug_barrier()  # all threads have read the state
            join(
                y, values, log_weight, log_weight, log_weight, projection, record, maxima + slot_features,
                sums + slot_features, states + slot_features * DIM, has_past, epsilon, True, FAMILY, ADAPTED, ROWS,
                PARTS, DIM, BLOCK_T, BLOCK_J, BLOCK_D, K_TERMS, V_TERMS, OWN_TERMS,
            )  # fmt: skip
            tl.debug_barrier()  # and the next block reads what was written
