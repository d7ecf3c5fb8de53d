"""Queries and keys of one block of rows, each query with the keys up to it: what the causal kernels share.

With a_t the largest logit of query t and b_s that of key s (its weight included), the product within the block is
    A[t, s] = (exp(q_t - a_t) . exp(k_s - b_s)) exp(a_t + b_s - scale_t)    for s <= t.
No leak from the future, in numbers as well as in law: every scale of row t is a maximum over rows up to t.

No factor exceeds 1, but they can all be too small: where a row's query and its keys prefer different features (k = -q
at a norm of 30 and dim 8 is enough) the sum underflows. Whether it does depends on rows up to it; such a row is faint,
and goes one feature at a time in the log domain. That is slow, and ordinary inputs never need it.
"""
# ruff: noqa: N803 (a kernel's constants in capitals; ifs that are decided at compile time)

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from protformer.attention.triton.arithmetic import (
    EXPONENTIAL,
    FAINT,
    NOTHING,
    RELU,
    feature,
    load_projection,
    offset_of,
    product,
)


@triton.jit
@no_type_check
def pair_logits(
    x, y, log_weight, weights, record, first, ADAPTED: tl.constexpr, FAMILY: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, Q_TERMS: tl.constexpr, K_TERMS: tl.constexpr,
    OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """Logits of a block of queries and keys; the exponential's with the key's weight, NOTHING beyond the last row."""
    nothing = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
    query_logits = product(x, tl.trans(weights), nothing, Q_TERMS, 1)
    key_logits = product(y, tl.trans(weights), nothing, K_TERMS, 1)
    if ADAPTED:
        offset = offset_of(record, first, ROWS, DIM, BLOCK_F)[None, :]
        query_logits += offset
        key_logits += offset
    if FAMILY == EXPONENTIAL:
        live = first + tl.arange(0, BLOCK_F) < ROWS
        query_logits = tl.where(live[None, :], query_logits, NOTHING)
        key_logits = tl.where(live[None, :], key_logits + log_weight[:, None], NOTHING)
    return query_logits, key_logits


@triton.jit
@no_type_check
def pair_features(
    query_logits, key_logits, query_scale, key_scale, first, phase, epsilon, FAMILY: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Features of both over exp(scale); of rows that the projection does not have, one side is 0."""
    if FAMILY == EXPONENTIAL:
        query_features = tl.exp(query_logits - query_scale[:, None])
        key_features = tl.exp(key_logits - key_scale[:, None])
    else:
        live = first + tl.arange(0, BLOCK_F) < ROWS
        query_features = tl.where(live[None, :], feature(query_logits, phase, epsilon, FAMILY), 0.0)
        key_features = feature(key_logits, phase, epsilon, FAMILY)
    return query_features, key_features


@triton.jit
@no_type_check
def mix(
    query_logits, key_logits, query_scale, key_scale, mixing, first, phase, epsilon, FAMILY: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_F: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """f_q f_k^T with one more block of features, over the scales of queries and keys so far."""
    new_query_scale = query_scale
    new_key_scale = key_scale
    if FAMILY == EXPONENTIAL:
        new_query_scale = tl.maximum(query_scale, tl.max(query_logits, 1))
        new_key_scale = tl.maximum(key_scale, tl.max(key_logits, 1))
        mixing *= tl.exp(query_scale - new_query_scale)[:, None]
        mixing *= tl.exp(key_scale - new_key_scale)[None, :]
    query_features, key_features = pair_features(
        query_logits, key_logits, new_query_scale, new_key_scale, first, phase, epsilon, FAMILY, ROWS, BLOCK_F
    )
    mixing = product(query_features, tl.trans(key_features), mixing, OWN_TERMS, OWN_TERMS)
    return query_features, new_query_scale, new_key_scale, mixing


@triton.jit
@no_type_check
def column(tile, index, BLOCK_F: tl.constexpr):
    """One column of a tile in registers: a sum over a mask, since registers have no addresses."""
    return tl.sum(tl.where((tl.arange(0, BLOCK_F) == index)[None, :], tile, 0.0), 1)


@triton.jit
@no_type_check
def exact_mixing(
    x, y, log_weight, seen, projection, record, ADAPTED: tl.constexpr, FAMILY: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, Q_TERMS: tl.constexpr,
    K_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """The block's A over exp(scale), one feature at a time; a row's scale is its largest term, so that no row is 0."""
    scale = tl.full([BLOCK_T], NOTHING, tl.float32)
    mixing = tl.full([BLOCK_T, BLOCK_T], 0.0, tl.float32)
    for first in range(0, ROWS, BLOCK_F):
        weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
        query_logits, key_logits = pair_logits(
            x,
            y,
            log_weight,
            weights,
            record,
            first,
            ADAPTED,
            FAMILY,
            ROWS,
            DIM,
            BLOCK_T,
            BLOCK_F,
            Q_TERMS,
            K_TERMS,
            OWN_TERMS,
        )
        for index in range(BLOCK_F):
            query_column = column(query_logits, index, BLOCK_F)
            key_column = column(key_logits, index, BLOCK_F)
            new = tl.maximum(scale, query_column + tl.max(tl.where(seen, key_column[None, :], NOTHING), 1))
            exponent = query_column[:, None] + key_column[None, :] - new[:, None]
            mixing = mixing * tl.exp(scale - new)[:, None] + tl.exp(tl.where(seen, exponent, NOTHING))
            scale = new
    return mixing, scale


@triton.jit
@no_type_check
def decay_of(query_scale, key_scale, known, seen, valid, FAMILY: tl.constexpr, BLOCK_T: tl.constexpr):
    """E `[t, s]`, and which rows are faint (their E is 0). `query_scale` is -r_t for families without an exponent."""
    faint = tl.full([BLOCK_T], 0, tl.int32) > 0
    if FAMILY == EXPONENTIAL:
        own_scale = query_scale + tl.max(tl.where(seen, key_scale[None, :], NOTHING), 1)
        faint = valid & (own_scale - known > FAINT)
        exponent = query_scale[:, None] + key_scale[None, :] - known[:, None]
        decay = tl.exp(tl.where(seen & (faint == 0)[:, None], exponent, NOTHING))
    elif FAMILY < RELU:
        exponent = query_scale[:, None] + key_scale[None, :]
        decay = tl.exp(tl.where(seen, exponent, NOTHING)) / known[:, None]
    else:
        decay = tl.where(seen, 1.0 / known[:, None], 0.0)
    return decay, faint


@triton.jit
@no_type_check
def _shown(faint, BLOCK_T: tl.constexpr):
    """Keys up to each faint row. (Not from the caller's mask, which would take registers through ordinary blocks.)"""
    order = tl.arange(0, BLOCK_T)
    return (order[:, None] >= order[None, :]) & faint[:, None]


@triton.jit
@no_type_check
def exact_weights(
    x, y, log_weight, known, faint, projection, record, ADAPTED: tl.constexpr, FAMILY: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, Q_TERMS: tl.constexpr,
    K_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """Weights of attention within the block, one feature at a time, of the faint rows."""
    shown = _shown(faint, BLOCK_T)
    mixing = tl.full([BLOCK_T, BLOCK_T], 0.0, tl.float32)
    for first in range(0, ROWS, BLOCK_F):
        weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
        query_logits, key_logits = pair_logits(
            x,
            y,
            log_weight,
            weights,
            record,
            first,
            ADAPTED,
            FAMILY,
            ROWS,
            DIM,
            BLOCK_T,
            BLOCK_F,
            Q_TERMS,
            K_TERMS,
            OWN_TERMS,
        )
        for index in range(BLOCK_F):
            exponent = column(query_logits, index, BLOCK_F)[:, None] + column(key_logits, index, BLOCK_F)[None, :]
            exponent = tl.minimum(exponent - known[:, None], 0.0)
            mixing += tl.exp(tl.where(shown, exponent, NOTHING))
    return mixing


@triton.jit
@no_type_check
def exact_gradient(
    x, y, values, grad_out, delta, log_weight, known, faint, projection, record, AXIS: tl.constexpr,
    ADAPTED: tl.constexpr, FAMILY: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, Q_TERMS: tl.constexpr, K_TERMS: tl.constexpr, V_TERMS: tl.constexpr,
    G_TERMS: tl.constexpr, OWN_TERMS: tl.constexpr,
):  # fmt: skip
    """(d logits) W and the sum of d logits from such weights, summed over keys (AXIS 1) or over queries (0)."""
    # (computed anew, the other way round: the compiler would keep the caller's in registers through ordinary blocks)
    square = tl.full([BLOCK_T, BLOCK_T], 0.0, tl.float32)
    along = tl.trans(product(values, tl.trans(grad_out), square, V_TERMS, G_TERMS)) - delta[:, None]
    shown = _shown(faint, BLOCK_T)
    grad = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
    grad_weight = tl.full([BLOCK_T], 0.0, tl.float32)
    for first in range(0, ROWS, BLOCK_F):
        weights = load_projection(projection, first, ROWS, DIM, BLOCK_F, BLOCK_D)
        query_logits, key_logits = pair_logits(
            x,
            y,
            log_weight,
            weights,
            record,
            first,
            ADAPTED,
            FAMILY,
            ROWS,
            DIM,
            BLOCK_T,
            BLOCK_F,
            Q_TERMS,
            K_TERMS,
            OWN_TERMS,
        )
        grad_logits = tl.full([BLOCK_T, BLOCK_F], 0.0, tl.float32)
        for index in range(BLOCK_F):
            exponent = column(query_logits, index, BLOCK_F)[:, None] + column(key_logits, index, BLOCK_F)[None, :]
            exponent = tl.minimum(exponent - known[:, None], 0.0)
            summed = tl.sum(tl.exp(tl.where(shown, exponent, NOTHING)) * along, AXIS)
            here = (tl.arange(0, BLOCK_F) == index)[None, :]
            grad_logits = tl.where(here, summed[:, None], grad_logits)
        grad = product(grad_logits, weights, grad, OWN_TERMS, 1)
        grad_weight += tl.sum(grad_logits, 1)
    return grad, grad_weight
