"""The Performer's operator: one custom op for all feature maps, O(total x dim) memory, hand-derived backward.

Chunks of tokens that stay in cache go through projection, features and state; the [total x features] matrices are
never kept, the backward recomputes them. Logits, stabilisers and accumulators are fp32 (fp64 for fp64 inputs) whatever
the input type.

It is a `torch.library` operator because an `autograd.Function` that reads `cu_seqlens` breaks a compiled graph; and
because autograd does not reach into an operator, `protformer.features.families` brings the derivatives.

Per segment, with features f_q `[tokens, m]`, f_k, and values with a column of ones [v, 1]:
    S = f_k^T [v, 1]            [numerator, denominator] = f_q S            out = numerator / denominator
and backward, with G = [d_out / denominator, -(d_out . out) / denominator]:
    dS = f_q^T G        d f_q = G S^T        d f_k = [v, 1] dS^T        dv = f_k dS (without its last column)
Stabilisers cancel between numerator and denominator, so no gradient goes through them.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from protformer.attention.favor_causal import causal_backward, causal_forward
from protformer.attention.favor_chunk import ChunkContext, chunk_ranges, guarded, heads_first, store, with_ones
from protformer.features.families import family as make_family

# Tokens per chunk: with 8 heads and 256 features a chunk's features take 4 MB in fp32, which a server's caches hold.
CHUNK = 512
# In causal attention a chunk also has a [chunk x chunk] matrix, which a longer one would make the larger cost.
CAUSAL_CHUNK = 128


def favor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    *,
    family: str,
    epsilon: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """Performer attention of packed segments.

    Args:
        query, key, value: `[total, heads, dim]`, any floating type.
        cu_seqlens: int32 offsets `[segments + 1]`, first 0, last total.
        projection: `[1 or heads, rows, dim]`, the scale dim^-1/4 already in it; no gradient is given for it.
        family: the element-wise family of the map (`protformer.features.families`).
        epsilon: what a generalised map adds to its features.
        causal: whether row t sees only rows up to t of its segment.

    Returns:
        `[total, heads, dim]` in the type of `value`.
    """
    out, _ = torch.ops.protformer.favor(query, key, value, cu_seqlens, projection, family, epsilon, causal)
    return out


@torch.library.custom_op(
    "protformer::favor",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, Tensor projection, str family, float epsilon,"
    " bool causal) -> (Tensor, Tensor)",
)
def _favor(query, key, value, cu_seqlens, projection, family, epsilon, causal):
    out = torch.zeros_like(value)
    context = ChunkContext.of(query, projection, make_family(family, epsilon))
    denominators = query.new_ones(query.shape[1], query.shape[0], dtype=context.dtype)
    forward = causal_forward if causal else _forward_segment
    # An operator runs below autograd but not below autocast, which would take the fp32 products to bf16 again.
    with torch.autocast(query.device.type, enabled=False):
        for start, stop in _segments(cu_seqlens):
            forward(context, query, key, value, start, stop, CAUSAL_CHUNK if causal else CHUNK, out, denominators)
    return out, denominators


@_favor.register_fake
def _favor_fake(query, key, value, cu_seqlens, projection, family, epsilon, causal):
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return torch.empty_like(value), query.new_empty(query.shape[1], query.shape[0], dtype=dtype)


@torch.library.custom_op(
    "protformer::favor_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor out, Tensor denominators, Tensor query, Tensor key, Tensor value,"
    " Tensor cu_seqlens, Tensor projection, str family, float epsilon, bool causal) -> (Tensor, Tensor, Tensor)",
)
def _favor_backward(grad_out, out, denominators, query, key, value, cu_seqlens, projection, family, epsilon, causal):
    grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    context = ChunkContext.of(query, projection, make_family(family, epsilon))
    backward = causal_backward if causal else _backward_segment
    with torch.autocast(query.device.type, enabled=False):
        for start, stop in _segments(cu_seqlens):
            chunk = CAUSAL_CHUNK if causal else CHUNK
            backward(context, query, key, value, start, stop, chunk, grad_out, out, denominators, *grads)
    return grads


@_favor_backward.register_fake
def _favor_backward_fake(
    grad_out, out, denominators, query, key, value, cu_seqlens, projection, family, epsilon, causal
):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _setup_context(ctx, inputs, output):
    query, key, value, cu_seqlens, projection, family, epsilon, causal = inputs
    out, denominators = output
    ctx.save_for_backward(out, denominators, query, key, value, cu_seqlens, projection)
    ctx.settings = family, epsilon, causal
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_denominators):
    if grad_out is None:
        return (None,) * 8
    grads = torch.ops.protformer.favor_backward(grad_out, *ctx.saved_tensors, *ctx.settings)
    return (*grads, None, None, None, None, None)


_favor.register_autograd(_backward, setup_context=_setup_context)


def _segments(cu_seqlens: Tensor) -> Iterator[tuple[int, int]]:
    offsets = cu_seqlens.tolist()
    return ((a, b) for a, b in itertools.pairwise(offsets) if b > a)


def _forward_segment(
    context: ChunkContext,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: int,
    stop: int,
    chunk: int,
    out: Tensor,
    denominators: Tensor,
) -> None:
    state, stabiliser, _ = _key_state(context, key, value, start, stop, chunk)
    for a, b in chunk_ranges(start, stop, chunk):
        logits, _ = context.project(query, a, b)
        features, _ = context.family.query(logits, stabiliser)
        joint = features @ state
        denominator = guarded(joint[..., -1:], context)
        denominators[:, a:b] = denominator.squeeze(2)
        store(out, a, b, joint[..., :-1] / denominator)


def _key_state(
    context: ChunkContext, key: Tensor, value: Tensor, start: int, stop: int, chunk: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """S over exp(stabiliser) `[heads, m, dim + 1]`, the stabiliser, and the last chunk's (logits, features, [v, 1])."""
    state: Tensor | None = None
    stabiliser: Tensor | None = None
    last: tuple[Tensor, Tensor, Tensor] | None = None
    for a, b in chunk_ranges(start, stop, chunk):
        logits, half_norm = context.project(key, a, b)
        here = context.family.stabiliser(logits, half_norm)
        joined = here if stabiliser is None else torch.maximum(stabiliser, here)
        features = context.family.key(logits, half_norm, joined)
        values = with_ones(heads_first(value, a, b, context.dtype))
        added = features.transpose(1, 2) @ values
        if state is None or stabiliser is None:
            state = added
        else:
            state = state.mul_((stabiliser - joined).exp_().transpose(1, 2)).add_(added)
        stabiliser = joined
        last = logits, features, values
    assert state is not None
    assert stabiliser is not None
    assert last is not None
    return state, stabiliser, last


