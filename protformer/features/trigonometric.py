"""Trigonometric features: phi(x) = e^{|x|^2/2} m^-1/2 [cos(w.x), sin(w.x)] (arXiv 2009.14794, eq. 5).

Random Fourier features of m directions. Unbiased, MSE = (1/2m) e^{|z|^2} SM^-2 (1 - e^{-|x-y|^2})^2: large where the
kernel is small, and an estimate can be negative, so that training with them is unstable. Here for comparison.
"""

from typing import Any

import torch
from torch import Tensor

from protformer.features.base import FeatureMap
from protformer.features.projections import gaussian, orthogonal


class TrigonometricFeatures(FeatureMap):
    """`num_features` features: a cosine and a sine of half as many directions; `num_features` must be even."""

    family_name = "trigonometric"

    def __init__(self, *, num_heads: int, head_dim: int, num_features: int = 256, orthogonal_rows: bool = True) -> None:
        if num_features % 2:
            raise ValueError(f"cosines and sines come in pairs: num_features must be even, not {num_features}")
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features)
        self.orthogonal_rows = orthogonal_rows

    @property
    def rows(self) -> int:
        return self.num_features // 2

    def draw(self, generator: torch.Generator) -> Tensor:
        return (orthogonal if self.orthogonal_rows else gaussian)(self.rows, self.head_dim, generator)

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "num_features": self.num_features,
            "orthogonal_rows": self.orthogonal_rows,
        }
