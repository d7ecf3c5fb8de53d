"""Exact softmax attention over packed segments.

On a CPU each segment goes through PyTorch's `scaled_dot_product_attention` kernel by itself: the variable-length flash
kernel does not exist there, and nested tensors are tens of times slower. The loop over segments is one operator, so
that a compiled model has no break there. On CUDA in half precision the variable-length kernel that PyTorch ships takes
the whole pack; fp32 takes a loop.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protformer.attention.base import Attention

# Beyond the length of any segment.
UNLIMITED = 2**31
# PyTorch's bf16 backward on a CPU takes seven times as long as its fp32 one at 64 rows; from some 1,000 it is ahead.
FP32_BACKWARD_BELOW = 768


class ExactAttention(Attention):
    """softmax(q k^T / sqrt(dim)) v within each segment: quadratic in a segment's length."""

    def __init__(self, *, num_heads: int, head_dim: int, causal: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.causal = causal

    def forward(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        value: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Float[Tensor, "total heads dim"]:
        return exact_attention(query, key, value, cu_seqlens, causal=self.causal)

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "causal": self.causal}


def exact_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, causal: bool, shorter_than: int = UNLIMITED
) -> Tensor:
    """Softmax attention of the segments of fewer than `shorter_than` rows; rows of the others are zero."""
    if query.device.type == "cpu":
        out, _ = torch.ops.protformer.exact(query, key, value, cu_seqlens, causal, shorter_than)
        return out
    if shorter_than < UNLIMITED:
        return _of_short_segments(query, key, value, cu_seqlens, causal, shorter_than)  # pyright: ignore[reportCallIssue]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and _flash_takes(query):
        return _variable_length_flash(query, key, value, cu_seqlens, causal)
    return _segment_loop(query, key, value, cu_seqlens, causal)  # pyright: ignore[reportCallIssue]


@torch.library.custom_op(
    "protformer::exact",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, bool causal, int shorter_than)"
    " -> (Tensor, Tensor)",
)
def _exact(query, key, value, cu_seqlens, causal, shorter_than):
    out = torch.zeros_like(value)
    logsumexp = _row_numbers(query).zero_()
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    for a, b in _segments(cu_seqlens, shorter_than):
        rows, numbers = kernel(*_heads_first(a, b, query, key, value), 0.0, causal)
        out[a:b] = rows[0].transpose(0, 1)
        logsumexp[a:b] = numbers[0].T
    return out, logsumexp


@_exact.register_fake
def _exact_fake(query, key, value, cu_seqlens, causal, shorter_than):
    return torch.empty_like(value), _row_numbers(query)


@torch.library.custom_op(
    "protformer::exact_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor out, Tensor logsumexp, Tensor query, Tensor key, Tensor value, Tensor cu_seqlens,"
    " bool causal, int shorter_than) -> (Tensor, Tensor, Tensor)",
)
def _exact_backward(grad_out, out, logsumexp, query, key, value, cu_seqlens, causal, shorter_than):
    grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    for a, b in _segments(cu_seqlens, shorter_than):
        given, *inputs, made = _heads_first(a, b, grad_out, query, key, value, out)
        if query.dtype == torch.bfloat16 and b - a < FP32_BACKWARD_BELOW:
            given, *inputs, made = (x.float() for x in (given, *inputs, made))
        parts = kernel(given, *inputs, made, logsumexp[a:b].T.unsqueeze(0), 0.0, causal)
        for grad, part in zip(grads, parts, strict=True):
            grad[a:b] = part[0].transpose(0, 1)
    return grads


@_exact_backward.register_fake
def _exact_backward_fake(grad_out, out, logsumexp, query, key, value, cu_seqlens, causal, shorter_than):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _setup_context(ctx, inputs, output):
    query, key, value, cu_seqlens, *ctx.settings = inputs
    ctx.save_for_backward(*output, query, key, value, cu_seqlens)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_logsumexp):
    if grad_out is None:
        return (None,) * 6
    grads = torch.ops.protformer.exact_backward(grad_out, *ctx.saved_tensors, *ctx.settings)
    return (*grads, None, None, None)


_exact.register_autograd(_backward, setup_context=_setup_context)


def _segments(cu_seqlens: Tensor, shorter_than: int) -> Iterator[tuple[int, int]]:
    return ((a, b) for a, b in itertools.pairwise(cu_seqlens.tolist()) if 0 < b - a < shorter_than)


def _heads_first(a: int, b: int, *packed: Tensor) -> Iterator[Tensor]:
    """Rows of packed tensors as `[1, heads, rows, dim]`; with three dimensions the kernel would be 20 times slower."""
    return (x[a:b].transpose(0, 1).unsqueeze(0) for x in packed)


def _row_numbers(query: Tensor) -> Tensor:
    """`[total, heads]`, laid out as the kernel's own."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape[0], query.shape[1], dtype=dtype)


@torch.compiler.disable  # it reads the offsets, which a compiler cannot trace
def _segment_loop(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool) -> Tensor:
    if query.shape[0] == 0:
        return torch.zeros_like(value)
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    # `split` and not slices: the backward of a slice fills a gradient of the whole pack for every segment, which made
    # forward and backward of 28 proteins four times slower.
    parts = zip(*(x.transpose(0, 1).unsqueeze(0).split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outs = [scaled_dot_product_attention(q, k, v, is_causal=causal) for q, k, v in parts if q.shape[2]]
    return torch.cat(outs, dim=2).squeeze(0).transpose(0, 1)


@torch.compiler.disable  # how many rows there are depends on the offsets
def _of_short_segments(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, shorter_than: int
) -> Tensor:
    """The short segments as a pack of their own."""
    lengths = cu_seqlens.diff()
    chosen = torch.nonzero(torch.repeat_interleave(lengths < shorter_than, lengths)).squeeze(1)
    if chosen.numel() == 0:
        return torch.zeros_like(value)
    offsets = torch.nn.functional.pad(lengths[lengths < shorter_than].cumsum(0), (1, 0)).to(torch.int32)
    part = exact_attention(query[chosen], key[chosen], value[chosen], offsets, causal=causal)
    return torch.zeros_like(value).index_copy(0, chosen, part)


def _flash_takes(query: Tensor) -> bool:
    # called directly the kernels pad nothing, as `scaled_dot_product_attention` does for them
    return query.shape[0] > 0 and query.shape[2] % 8 == 0 and query.shape[2] <= 256


def _variable_length_flash(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # imported where it can run: its kernels are CUDA only

    # The longest segment sizes the grid. A compiler cannot wait for it; the pack's length bounds it, at the price of
    # programs that find nothing to do.
    longest = query.shape[0] if torch.compiler.is_compiling() else int(cu_seqlens.diff().max())
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(  # pyright: ignore[reportReturnType]  (a tuple only where the log-sum-exp is asked for)
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, window_size=window
    )
