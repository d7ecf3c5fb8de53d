"""Exact softmax attention over packed segments.

On a CPU each segment goes through PyTorch's `scaled_dot_product_attention` by itself: the variable-length flash kernel
does not exist there, and nested tensors are tens of times slower. On CUDA in half precision the variable-length kernel
that PyTorch ships takes the whole pack; fp32 takes the segment loop.
"""

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protformer.attention.base import Attention


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
        if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
            return _variable_length_flash(query, key, value, cu_seqlens, self.causal)
        return _segment_loop(query, key, value, cu_seqlens, self.causal)  # pyright: ignore[reportCallIssue]

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "causal": self.causal}


# The loop reads the offsets, which a compiler cannot trace: one break per layer instead of one recompilation per pack.
@torch.compiler.disable
def _segment_loop(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool) -> Tensor:
    if query.shape[0] == 0:
        return torch.zeros_like(value)
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    # `split` and not slices: the backward of a slice fills a gradient of the whole pack for every segment, which made
    # forward and backward of 28 proteins four times slower.
    parts = zip(*(x.transpose(0, 1).unsqueeze(0).split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outs = [scaled_dot_product_attention(q, k, v, is_causal=causal) for q, k, v in parts if q.shape[2]]
    return torch.cat(outs, dim=2).squeeze(0).transpose(0, 1)


def _variable_length_flash(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # imported where it can run: its kernels are CUDA only

    longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(  # pyright: ignore[reportReturnType]  (a tuple only where the log-sum-exp is asked for)
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, window_size=window
    )
