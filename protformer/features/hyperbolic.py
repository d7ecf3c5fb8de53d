"""Hyperbolic features: phi(x) = (2m)^-1/2 [exp(w.x - |x|^2/2), exp(-w.x - |x|^2/2)] (arXiv 2009.14794, lemma 1).

Antithetic pairs of positive features: with m directions, which make 2m features, MSE is 1/2 (1 - e^{-|z|^2}) times that
of m positive features; feature for feature it is (1 - e^{-|z|^2}) times.
"""

import torch
from torch import Tensor

from protformer.features.positive import PositiveFeatures
from protformer.features.projections import gaussian, orthogonal


class HyperbolicFeatures(PositiveFeatures):
    """`num_features` features from half as many directions, each with both signs; `num_features` must be even."""

    def __init__(self, *, num_heads: int, head_dim: int, num_features: int = 256, **arguments) -> None:
        if num_features % 2:
            raise ValueError(f"hyperbolic features come in pairs: num_features must be even, not {num_features}")
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features, **arguments)

    def draw(self, generator: torch.Generator) -> Tensor:
        half = (orthogonal if self.orthogonal_rows else gaussian)(self.rows // 2, self.head_dim, generator)
        return torch.cat([half, -half])
