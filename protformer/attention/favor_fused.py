"""The Performer as fused Triton kernels (`protformer.attention.triton`), for the segments that a call asks for."""

import torch
from torch import Tensor

from protformer.attention import triton
from protformer.attention.favor_settings import Answer, Inputs, Settings, row_numbers, state_numbers
from protformer.features import Adaptation


def forward(inputs: Inputs, settings: Settings) -> Answer:
    """The output, and the kernels' number per row."""
    query, _, value, _, projection = inputs
    states = state_numbers(query, projection, settings.causal)
    if settings.shortest <= 1:
        return Answer(*triton.forward(*inputs, **_named(settings)), states)
    rows, parts, settings = _long_segments(inputs, settings)
    part, numbers = triton.forward(*parts, **_named(settings))
    out, saved = torch.zeros_like(value), row_numbers(query).zero_()
    return Answer(out.index_copy_(0, rows, part), saved.index_copy_(1, rows, numbers), states)


def backward(grad_out: Tensor, answer: Answer, inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    if settings.shortest <= 1:
        return triton.backward(grad_out, answer.row_numbers, *inputs, **_named(settings))
    rows, parts, settings = _long_segments(inputs, settings)
    numbers = answer.row_numbers[:, rows].contiguous()
    grads = triton.backward(grad_out[rows], numbers, *parts, **_named(settings))
    grad_query, grad_key, grad_value = (
        torch.zeros_like(x).index_copy_(0, rows, part) for x, part in zip(inputs[:3], grads, strict=True)
    )
    return grad_query, grad_key, grad_value


def _named(settings: Settings) -> dict:
    adapted = any(x is not None for x in settings.adaptation)
    return {
        "family": settings.family,
        "epsilon": settings.epsilon,
        "norm_weight": settings.norm_weight,
        "causal": settings.causal,
        "adaptation": settings.adaptation if adapted else None,
    }


def _long_segments(inputs: Inputs, settings: Settings) -> tuple[Tensor, Inputs, Settings]:
    """Rows of the segments of at least `shortest` rows, these rows as inputs, and settings with their adaptation."""
    query, key, value, cu_seqlens, projection = inputs
    lengths = cu_seqlens.diff()
    long = lengths >= settings.shortest
    adaptation = Adaptation(*(x if x is None or x.shape[0] == 1 else x[long] for x in settings.adaptation))
    rows = torch.nonzero(torch.repeat_interleave(long, lengths)).squeeze(1)
    offsets = torch.nn.functional.pad(lengths[long].cumsum(0), (1, 0)).to(torch.int32)
    parts = Inputs(query[rows], key[rows], value[rows], offsets, projection)
    return rows, parts, settings._replace(adaptation=adaptation)
