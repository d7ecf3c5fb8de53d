"""Exact attention for short segments, the Performer for long ones: each where it is the faster.

Below a few hundred tokens exact attention costs less than the features of the Performer, and it has no error. So a
proteome of ordinary proteins runs at exact attention's speed and titin at the Performer's.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int32
from torch import Tensor

from protformer.attention.exact import exact_attention
from protformer.attention.favor import FavorAttention
from protformer.features import FeatureMap


class HybridAttention(FavorAttention):
    """Segments of fewer than `threshold` tokens get softmax attention, the others the Performer's estimate of it.

    The threshold is part of the model: measured anew on each machine it would change outputs between machines
    (`protformer benchmark attention --crossover` suggests one). Only a map that estimates the softmax kernel is
    allowed, or the two would be different functions.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        features: Callable[..., FeatureMap],
        causal: bool = False,
        threshold: int = 512,
    ) -> None:
        super().__init__(num_heads=num_heads, head_dim=head_dim, features=features, causal=causal)
        if not self.features.estimates_softmax:
            raise ValueError(
                "hybrid attention needs features that estimate softmax attention (features=positive, optimal, dense,"
                f" ...), and {type(self.features).__name__} as configured do not"
            )
        if threshold < 0:
            raise ValueError(f"threshold must be a number of tokens, at least 0, not {threshold}")
        self.threshold = threshold

    def forward(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        value: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Float[Tensor, "total heads dim"]:
        long = self.attend(query, key, value, cu_seqlens, shortest=self.threshold)
        short = exact_attention(query, key, value, cu_seqlens, causal=self.causal, shorter_than=self.threshold)
        # every row is zero in one of the two
        return long + short

    def config(self) -> dict[str, Any]:
        return {**super().config(), "threshold": self.threshold}