def _backward_segment(
    context: ChunkContext,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: int,
    stop: int,
    chunk: int,
    grad_out: Tensor,
    out: Tensor,
    denominators: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    state, stabiliser, last = _key_state(context, key, value, start, stop, chunk)
    grad_state = torch.zeros_like(state)
    for a, b in chunk_ranges(start, stop, chunk):
        logits, _ = context.project(query, a, b)
        features, _ = context.family.query(logits, stabiliser)
        grad_joint = context.grad_joint(grad_out, out, denominators, a, b)
        grad_state += features.transpose(1, 2) @ grad_joint
        grad_logits = context.family.query_vjp(grad_joint @ state.transpose(1, 2), features, logits)
        store(grad_query, a, b, context.unproject(grad_logits))
    for a, b in chunk_ranges(start, stop, chunk):
        if stop - start <= chunk:
            logits, features, values = last
        else:
            logits, half_norm = context.project(key, a, b)
            features = context.family.key(logits, half_norm, stabiliser)
            values = with_ones(heads_first(value, a, b, context.dtype))
        store(grad_value, a, b, features @ grad_state[..., :-1])
        grad_features = values @ grad_state.transpose(1, 2)
        grad_logits, grad_half_norm = context.family.key_vjp(grad_features, features, logits)
        store(grad_key, a, b, context.unproject(grad_logits, heads_first(key, a, b, context.dtype), grad_half_norm))
