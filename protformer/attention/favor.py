"""Performer attention (FAVOR+, arXiv 2009.14794): softmax attention through a feature map, linear in length."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from protformer.attention.base import Attention
from protformer.attention.favor_operator import favor_attention
from protformer.features import FeatureMap


class FavorAttention(Attention):
    """phi(q) (phi(k)^T v) over phi(q) (phi(k)^T 1), with a key/value state per segment.

    `features` is a factory `(num_heads=, head_dim=) -> FeatureMap`. The projection is all zeros until `redraw_` has
    been called: the encoder does that for all its layers at construction.
    """

    def __init__(
        self, *, num_heads: int, head_dim: int, features: Callable[..., FeatureMap], causal: bool = False
    ) -> None:
        super().__init__()
        self.features = features(num_heads=num_heads, head_dim=head_dim)
        self.causal = causal
        if causal and self.features.needs_future:
            raise ValueError(
                f"{type(self.features).__name__} takes statistics of whole segments, which causal attention may not"
                " see: use features.statistics=moving"
            )

    def forward(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        value: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Float[Tensor, "total heads dim"]:
        return self.attend(query, key, value, cu_seqlens, shortest=0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, shortest: int) -> Tensor:
        """`forward` that leaves segments of fewer than `shortest` rows out: their rows are zero."""
        features = self.features
        return favor_attention(
            query,
            key,
            value,
            cu_seqlens,
            features.projection,
            family=features.family_name,
            epsilon=features.epsilon,
            norm_weight=features.norm_weight,
            causal=self.causal,
            adaptation=features.adapt(query, key, cu_seqlens),
            shortest=shortest,
        )

    def redraw_(self, generator: torch.Generator) -> None:
        """Draw the projection anew (see `protformer.features.projections`)."""
        self.features.redraw_(generator)

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "causal": self.causal, "features": self.features.config()}
