"""The Performer as fused Triton kernels (`protformer.attention.triton`), for the segments that a call asks for."""

import torch
from torch import Tensor

from protformer.attention import triton
from protformer.attention.favor_settings import Settings, row_numbers
from protformer.features import Adaptation


def forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, projection: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """The output, and the kernels' number per row."""
    if settings.shortest <= 1:
        return triton.forward(query, key, value, cu_seqlens, projection, **_named(settings))
    rows, offsets, settings = _long_segments(cu_seqlens, settings)
    part, numbers = triton.forward(query[rows], key[rows], value[rows], offsets, projection, **_named(settings))
    out, saved = torch.zeros_like(value), row_numbers(query).zero_()
    return out.index_copy_(0, rows, part), saved.index_copy_(1, rows, numbers)


def backward(
    grad_out: Tensor,
    out: Tensor,
    saved: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    if settings.shortest <= 1:
        return triton.backward(grad_out, saved, query, key, value, cu_seqlens, projection, **_named(settings))
    rows, offsets, settings = _long_segments(cu_seqlens, settings)
    q, k, v = (x[rows] for x in (query, key, value))
    numbers = saved[:, rows].contiguous()
    parts = triton.backward(grad_out[rows], numbers, q, k, v, offsets, projection, **_named(settings))
    grad_query, grad_key, grad_value = (
        torch.zeros_like(x).index_copy_(0, rows, part) for x, part in zip((query, key, value), parts, strict=True)
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


def _long_segments(cu_seqlens: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Settings]:
    """Rows of the segments of at least `shortest` rows, their offsets, and the settings with their adaptation alone."""
    lengths = cu_seqlens.diff()
    long = lengths >= settings.shortest
    adaptation = Adaptation(*(x if x is None or x.shape[0] == 1 else x[long] for x in settings.adaptation))
    rows = torch.nonzero(torch.repeat_interleave(long, lengths)).squeeze(1)
    offsets = torch.nn.functional.pad(lengths[long].cumsum(0), (1, 0)).to(torch.int32)
    return rows, offsets, settings._replace(adaptation=adaptation)
