"""The Performer as compiled code for CPUs with AVX-512 or, in bf16, AMX (`protformer.attention.native`).

Half precision that the bf16 engine does not take goes through the fp32 engine. What compiled code leaves undone,
segments with features out of its range, the chunks of PyTorch operations do.
"""

import math

import torch
from torch import Tensor

from protformer.attention import favor_chunked, native
from protformer.attention.favor_settings import Answer, Inputs, Settings, row_numbers, state_numbers

_TILE = 32  # head dimensions that the bf16 engine takes are multiples of it


def supported(query: Tensor, projection: Tensor, settings: Settings) -> str | None:
    """None where compiled code can serve these tensors, otherwise the reason why not, in words."""
    dtype, dim = _form(query, settings)
    served = query.new_empty(0, query.shape[1], dim, dtype=dtype)
    return native.supported(served, projection, settings.family, settings.causal, settings.adaptation)


def forward(inputs: Inputs, settings: Settings) -> Answer:
    fitted, fitted_settings = _fit(inputs, settings)
    if fitted is not inputs:
        out = _serve(fitted, fitted_settings).out
        states = state_numbers(inputs.query, inputs.projection, settings.causal)
        return Answer(_back(out, inputs.value), row_numbers(inputs.query).zero_(), states)
    return _serve(inputs, settings)


def backward(grad_out: Tensor, answer: Answer, inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    fitted, fitted_settings = _fit(inputs, settings)
    if fitted is inputs:
        return _serve_backward(grad_out, answer, inputs, settings)
    dtype, dim = fitted.query.dtype, fitted.query.shape[2]
    # (formed anew: an output that was rounded to half precision is too coarse for differences of outputs)
    answer = _serve(fitted, fitted_settings)
    grads = _serve_backward(_fitted(grad_out, dtype, dim), answer, fitted, fitted_settings)
    query, key, value = (_back(grad, inputs.query) for grad in grads)
    return query, key, value


def _serve(inputs: Inputs, settings: Settings) -> Answer:
    done = native.forward(inputs, settings)
    if done is None:
        return favor_chunked.forward(inputs, settings)
    answer, undone = done
    if undone:
        # (the engine's own row numbers stay: by them its backward leaves the same segments undone)
        apart = answer._replace(row_numbers=torch.zeros_like(answer.row_numbers))
        favor_chunked.forward_segments(apart, inputs, settings, frozenset(undone))
    return answer


def _serve_backward(
    grad_out: Tensor, answer: Answer, inputs: Inputs, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    done = native.backward(grad_out, answer, inputs, settings)
    if done is None:
        return favor_chunked.backward(grad_out, answer, inputs, settings)
    grads, undone = done
    if undone:
        only = frozenset(undone)
        if settings.causal:  # what the chunks remember of a row is formed anew, too
            answer = answer._replace(out=torch.empty_like(answer.out), row_numbers=torch.zeros_like(answer.row_numbers))
            favor_chunked.forward_segments(answer, inputs, settings, only)
        favor_chunked.backward_segments(grads, grad_out, answer, inputs, settings, only)
    return grads


def _form(query: Tensor, settings: Settings) -> tuple[torch.dtype, int]:
    """Type and head dimension that inputs are given to the engines in."""
    dim = query.shape[2]
    scaled = settings.adaptation.key_scale is not None
    if query.dtype == torch.bfloat16 and not scaled and native.available(torch.bfloat16) is None:
        return torch.bfloat16, -(-dim // _TILE) * _TILE
    return (torch.float32 if query.dtype in (torch.bfloat16, torch.float16) else query.dtype), dim


def _fit(inputs: Inputs, settings: Settings) -> tuple[Inputs, Settings]:
    """Inputs in that form: the same ones where they have it, else copies, with zeros in dimensions that are added."""
    dtype, dim = _form(inputs.query, settings)
    before = inputs.query.shape[2]
    if inputs.query.dtype == dtype and before == dim:
        return inputs, settings
    query, key, value = (_fitted(x, dtype, dim) for x in inputs[:3])
    tilt = settings.adaptation.tilt
    if tilt is not None:
        tilt = torch.nn.functional.pad(tilt, (0, dim - before))
    # (weights are relative to the square root of the dimension)
    settings = settings._replace(
        norm_weight=settings.norm_weight * math.sqrt(dim / before), adaptation=settings.adaptation._replace(tilt=tilt)
    )
    projection = torch.nn.functional.pad(inputs.projection, (0, dim - before))
    return Inputs(query, key, value, inputs.cu_seqlens, projection), settings


def _fitted(x: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    return torch.nn.functional.pad(x.to(dtype), (0, dim - x.shape[2]))


def _back(x: Tensor, like: Tensor) -> Tensor:
    return x[:, :, : like.shape[2]].to(like.dtype).contiguous()
