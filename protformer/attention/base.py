"""The contract of every attention, and the law it is tested by.

The law: a sequence gives the same output alone, packed with others, and at any position of the pack. (For finite
values: Reformer and sparse attention compute neighbouring segments side by side, and a weight of 0 times inf is NaN.)
"""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float, Int32
from torch import Tensor, nn


class Attention(nn.Module, ABC):
    """Mixes values within each packed segment. The projections of q, k, v and out live in the block, not here.

    `cu_seqlens` are int32 offsets, first 0, last `total`: segment i is rows `cu_seqlens[i]:cu_seqlens[i + 1]`.
    Logits are scaled by dim^-1/2. With `causal`, row t sees rows of its own segment up to and including t.
    """

    causal: bool
    longest: int | None = None
    """Tokens of the longest segment that it takes; None where any length will do."""

    @abstractmethod
    def forward(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        value: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Float[Tensor, "total heads dim"]: ...

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """`{"name": class name, **constructor arguments}` without the shape, as a model folder keeps it."""
