"""Uniform attention: every token gets the mean of its segment's values. The floor of a comparison of attentions.

What a model with it learns, it learns without looking: from the composition of a sequence and from the token itself.
An attention that does no better has found nothing worth looking at.
"""

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from protformer.attention.bands import accumulator_type, with_unused
from protformer.attention.base import Attention


class UniformAttention(Attention):
    """The mean of a segment's values, or with `causal` the running mean: linear in length, no look at q and k.

    The block's weights of query and key take part in nothing: their gradients are zeros (and not missing, so that
    distributed training needs no `find_unused_parameters`).
    """

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
        return with_unused(_means(value, cu_seqlens, self.causal), query, key)  # pyright: ignore[reportCallIssue]

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "causal": self.causal}


@torch.compiler.disable  # it reads the offsets, which a compiler cannot trace
def _means(value: Tensor, cu_seqlens: Tensor, causal: bool) -> Tensor:
    # Segment by segment: differences of a sum that runs over the whole pack would round with the neighbours' values.
    wide = value.to(accumulator_type(value))
    parts = [part for part in wide.split(cu_seqlens.diff().tolist()) if len(part)]
    if not parts:
        return value
    if causal:
        counts = torch.arange(1, max(map(len, parts)) + 1, device=value.device, dtype=wide.dtype)[:, None, None]
        means = [part.cumsum(0) / counts[: len(part)] for part in parts]
    else:
        means = [part.mean(0, keepdim=True).expand_as(part) for part in parts]
    return torch.cat(means).to(value.dtype)
