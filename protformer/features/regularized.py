"""Positive features of the regularised softmax kernel SMREG: every row has norm sqrt(d) (arXiv 2009.14794, theorem 2).

Biased down, 1 - 2 d^{-1/3} <~ A_reg / A <= 1, for a lower variance.
"""

from typing import Any

import torch
from torch import Tensor

from protformer.features.base import FeatureMap
from protformer.features.projections import orthogonal


class RegularizedFeatures(FeatureMap):
    """`num_features` positive features with orthogonal rows of constant norm."""

    family_name = "exponential"
    norm_weight = 1.0
    kernel = "softmax"

    def __init__(self, *, num_heads: int, head_dim: int, num_features: int = 256, per_head: bool = False) -> None:
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features, per_head=per_head)

    def draw(self, generator: torch.Generator) -> Tensor:
        return orthogonal(self.rows, self.head_dim, generator, norms="sqrt_dim")

    def options(self) -> dict[str, Any]:
        return {}
