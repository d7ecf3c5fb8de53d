"""Positive features of FAVOR+: phi(x) = m^-1/2 exp(w.x - |x|^2/2) (arXiv 2009.14794, lemma 1).

Unbiased for the softmax kernel; with x, y scaled by d^-1/4 and z = x + y, iid rows give
MSE = (1/m) e^{|z|^2} SM^2 (1 - e^{-|z|^2}): small where the kernel is small, unlike the trigonometric features.
"""

from typing import Any

import torch
from torch import Tensor

from protformer.features.base import FeatureMap
from protformer.features.projections import gaussian, orthogonal


class PositiveFeatures(FeatureMap):
    """`num_features` positive features, from orthogonal blocks unless `orthogonal_rows` is off."""

    family_name = "exponential"

    def __init__(self, *, num_heads: int, head_dim: int, num_features: int = 256, orthogonal_rows: bool = True) -> None:
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features)
        self.orthogonal_rows = orthogonal_rows

    def draw(self, generator: torch.Generator) -> Tensor:
        return (orthogonal if self.orthogonal_rows else gaussian)(self.rows, self.head_dim, generator)

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "num_features": self.num_features,
            "orthogonal_rows": self.orthogonal_rows,
        }
