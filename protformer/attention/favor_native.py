"""The Performer as compiled code for bf16 on CPUs with AMX (`protformer.attention.native`).

What that code leaves undone, segments with logits out of its range, the chunks of PyTorch operations do.
"""

from torch import Tensor

from protformer.attention import favor_chunked, native
from protformer.attention.favor_settings import Settings, row_numbers


def forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, projection: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """The output, and numbers that the backward does not read."""
    done = native.forward(query, key, value, cu_seqlens, projection, **settings._asdict())
    if done is None:
        return favor_chunked.forward(query, key, value, cu_seqlens, projection, settings)
    out, undone = done
    denominators = row_numbers(query).zero_()
    if undone:
        favor_chunked.forward_segments(
            out, denominators, query, key, value, cu_seqlens, projection, settings, frozenset(undone)
        )
    return out, denominators


def backward(
    grad_out: Tensor,
    out: Tensor,
    denominators: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    done = native.backward(grad_out, query, key, value, cu_seqlens, projection, **settings._asdict())
    inputs = query, key, value, cu_seqlens, projection, settings
    if done is None:
        return favor_chunked.backward(grad_out, out, denominators, *inputs)
    grad_query, grad_key, grad_value, undone = done
    grads = grad_query, grad_key, grad_value
    if undone:
        favor_chunked.backward_segments(grads, grad_out, out, denominators, *inputs, frozenset(undone))
    return grads
