"""Inputs and references for tests of the compiled CPU engines."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from protformer.attention import native
from protformer.attention.favor_settings import Answer, Inputs, Settings
from protformer.features import NO_ADAPTATION

LENGTHS = [1, 17, 0, 64, 300, 1030]
# how far outputs may be off, and gradients in norm: the rounding of bf16 and of fp32
ULP = {torch.bfloat16: 2.0**-7, torch.float32: 2e-6}
GRADIENTS = {torch.bfloat16: 1e-2, torch.float32: 2e-5}
SETTINGS = {
    "exponential": Settings(NO_ADAPTATION, "exponential", 0.0, 1.0, causal=False, shortest=0),
    "unweighted": Settings(NO_ADAPTATION, "exponential", 0.0, 0.0, causal=False, shortest=0),
    "relu": Settings(NO_ADAPTATION, "relu", 1e-3, 0.0, causal=False, shortest=0),
}

WHY_NOT = {
    dtype: native.supported(torch.empty(0, 1, 32, dtype=dtype), torch.empty(1, 32, 32), "relu", False, NO_ADAPTATION)
    for dtype in ULP
}
for_each_type = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.skipif(why is not None, reason=str(why)), id=str(dtype)[6:])
        for dtype, why in WHY_NOT.items()
    ],
)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def make_inputs(
    dtype: torch.dtype, lengths: list[int], heads: int, dim: int, rows: int, per_head: bool = False, norm: float = 1.0
) -> tuple[Inputs, Tensor]:
    """q, k, v, offsets, a projection of bf16 numbers; and a gradient of the output."""
    generator = torch.Generator().manual_seed(heads + dim + rows)
    x = torch.randn(4, sum(lengths), heads, dim, generator=generator)
    x[:2] *= norm
    x[2] += 3.0  # values with a mean: what all rows have in common is the larger part of the output
    projection = torch.randn(heads if per_head else 1, rows, dim, generator=generator) * dim**-0.25
    q, k, v, grad = x.to(dtype)
    return Inputs(q, k, v, offsets(lengths), projection.bfloat16().float()), grad


def direct(x: Sequence[Tensor], inputs: Inputs, settings: Settings) -> Tensor:
    """The formula in float64 for q, k and v in `x`, one segment after another."""
    q, k, v = x
    outs = []
    heads, dim = q.shape[1:]
    segments = len(inputs.cu_seqlens) - 1
    weight = inputs.projection.double().expand(heads, -1, -1)
    for index, (a, b) in enumerate(itertools.pairwise(inputs.cu_seqlens.tolist())):

        def own(y: Tensor | None, index: int = index) -> Tensor | None:
            return None if y is None else y.double().expand(segments, heads, *y.shape[2:])[index]

        query_scale, key_scale, norm_scale, tilt, offset = map(own, settings.adaptation[:5])
        queries, keys = (y[a:b] if scale is None else y[a:b] * scale for y, scale in ((q, query_scale), (k, key_scale)))
        f_q, f_k = (torch.einsum("thd,hmd->htm", y, weight) for y in (queries, keys))
        if offset is not None:
            f_q, f_k = f_q + offset[:, None], f_k + offset[:, None]
        if settings.family == "relu":
            f_q, f_k = f_q.relu() + settings.epsilon, f_k.relu() + settings.epsilon
        else:
            log_weight = -0.5 * settings.norm_weight * dim**-0.5 * keys.square().sum(-1).T
            if norm_scale is not None:
                log_weight = log_weight * norm_scale[:, None]
            if tilt is not None:
                log_weight = log_weight + torch.einsum("thd,hd->ht", keys, tilt)
            f_q, f_k = f_q.exp(), (f_k + log_weight[..., None]).exp()
        mixing = f_q @ f_k.transpose(1, 2)
        if settings.causal:
            mixing = mixing.tril()
        outs.append(torch.einsum("hts,shd->thd", mixing / mixing.sum(2, keepdim=True), v[a:b]))
    return torch.cat(outs)


def run(inputs: Inputs, grad: Tensor, settings: Settings) -> tuple[Answer, tuple[Tensor, Tensor, Tensor], list[int]]:
    """Forward, backward, and the segments that both leave undone."""
    forward = native.forward(inputs, settings)
    assert forward is not None
    answer, undone = forward
    backward = native.backward(grad, answer, inputs, settings)
    assert backward is not None
    assert backward[1] == undone
    return answer, backward[0], undone


def check(inputs: Inputs, grad: Tensor, settings: Settings, looser: float = 1.0) -> None:
    """Output and gradients against float64: to the rounding of the output, gradients to a few of its roundings."""
    leaves = [y.double().requires_grad_() for y in inputs[:3]]
    expected = direct(leaves, inputs, settings)
    expected_grads = torch.autograd.grad(expected, leaves, grad.double())
    answer, grads, undone = run(inputs, grad, settings)
    dtype = inputs.query.dtype
    assert undone == []
    assert answer.out.dtype == dtype
    assert (answer.out.double() - expected).abs().max() <= looser * ULP[dtype] * inputs.value.abs().max()
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert (got.double() - wanted).norm() <= looser * GRADIENTS[dtype] * wanted.norm()
