"""Generalised features: phi(x) = f(W x) + epsilon (arXiv 2009.14794, section 2.2: "generalized attention").

No estimate of the softmax kernel. f = ReLU with epsilon 1e-3 is the variant that won on proteins in the paper.
"""

from typing import Any

import torch
from torch import Tensor

from protformer.features.base import FeatureMap
from protformer.features.families import ACTIVATIONS
from protformer.features.projections import orthogonal


class GeneralizedFeatures(FeatureMap):
    """`activation`: relu, squared_relu, elu (elu + 1), softplus or sigmoid; epsilon keeps denominators positive."""

    estimates_softmax = False

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        num_features: int = 256,
        activation: str = "relu",
        epsilon: float = 1e-3,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; there are {', '.join(ACTIVATIONS)}")
        if epsilon <= 0:
            raise ValueError(f"epsilon must be above 0 or a row of zero features has no average, not {epsilon}")
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features)
        self.family_name = activation
        self.epsilon = epsilon

    def draw(self, generator: torch.Generator) -> Tensor:
        return orthogonal(self.rows, self.head_dim, generator)

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "num_features": self.num_features,
            "activation": self.family_name,
            "epsilon": self.epsilon,
        }
