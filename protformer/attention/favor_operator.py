"""The Performer's operator: one custom op for all feature maps, O(total x dim) memory, hand-derived backward.

The [total x features] matrices are never kept, the backward recomputes them. Logits, stabilisers and accumulators are
fp32 (fp64 for fp64 inputs) whatever the input type. `protformer.attention.engine` chooses what does the arithmetic.

It is a `torch.library` operator because an `autograd.Function` that reads `cu_seqlens` breaks a compiled graph; and
because autograd does not reach into an operator, `protformer.features.families` brings the derivatives.
"""

import torch
from torch import Tensor

from protformer.attention.engine import engine
from protformer.attention.favor_settings import Answer, Inputs, Settings, row_numbers, state_numbers
from protformer.features import NO_ADAPTATION, Adaptation


def favor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    *,
    family: str,
    epsilon: float = 0.0,
    norm_weight: float = 0.0,
    causal: bool = False,
    adaptation: Adaptation = NO_ADAPTATION,
    shortest: int = 0,
) -> Tensor:
    """Performer attention of packed segments.

    Args:
        query, key, value: `[total, heads, dim]`, any floating type.
        cu_seqlens: int32 offsets `[segments + 1]`, first 0, last total.
        projection: `[1 or heads, rows, dim]`, the scale dim^-1/4 already in it; no gradient is given for it.
        family: the element-wise family of the map (`protformer.features.families`).
        epsilon: what a generalised map adds to its features.
        norm_weight: a key's log weight is -norm_weight |y|^2 / 2: 1 for positive features of the softmax kernel.
        causal: whether row t sees only rows up to t of its segment.
        adaptation: scales and shifts per segment; constants to autograd.
        shortest: segments of fewer rows are left out, their rows are zero.

    Returns:
        `[total, heads, dim]` in the type of `value`.
    """
    out, _, _ = torch.ops.protformer.favor(
        query, key, value, cu_seqlens, projection, *adaptation[:5], family, epsilon, norm_weight, causal, shortest
    )
    return out


_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, Tensor projection,"
    " Tensor? query_scale, Tensor? key_scale, Tensor? norm_scale, Tensor? tilt, Tensor? offset,"
    " str family, float epsilon, float norm_weight, bool causal, int shortest"
)


@torch.library.custom_op("protformer::favor", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
def _favor(query, key, value, cu_seqlens, projection, *constants):
    settings = Settings.of(constants)
    inputs = Inputs(query, key, value, cu_seqlens, projection)
    return tuple(engine(query, projection, settings).forward(inputs, settings))


@_favor.register_fake
def _favor_fake(query, key, value, cu_seqlens, projection, *constants):
    causal = Settings.of(constants).causal
    return torch.empty_like(value), row_numbers(query), state_numbers(query, projection, causal)


@torch.library.custom_op(
    "protformer::favor_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor out, Tensor row_numbers, Tensor states,"
    f" {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _favor_backward(grad_out, out, row_numbers, states, query, key, value, cu_seqlens, projection, *constants):
    settings = Settings.of(constants)
    inputs, answer = Inputs(query, key, value, cu_seqlens, projection), Answer(out, row_numbers, states)
    return engine(query, projection, settings).backward(grad_out, answer, inputs, settings)


@_favor_backward.register_fake
def _favor_backward_fake(grad_out, out, row_numbers, states, query, key, value, *rest):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _setup_context(ctx, inputs, output):
    query, key, value, cu_seqlens, projection, *constants = inputs
    ctx.save_for_backward(*output, query, key, value, cu_seqlens, projection, *constants[:5])
    ctx.settings = constants[5:]
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, *_grads_of_numbers):
    if grad_out is None:
        return (None,) * 15
    grads = torch.ops.protformer.favor_backward(grad_out, *ctx.saved_tensors, *ctx.settings)
    return (*grads, *(None,) * 12)


_favor.register_autograd(_backward, setup_context=_setup_context)
